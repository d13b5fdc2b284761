"""`fedkd doctor --deployment DIR`: what is wrong with a server or a client, and each thing's fix.

Each finding has a code, with a section of its own in docs/errors.md.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from clients.fleet import CLOCK_S, HEARTBEAT_S, Fleet, NotTrusted, clock_off
from fedkd.data.sources import load
from fedkd.errors import FedkdError
from fedkd.files import is_locked
from scenarios.deploy import keys
from scenarios.deploy.asking import TIMEOUT_S, ask
from scenarios.deploy.folder import CLIENT, client_settings, is_loopback, nodes, server_settings
from scenarios.doctor import Finding

SOON_DAYS = 30
LEAST_GB = 1.0


def finding(code: str, what: str, found: str, ok: bool, fix: str) -> Finding:
    """One thing looked at, under a code; the fix of what is right is not told."""
    return Finding(what, found, ok, "" if ok else fix, code)


def examine(folder: Path) -> list[Finding]:
    """Of a client's folder, or a server's. Raises: FedkdError for a folder that is neither."""
    folder = folder.resolve()
    return list(_client(folder) if (folder / CLIENT).exists() else _server(folder))


def _server(folder: Path) -> Iterator[Finding]:
    settings = server_settings(folder)
    ca, port = folder / "ca.crt", settings.link_port
    yield from _private(folder, "server.key", "executor.secret")
    yield from _certificate(folder, settings.hosts)
    yield _disk(folder)
    serving = is_locked(folder / "state")
    said = "running" if serving else "not running"
    yield finding("D05", "server", said, serving, f"fedkd deploy server {folder}")
    if not serving:
        taken = _listens("127.0.0.1", port)
        said = f"{port} is {'taken' if taken else 'free'}"
        fix = "stop what listens there, or change link_port in server.toml"
        yield finding("D06", "port", said, not taken, fix)
        return
    yield from _health(ca, settings.link_address)
    yield _open_task(ca, settings.link_address)
    if settings.link_port != settings.port:
        there, found = _reachable(f"{settings.hosts[0]}:{settings.port}", "is the proxy running?")
        yield found
        if there:
            yield from _outside(ca, f"{settings.hosts[0]}:{settings.port}")
    registered = {about["name"] for about in nodes(folder).values()}
    revoked = [n for n in settings.clients if not (folder / f"nodes/{n}.pub").exists()]
    lost = [n for n in settings.clients if n not in registered and n not in revoked]
    said = f"{len(registered)} registered; revoked: {revoked}; missing: {lost}"
    fix = "put NAME.pub into server/nodes, or: fedkd deploy rotate"
    yield finding("D09", "keys", said, not lost, fix)


def _client(folder: Path) -> Iterator[Finding]:
    settings = client_settings(folder)
    ca = folder / "ca.crt"
    yield from _private(folder, "key")
    yield _disk(folder)
    if settings.data is not None:
        try:
            said, ok = f"{len(load(settings.data).train)} records", True
        except FedkdError as error:
            said, ok = str(error), False
        yield finding("D12", "data", said, ok, "edit [data] in client.toml")
    fix = "is the server up? is the name right? does a firewall stand in between?"
    there, found = _reachable(settings.server, fix)
    yield found
    if not there:
        return
    health = list(_health(ca, settings.server))
    yield from health
    if not all(one.ok for one in health):
        return
    if not is_loopback(settings.server.rpartition(":")[0]):
        yield from _outside(ca, settings.server)
    yield _accepted(folder, settings.server)


def _private(folder: Path, *names: str) -> Iterator[Finding]:
    for name in names:
        path = folder / name
        if not path.exists():
            yield finding("D01", name, "missing", False, "copy it from where init was run")
            continue
        mode = path.stat().st_mode & 0o777
        yield finding("D01", name, f"mode {mode:o}", mode & 0o077 == 0, f"chmod 600 {path}")


def _certificate(folder: Path, hosts: tuple[str, ...]) -> Iterator[Finding]:
    rotate = "fedkd deploy rotate FOLDER, then restart the server"
    try:
        mine = keys.read_certificate(folder / "server.pem")
        ca = keys.read_certificate(folder / "ca.crt")
    except FedkdError as error:
        yield finding("D02", "certificate", str(error), False, rotate)
        return
    try:
        mine.verify_directly_issued_by(ca)
        said, ok = "signed by ca.crt", True
    except (InvalidSignature, ValueError, TypeError):
        said, ok = "not signed by ca.crt", False
    yield finding("D02", "chain", said, ok, rotate)
    names = mine.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    covered = {str(name.value) for name in names}
    missing = ", ".join(host for host in hosts if host not in covered)
    fix = f"not in it: {missing}: {rotate}"
    yield finding("D03", "names", ", ".join(sorted(covered)), not missing, fix)
    end = mine.not_valid_after_utc
    days = (end - datetime.now(UTC)).total_seconds() / 86400
    said = f"expired on {end:%Y-%m-%d}" if days < 0 else f"until {end:%Y-%m-%d}, {days:.0f} days"
    yield finding("D04", "expiry", said, days > SOON_DAYS, rotate)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    fix = "make room: state is kept there"
    return finding("D10", "disk", f"{free:.1f} GB free", free > LEAST_GB, fix)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _reachable(address: str, fix: str) -> tuple[bool, Finding]:
    host, _, port = address.rpartition(":")
    there = _listens(host, int(port))
    said = f"{address} {'answers' if there else 'does not answer'}"
    return there, finding("D06", "port", said, there, fix)


def _health(ca: Path, address: str) -> Iterator[Finding]:
    """TLS, health, and the clock by which signatures are judged."""
    try:
        answer = ask(ca, address, "/health")
    except NotTrusted as error:
        said = str(error)
        code = "D04" if "expired" in said else "D03" if "ismatch" in said else "D02"
        fix = "fedkd deploy rotate on the server's side, or copy its ca.crt here"
        yield finding(code, "certificate", said, False, fix)
        return
    except FedkdError as error:
        fix = "the server there speaks no TLS, or is another one; look at the address"
        yield finding("D07", "TLS", str(error), False, fix)
        return
    said = f"{address}: HTTP {answer.status_code}"
    yield finding("D07", "TLS", said, answer.is_success, "see superlink.log")
    off = clock_off(answer)
    if off is not None:
        said = f"{off:+.0f} s from the server's"
        yield finding("D11", "clock", said, abs(off) <= CLOCK_S, "timedatectl set-ntp true")


def _open_task(ca: Path, address: str) -> Finding:
    """Whether anybody may take a ServerApp's task, and with it the run's token."""
    status = _status(ca, address, "/v1/runtime/acquire-task")
    fix = "start it by fedkd deploy server, which sets the secret"
    return finding("D08", "tasks", f"without the secret: {status}", status in (401, 403), fix)


def _outside(ca: Path, address: str) -> Iterator[Finding]:
    """From where clients are: only their paths may answer."""
    for path in ("/v1/control/list-nodes", "/v1/runtime/acquire-task"):
        status = _status(ca, address, path)
        fix = "put the proxy of server/nginx.conf in front"
        yield finding("D08", path, f"from outside: {status}", status in (403, 404), fix)


def _status(ca: Path, address: str, path: str) -> int:
    return ask(ca, address, path, AcquireTaskRequest().SerializeToString()).status_code


def _accepted(folder: Path, address: str) -> Finding:
    if is_locked(folder / "state"):
        return finding("D09", "key", "this client is running", True, "")
    line = Fleet(
        address, (folder / "ca.crt").read_bytes(), keys.read_node_key(folder / "key"), HEARTBEAT_S
    )
    try:
        said, ok = f"accepted as node {line.join()}", True
        line.leave()
    except FedkdError as error:
        said, ok = str(error).split(";")[0], False
    finally:
        line.close()
    fix = "on the server: fedkd deploy status; fedkd deploy rotate --client NAME"
    return finding("D09", "key", said, ok, fix)

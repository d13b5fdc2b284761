"""`fedkd doctor --deployment DIR`: what is wrong with a server or a client, and each thing's fix.

Each finding has a code, with a section of its own in docs/errors.md.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from clients.fleet import CLOCK_S, HEARTBEAT_S, Fleet
from fedkd.data.sources import load
from fedkd.errors import FedkdError
from fedkd.files import is_locked
from scenarios.deploy import keys
from scenarios.deploy.folder import (
    CLIENT,
    client_settings,
    is_loopback,
    nodes,
    server_settings,
)

SOON_DAYS = 30
LEAST_GB = 1.0
TIMEOUT_S = 5.0


class Finding(NamedTuple):
    """One thing looked at. `code` has its page in docs/errors.md."""

    code: str
    what: str
    found: str
    ok: bool
    fix: str = ""


def examine(folder: Path) -> list[Finding]:
    """Of a client's folder, or a server's. Raises: FedkdError for a folder that is neither."""
    folder = folder.resolve()
    if (folder / CLIENT).exists():
        return list(_client(folder))
    return list(_server(folder))


def _server(folder: Path) -> Iterator[Finding]:
    settings = server_settings(folder)
    yield from _private(folder, "server.key", "executor.secret")
    yield from _certificate(folder, settings.hosts)
    yield _disk(folder)
    serving = is_locked(folder / "state")
    yield Finding(
        "D05",
        "server",
        "running" if serving else "not running",
        serving,
        "" if serving else f"fedkd deploy server {folder}",
    )
    address = ("127.0.0.1", settings.link_port)
    if not serving:
        taken = _listens(*address)
        yield Finding(
            "D06",
            "port",
            f"{address[1]} is {'taken' if taken else 'free'}",
            not taken,
            "stop what listens there, or change link_port in server.toml" * taken,
        )
        return
    yield _health(folder / "ca.crt", *address)
    yield _open_task(folder / "ca.crt", *address)
    if settings.link_port != settings.port:
        yield from _outside(folder / "ca.crt", settings.hosts[0], settings.port)
    registered = {about["name"] for about in nodes(folder).values()}
    missing = [name for name in settings.clients if name not in registered]
    revoked = [name for name in missing if (folder / f"nodes/revoked/{name}.pub").exists()]
    lost = [name for name in missing if name not in revoked]
    said = "all registered" if not missing else f"revoked: {revoked}, not registered: {lost}"
    yield Finding(
        "D09",
        "keys",
        said,
        not lost,
        "put NAME.pub into server/nodes, or: fedkd deploy rotate" * bool(lost),
    )


def _client(folder: Path) -> Iterator[Finding]:
    settings = client_settings(folder)
    yield from _private(folder, "key")
    yield _disk(folder)
    if settings.data is not None:
        try:
            n = len(load(settings.data).train)
            yield Finding("D12", "data", f"{n} records", True)
        except FedkdError as error:
            yield Finding("D12", "data", str(error), False, "edit [data] in client.toml")
    host, _, port = settings.server.rpartition(":")
    there = _listens(host, int(port))
    fix = "is the server up? is the name right? does a firewall stand in between?" * (not there)
    yield Finding(
        "D06", "port", f"{settings.server} {'answers' if there else 'does not answer'}", there, fix
    )
    if not there:
        return
    health = _health(folder / "ca.crt", host, int(port))
    yield health
    if not health.ok:
        return
    yield from _clock(folder / "ca.crt", host, int(port))
    if not is_loopback(host):
        yield from _outside(folder / "ca.crt", host, int(port))
    yield _accepted(folder, settings.server)


def _private(folder: Path, *names: str) -> Iterator[Finding]:
    for name in names:
        path = folder / name
        if not path.exists():
            yield Finding("D01", name, "missing", False, "copy it from where init was run")
            continue
        mode = path.stat().st_mode & 0o777
        ok = mode & 0o077 == 0
        yield Finding("D01", name, f"mode {mode:o}", ok, "" if ok else f"chmod 600 {path}")


def _certificate(folder: Path, hosts: tuple[str, ...]) -> Iterator[Finding]:
    rotate = "fedkd deploy rotate FOLDER, then restart the server"
    try:
        mine = keys.read_certificate(folder / "server.pem")
        ca = keys.read_certificate(folder / "ca.crt")
    except FedkdError as error:
        yield Finding("D02", "certificate", str(error), False, rotate)
        return
    try:
        mine.verify_directly_issued_by(ca)
        yield Finding("D02", "chain", "signed by ca.crt", True)
    except (InvalidSignature, ValueError, TypeError):
        yield Finding("D02", "chain", "not signed by ca.crt", False, rotate)
    names = mine.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    covered = {str(name.value) for name in names}
    missing = [host for host in hosts if host not in covered]
    yield Finding(
        "D03",
        "names",
        ", ".join(sorted(covered)),
        not missing,
        f"not in it: {', '.join(missing)}: {rotate}" if missing else "",
    )
    yield _expiry(mine.not_valid_after_utc, rotate)


def _expiry(end: datetime, fix: str) -> Finding:
    days = (end - datetime.now(UTC)).total_seconds() / 86400
    said = f"expired on {end:%Y-%m-%d}" if days < 0 else f"until {end:%Y-%m-%d}, {days:.0f} days"
    return Finding("D04", "expiry", said, days > SOON_DAYS, "" if days > SOON_DAYS else fix)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    return Finding(
        "D10",
        "disk",
        f"{free:.1f} GB free",
        free > LEAST_GB,
        "" if free > LEAST_GB else "make room: state is kept there",
    )


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _ask(ca: Path, host: str, port: int, path: str, body: bytes | None = None) -> tuple[int, str]:
    """HTTP status and Date of an answer. Raises: OSError."""
    context = ssl.create_default_context(cafile=str(ca))
    line = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    with closing(line):
        kind = {"content-type": "application/protobuf", "accept": "application/protobuf"}
        line.request("GET" if body is None else "POST", path, body, {} if body is None else kind)
        answer = line.getresponse()
        return answer.status, answer.getheader("date") or ""


def _health(ca: Path, host: str, port: int) -> Finding:
    where = f"{host}:{port}"
    try:
        status, _ = _ask(ca, host, port, "/health")
    except ssl.SSLCertVerificationError as error:
        text = error.verify_message
        code = "D04" if "expired" in text else "D03" if "ismatch" in text else "D02"
        fix = "fedkd deploy rotate on the server's side, or copy its ca.crt here"
        return Finding(code, "certificate", f"{where}: {text}", False, fix)
    except (OSError, http.client.HTTPException) as error:
        fix = "the server there speaks no TLS, or is another one; look at the address"
        return Finding("D07", "TLS", f"{where}: {error}", False, fix)
    return Finding(
        "D07",
        "TLS",
        f"{where} is healthy" if status == 200 else f"{where}: HTTP {status}",
        status == 200,
        "" if status == 200 else "see superlink.log",
    )


def _open_task(ca: Path, host: str, port: int) -> Finding:
    """Whether anybody may take a ServerApp's task, and with it the run's token."""
    body = AcquireTaskRequest().SerializeToString()
    status, _ = _ask(ca, host, port, "/v1/runtime/acquire-task", body)
    refused = status in (401, 403)
    return Finding(
        "D08",
        "tasks",
        f"without the secret: HTTP {status}",
        refused,
        "" if refused else "start it by fedkd deploy server, which sets the secret",
    )


def _outside(ca: Path, host: str, port: int) -> Iterator[Finding]:
    """From where clients are: only their paths may answer."""
    for path in ("/v1/control/list-nodes", "/v1/runtime/acquire-task"):
        try:
            status, _ = _ask(ca, host, port, path, b"")
            said, closed = f"HTTP {status}", status in (403, 404)
        except OSError as error:
            said, closed = str(error), True
        yield Finding(
            "D08",
            path,
            f"from outside: {said}",
            closed,
            "" if closed else "put the proxy of server/nginx.conf in front",
        )


def _clock(ca: Path, host: str, port: int) -> Iterator[Finding]:
    _, date = _ask(ca, host, port, "/health")
    if date:
        off = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
        ok = abs(off) <= CLOCK_S
        yield Finding(
            "D11",
            "clock",
            f"{off:+.0f} s from the server's",
            ok,
            "" if ok else "timedatectl set-ntp true",
        )


def _accepted(folder: Path, address: str) -> Finding:
    if is_locked(folder / "state"):
        return Finding("D09", "key", "this client is running", True)
    line = Fleet(
        address, (folder / "ca.crt").read_bytes(), keys.read_node_key(folder / "key"), HEARTBEAT_S
    )
    try:
        node = line.join()
        line.leave()
        return Finding("D09", "key", f"accepted as node {node}", True)
    except FedkdError as error:
        return Finding(
            "D09",
            "key",
            str(error).split(";")[0],
            False,
            "on the server: fedkd deploy status; fedkd deploy rotate --client NAME",
        )
    finally:
        line.close()

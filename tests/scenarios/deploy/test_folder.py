"""Deployment folders: keys and certificates that hold in real TLS, settings, runs, status."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from deployments import rehearsal
from fedkd.errors import FedkdError
from fedkd.files import is_locked, locked
from scenarios.deploy import init, keys, runs
from scenarios.deploy.client import config_of, source_of
from scenarios.deploy.folder import client_settings, server_settings
from scenarios.deploy.status import status
from server.app import DONE, FAILED

FOLDERS = ["server", "clients/a", "clients/b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init.init(tmp_path / "lab", ["example.org", "192.0.2.7"], 8443, ["a", "b"])
    return tmp_path / "lab"


def handshake(server: Path, ca: Path, name: str) -> str:
    """Shake hands with the server's certificate. Returns: its subject's common name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.pem", server / "server.key")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            context.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ssl.create_default_context(cafile=str(ca)).wrap_socket(
            ours, server_hostname=name
        ) as line:
            subject: Any = line.getpeercert()["subject"]  # type: ignore[index]
            return str(subject[0][0][1])
    finally:
        ours.close()
        thread.join()


def test_clients_trust_the_server_under_each_of_its_names(folder: Path) -> None:
    for name in ("example.org", "192.0.2.7", "localhost", "127.0.0.1"):
        assert handshake(folder / "server", folder / "clients/a/ca.crt", name) == "example.org"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(folder / "server", folder / "clients/a/ca.crt", "example.com")


def test_a_rotated_certificate_is_another_and_an_expired_one_is_refused(folder: Path) -> None:
    before = keys.read_certificate(folder / "server/server.pem").serial_number
    init.rotate(folder)
    assert keys.read_certificate(folder / "server/server.pem").serial_number != before
    handshake(folder / "server", folder / "clients/b/ca.crt", "example.org")
    init.rotate(folder, days=-1)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(folder / "server", folder / "clients/b/ca.crt", "example.org")


def test_another_deployment_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    init.init(tmp_path / "other", ["example.org"], 8443, ["a"])
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(folder / "server", tmp_path / "other/server/ca.crt", "example.org")


def test_secrets_are_for_their_owner_and_lie_on_one_side_only(folder: Path) -> None:
    secret = ["ca.key", "server/server.key", "server/executor.secret", "clients/a/key"]
    for name in secret:
        assert (folder / name).stat().st_mode & 0o077 == 0, name
    there = {path.read_bytes() for path in (folder / "server").rglob("*") if path.is_file()}
    assert (folder / "clients/a/key").read_bytes() not in there
    assert (folder / "ca.key").read_bytes() not in there
    for name in ("a", "b"):
        allowed = (folder / f"server/nodes/{name}.pub").read_bytes()
        key = keys.read_node_key(folder / "clients" / name / "key")
        assert load_ssh_public_key(allowed) == key.public_key()


def test_the_certificate_cannot_sign_others(folder: Path) -> None:
    certificate = keys.read_certificate(folder / "server/server.pem")
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not basic.value.ca
    certificate.verify_directly_issued_by(keys.read_certificate(folder / "server/ca.crt"))


def test_settings_and_seats(folder: Path) -> None:
    server = server_settings(folder / "server")
    assert (server.port, server.link_port) == (8443, 8444), "a proxy stands in between"
    assert [client_settings(folder / "clients" / n).seat for n in "ab"] == [0, 1]
    assert client_settings(folder / "clients/a").server == "example.org:8443"
    init.add(folder, "c")
    assert client_settings(folder / "clients/c").seat == 2
    assert server_settings(folder / "server").seat("c") == 2


def test_revoked_and_allowed_again_with_a_new_key(folder: Path) -> None:
    init.revoke(folder / "server", "a")
    assert not (folder / "server/nodes/a.pub").exists()
    with pytest.raises(FedkdError, match="revoked already"):
        init.revoke(folder / "server", "a")
    old = (folder / "clients/a/key").read_bytes()
    init.rotate_client(folder, "a")
    assert (folder / "clients/a/key").read_bytes() != old
    assert (folder / "server/nodes/a.pub").read_text() == (folder / "clients/a/key.pub").read_text()


@pytest.mark.parametrize(
    ("clients", "reason"), [(["a", "a"], "one name"), (["A b"], "name of a folder")]
)
def test_names_that_cannot_be_used(tmp_path: Path, clients: list[str], reason: str) -> None:
    with pytest.raises(FedkdError, match=reason):
        init.init(tmp_path / "x", ["localhost"], 8100, clients)


def test_a_folder_in_use_is_left_alone(folder: Path) -> None:
    with pytest.raises(FedkdError, match="in use already"):
        init.init(folder, ["localhost"], 8100, ["a"])


def test_what_other_programs_read(folder: Path) -> None:
    """Compose files are YAML; the proxy lets two paths out and nothing else."""
    for name in FOLDERS:
        table = yaml.safe_load((folder / name / "docker-compose.yml").read_text())
        assert all(
            "fedkd" in s["image"] or s["image"].startswith("nginx")
            for s in table["services"].values()
        )
        text = "\n".join(path.read_text() for path in (folder / name).glob("*.service"))
        assert "Restart=always" in text
        assert "$" not in text
    rules = (folder / "server/nginx.conf").read_text()
    assert rules.count("proxy_pass") == 2
    assert "location / { return 404; }" in rules


def test_a_run_is_whole_when_it_is_seen(folder: Path) -> None:
    run = runs.submit(folder / "server", rehearsal(2))
    assert [one.name for one in runs.queue(folder / "server")] == [run.name]
    assert run.scenario.references == ()
    assert run.state == "0 of 2 rounds"
    (run.folder / FAILED).write_text("no quorum")
    assert runs.queue(folder / "server") == []
    assert run.state == "stopped: no quorum"
    assert runs.again(folder / "server", run.name).state == "0 of 2 rounds"
    run.cell(1).mkdir(parents=True)
    (run.cell(1) / DONE).touch()
    assert run.is_done
    found = status(folder / "server")
    assert not found["serving"]
    assert found["runs"] == [{"name": run.name, "state": "done"}]
    assert [one["state"] for one in found["clients"]] == ["not registered yet"] * 2


def test_a_scenario_for_another_number_of_clients(folder: Path) -> None:
    with pytest.raises(FedkdError, match=r"number of clients.*partition\.clients=2"):
        runs.submit(folder / "server", rehearsal(2, clients=3))
    with pytest.raises(FedkdError, match="no such scenario file or run"):
        runs.again(folder / "server", "nothing")


def test_data_as_a_user_types_them(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "mine.npz", x=np.zeros((4, 1, 2, 2), np.uint8), y=np.arange(4))
    assert source_of(str(tmp_path / "mine.npz")).name == "npz"
    assert source_of('{"name": "digits"}').name == "digits"
    assert source_of("mine.records:load").name == "python"
    for text, reason in [
        ("/no/such/file", "no such file"),
        ('{"name": "nothing"}', "cannot be read"),
        (str(tmp_path), ""),
    ]:
        if reason:
            with pytest.raises(FedkdError, match=reason):
                source_of(text)
    (tmp_path / "odd.csv").touch()
    with pytest.raises(FedkdError, match="what kind of data"):
        source_of(str(tmp_path / "odd.csv"))


def test_the_node_config_has_what_a_place_reads(folder: Path, tmp_path: Path) -> None:
    settings = client_settings(folder / "clients/b")
    config = config_of(settings, source_of('{"name": "digits"}'), tmp_path)
    assert config["seat"] == 1
    assert json.loads(str(config["data"]))["name"] == "digits"


def test_a_locked_folder(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(FedkdError, match="another process"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)


def test_who_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    """A look takes the lock for an instant; who works there must not be refused for that."""
    (tmp_path / "lock").touch()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_locked(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for one in lookers:
        one.start()
    try:
        for _ in range(50):
            with locked(tmp_path):
                pass
    finally:
        done.set()
        for one in lookers:
            one.join()


@pytest.mark.parametrize(
    ("port", "clients", "reason"),
    [(99999, ["a"], "less than or equal"), (0, ["a"], "greater than"), (8100, [], "at least 1")],
)
def test_numbers_that_cannot_be_used(
    tmp_path: Path, port: int, clients: list[str], reason: str
) -> None:
    with pytest.raises(FedkdError, match=f"the deployment: .*{reason}"):
        init.init(tmp_path / "x", ["localhost"], port, clients)
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_no_fault_with_the_units(folder: Path, tmp_path: Path) -> None:
    for path in [*folder.rglob("*.service")]:
        program = tmp_path / path.name  # it looks whether the program is there
        text = path.read_text().replace("/opt/fedkd/bin/fedkd", sys.executable)
        program.write_text(text.replace("User=fedkd\n", ""))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(program)], capture_output=True, text=True
        )
        assert path.name not in done.stderr, done.stderr

"""A server and two clients, real processes over TLS with node keys: the same bits as `inline`."""

from __future__ import annotations

import json
import socket
import ssl
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from deployments import Deployment, consensus, deployment, facts, ledgers, rehearsal, until
from scenarios.deploy import init
from scenarios.deploy.doctor import examine
from scenarios.deploy.folder import client_settings, dump, nodes
from scenarios.deploy.status import status
from scenarios.deploy.verify import verify
from scenarios.simulate import simulate

WHAT = ["chain", "signatures", "one run", "rounds", "questions", "proxy set", "consensus"]
WHAT += ["client's copy", "model"]


def test_three_rounds_equal_a_simulation_to_the_bit(tmp_path: Path) -> None:
    scenario = rehearsal(3)
    simulate(scenario, folder=tmp_path / "inline")
    expected = tmp_path / "inline/edgefd/seed-1"
    with deployment(tmp_path / "real") as real:
        real.start_all()
        run = real.submit(scenario)
        real.wait(run)
        cell = run.cell(1)
        assert facts(cell / "events.jsonl") == facts(expected / "events.jsonl")
        assert consensus(cell) == consensus(expected)
        states = [real.folder / "clients" / name / "state" for name in real.names]
        simulated = [expected / "clients" / f"{i:06d}" for i in range(2)]
        assert ledgers(states) == ledgers(simulated)
        assert [one["state"] for one in status(real.server)["clients"]] == ["online"] * 2
        for state in states:
            checks = list(verify(run.folder, None, state))
            assert [check for check in checks if not check.ok and check.what[-5:] != "model"] == []
            assert [check.what.split(": ")[1] for check in checks] == WHAT
        _nobody_else_gets_in(real)
        for part in ("server", "clients/client-1"):
            assert [one for one in examine(real.folder / part) if not one.ok] == []


def _nobody_else_gets_in(real: Deployment) -> None:
    """Without the executor's secret no task can be taken; plain text gets no answer."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest

    trusted = ssl.create_default_context(cafile=str(real.server / "ca.crt"))
    request = urllib.request.Request(
        f"https://localhost:{real.port}/v1/runtime/acquire-task",
        data=AcquireTaskRequest().SerializeToString(),
        headers={"content-type": "application/protobuf"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, context=trusted, timeout=10)
    assert refused.value.code in (401, 403)
    refused.value.close()
    with socket.create_connection(("localhost", real.port), timeout=10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_who_is_not_welcome_is_told_why(tmp_path: Path) -> None:
    with deployment(tmp_path / "real") as real:
        real.start("server")
        real.wait_for("server", "serving")
        stranger = Deployment(tmp_path / "stranger")
        for name, change in (
            ("unknown", _with_the_key_of(stranger)),
            ("other-ca", _with_the_ca_of(stranger)),
        ):
            own = real.folder / "clients" / name
            init.add(real.folder, name)
            change(own)
            (real.server / "nodes" / f"{name}.pub").unlink()
            assert real.start(name).wait(60) == 2, real.said(name)
        assert "does not accept this client's key" in real.said("unknown")
        assert "certificate is not accepted" in real.said("other-ca")
        real.start("client-1")
        real.wait_for("client-1", "joined")
        init.revoke(real.server, "client-1")
        assert real.processes["client-1"].wait(60) == 2
        assert "revoked" in real.said("client-1")
        until(lambda: status(real.server)["clients"][0]["state"] == "revoked", 30, "status")
        back = real.server / "nodes/revoked/client-1.1.pub"
        back.rename(real.server / "nodes/client-1.pub")
        real.wait_for("server", "cannot be allowed again")
        assert status(real.server)["clients"][0]["state"] == "revoked"
        # As after kill -9 between a registration and its note: found again, not registered twice.
        noted = nodes(real.server)
        (real.server / "state/nodes.json").unlink()
        until(lambda: nodes(real.server) == noted, 30, "the same nodes are noted again")
        real.stop("server")
        init.rotate(real.folder, days=-1)
        real.start("server")
        assert real.processes["server"].wait(90) == 2
        assert "expired" in real.said("server")


def _with_the_key_of(stranger: Deployment):  # type: ignore[no-untyped-def]
    def change(own: Path) -> None:
        (own / "key").write_bytes((stranger.folder / "clients/client-1/key").read_bytes())

    return change


def _with_the_ca_of(stranger: Deployment):  # type: ignore[no-untyped-def]
    def change(own: Path) -> None:
        (own / "ca.crt").write_bytes((stranger.server / "ca.crt").read_bytes())

    return change


@pytest.mark.slow
def test_a_client_meets_an_expired_certificate_and_plain_text(tmp_path: Path) -> None:
    """Before any protocol: a TLS server with an expired certificate, and one without TLS."""
    import http.server
    import threading

    real = Deployment(tmp_path / "real")
    init.rotate(real.folder, days=-1)
    for tls, said in ((True, "certificate has expired"), (False, "no TLS with the server")):
        server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(real.server / "server.pem", real.server / "server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = real.folder / "clients/client-1"
        settings = client_settings(own)
        address = f"localhost:{server.server_port}"
        dump(settings.model_copy(update={"server": address}), own / "client.toml")
        real.log("client-1").unlink(missing_ok=True)
        assert real.start("client-1").wait(60) == 2
        server.shutdown()
        server.server_close()
        assert said in real.said("client-1")
        assert "Traceback" not in real.said("client-1")


@pytest.mark.slow
def test_clients_with_their_own_files(tmp_path: Path) -> None:
    x, y = load_digits(return_X_y=True)
    x = (x * (255 / 16)).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    for i in range(2):
        mine = np.flatnonzero((y[:1400] % 2) == i)
        tests = {"x_test": x[1400:], "y_test": y[1400:]}
        np.savez(tmp_path / f"{i}.npz", x=x[mine], y=y[mine], **tests)
    scenario = rehearsal(2, partition={"name": "own", "clients": 2, "classes": 10})
    with deployment(tmp_path / "real") as real:
        real.start("server")
        real.start("client-1", "--data", str(tmp_path / "0.npz"))
        as_section = json.dumps({"name": "npz", "path": str(tmp_path / "1.npz")})
        real.start("client-2", "--data", as_section)
        run = real.submit(scenario)
        real.wait(run)
        assert (run.folder / "edgefd/seed-1/pool.safetensors").exists()
        assert not list(run.folder.rglob("ledger.jsonl")), "ledgers stay with their clients"
        for name in real.names:
            state = real.folder / "clients" / name / "state"
            assert (state / "secret").stat().st_mode & 0o077 == 0
            assert ledgers([state])[0]

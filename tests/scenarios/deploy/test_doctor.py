"""Doctor: each fault is found under its code, and each code has its section."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from scenarios.deploy import doctor, init
from scenarios.deploy.doctor import examine
from scenarios.deploy.folder import client_settings, dump
from scenarios.doctor import Finding


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    init.init(tmp_path / "lab", ["localhost"], port, ["a"])
    return tmp_path / "lab"


def wrong(findings: list[Finding]) -> set[str]:
    assert all(one.fix for one in findings if not one.ok)
    return {one.code for one in findings if not one.ok}


@contextmanager
def answering(folder: Path, *, tls: bool = True, off_s: float = 0) -> Iterator[None]:
    """Something that answers at the client's address, with the server's certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("date", format_datetime(datetime.now(UTC) - timedelta(seconds=off_s)))
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        own = folder / "clients/a"
        settings = client_settings(own)
        address = f"localhost:{server.server_port}"
        dump(settings.model_copy(update={"server": address}), own / "client.toml")
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "server/server.pem", folder / "server/server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_fresh_server_only_has_to_be_started(folder: Path) -> None:
    assert wrong(examine(folder / "server")) == {"D05"}


def test_files_that_others_read_and_names_and_dates(folder: Path, tmp_path: Path) -> None:
    (folder / "server/server.key").chmod(0o644)
    assert "D01" in wrong(examine(folder / "server"))
    init.rotate(folder, days=20)
    assert wrong(examine(folder / "server")) == {"D04", "D05"}
    text = (folder / "server/server.toml").read_text()
    (folder / "server/server.toml").write_text(text.replace('"127.0.0.1"', '"example.org"'))
    assert "D03" in wrong(examine(folder / "server"))
    init.init(tmp_path / "other", ["localhost"], 8100, ["a"])
    shutil.copy(tmp_path / "other/server/ca.crt", folder / "server/ca.crt")
    assert "D02" in wrong(examine(folder / "server"))


def test_a_client_without_a_server(folder: Path) -> None:
    (folder / "clients/a/key").chmod(0o640)
    assert wrong(examine(folder / "clients/a")) == {"D01", "D06"}


def test_a_client_and_what_answers_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(folder, tls=False):
        assert wrong(examine(folder / "clients/a")) == {"D07"}
    with answering(folder, off_s=300):
        assert "D11" in wrong(examine(folder / "clients/a"))
    monkeypatch.setattr(doctor, "is_loopback", lambda host: False)
    with answering(folder):
        assert "D08" in wrong(examine(folder / "clients/a")), "Control answers from outside"
    init.rotate(folder, days=-1)
    with answering(folder):
        assert wrong(examine(folder / "clients/a")) == {"D04"}


def test_every_code_has_a_section_and_every_section_a_code() -> None:
    source = Path(doctor.__file__).read_text()
    page = (Path(__file__).parents[3] / "docs/errors.md").read_text()
    assert set(re.findall(r'"(D\d\d)"', source)) == set(re.findall(r"^## (D\d\d):", page, re.M))

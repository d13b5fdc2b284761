"""A deployment's folders: what lies where, on the server's side and on each client's.

FOLDER/ca.key                      signs server certificates; needed by `init` and `rotate` only
FOLDER/server/server.toml          `ServerSettings`
             /ca.crt server.pem server.key executor.secret
             /nodes/NAME.pub       who may take part; /nodes/revoked/NAME.K.pub, who no longer may
             /state/nodes.json     node id -> seat, name and key, once keys are registered
             /state/runs/RUN/      one folder a run
FOLDER/clients/NAME/client.toml    `ClientSettings`
                    /ca.crt key key.pub state/
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import Field, ValidationError

from clients.consent import Consent
from clients.fleet import HEARTBEAT_S
from fedkd.data.sources import Source
from fedkd.errors import FedkdError
from fedkd.section import Section

SERVER, CLIENT = "server.toml", "client.toml"
S = TypeVar("S", bound=Section)


class ServerSettings(Section):
    """server.toml."""

    name: str
    hosts: tuple[str, ...] = Field(min_length=1)
    """Names and addresses under which clients reach the server; the certificate is for these."""
    port: int = Field(8100, ge=1, le=65534)
    """That clients reach."""
    link_port: int = Field(8100, ge=1, le=65535)
    """That the SuperLink listens at, on the loopback address only. Where it differs from `port`, a
    proxy stands between them, which lets nothing but the fleet's and the health paths through."""
    clients: tuple[str, ...] = Field(min_length=1)
    """Their names; the place in the list is the seat."""

    @property
    def link_address(self) -> str:
        """Of the SuperLink, seen from its own machine."""
        return f"127.0.0.1:{self.link_port}"

    def seat(self, name: str) -> int:
        """Raises: FedkdError for a name that is not in the deployment."""
        if name not in self.clients:
            raise FedkdError(
                "no such client in this deployment", value=name, allowed=", ".join(self.clients)
            )
        return self.clients.index(name)


class ClientSettings(Section):
    """client.toml."""

    name: str
    server: str
    """HOST:PORT."""
    seat: int = Field(ge=0)
    data: Source | None = None
    """The client's own data; without it, it takes its seat's part of the scenario's, which is a
    rehearsal with simulated data."""
    consent: Consent = Consent()
    heartbeat_s: int = Field(HEARTBEAT_S, ge=HEARTBEAT_S, le=3600)
    """A client counts as gone after two of these without a heartbeat. Each call costs the server
    some milliseconds: for hundreds of clients 30 is right."""


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("example.org")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_settings(folder: Path) -> ServerSettings:
    """Raises: FedkdError for a folder that is no server's, or settings that cannot be used."""
    return _load(folder, SERVER, ServerSettings, "FOLDER/server")


def client_settings(folder: Path) -> ClientSettings:
    """Raises: FedkdError for a folder that is no client's, or settings that cannot be used."""
    return _load(folder, CLIENT, ClientSettings, "FOLDER/clients/NAME")


def dump(settings: Section, path: Path) -> None:
    """Write settings as TOML; what is unset is left out."""
    table = settings.model_dump(mode="json", exclude_none=True)
    path.write_text(tomli_w.dumps(table), encoding="utf-8")


def nodes_file(folder: Path) -> Path:
    """Where the server notes who is registered."""
    return folder / "state/nodes.json"


def nodes(folder: Path) -> dict[int, dict[str, Any]]:
    """Who is registered: seat, name and key by node id; empty before the server ran."""
    try:
        table = json.loads(nodes_file(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {int(node): about for node, about in table.items()}


def runs(folder: Path) -> Path:
    """Where the server keeps its runs."""
    return folder / "state/runs"


def _load(folder: Path, file: str, kind: type[S], like: str) -> S:
    path = folder / file
    if not path.is_file():
        raise FedkdError(
            f"no {file} in this folder",
            value=str(folder),
            fix=f"give {like} of a deployment; make one with: fedkd deploy init FOLDER",
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise FedkdError(f"{path} is no TOML: {error}") from None
    return checked(kind, table, str(path), "edit that file")


def checked(kind: type[S], table: dict[str, Any], of: str, fix: str) -> S:
    """Settings of a table. Raises: FedkdError for the first thing that is wrong."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FedkdError(
            f"{of}: {where}: {first['msg']}", value=first.get("input"), fix=fix
        ) from None

"""Making a deployment's folder, and changing who may take part and what it is certified with."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from fedkd.errors import FedkdError
from fedkd.files import write
from scenarios.deploy import keys, templates
from scenarios.deploy.folder import (
    CLIENT,
    SERVER,
    ClientSettings,
    ServerSettings,
    checked,
    dump,
    is_loopback,
    server_settings,
)

ALWAYS = ("localhost", "127.0.0.1")
"""In every server's certificate: its own processes reach it there."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def init(
    folder: Path, hosts: Sequence[str], port: int, clients: Sequence[str], link_port: int = 0
) -> ServerSettings:
    """Make the folder; see `scenarios.deploy.folder` for what lies where.

    Args: hosts: under which clients reach the server; the first goes into their settings;
        link_port: of the SuperLink behind the proxy; 0 takes the port itself where all is on one
        machine, and else the next one.
    Raises: FedkdError for a folder that is there, or for names that cannot be used.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FedkdError(
            "this folder is in use already",
            value=str(folder),
            fix="choose another, or change that deployment with: fedkd deploy add, revoke, rotate",
        )
    for name in clients:
        if not NAME.fullmatch(name):
            raise FedkdError(
                "a client's name becomes the name of a folder and of a service",
                value=name,
                allowed="lower-case letters, digits and hyphens",
            )
    if len(set(clients)) < len(clients):
        raise FedkdError("two clients with one name", value=", ".join(clients))
    local = all(is_loopback(host) for host in hosts)
    settings = checked(
        ServerSettings,
        {
            "name": folder.resolve().name,
            "hosts": tuple(dict.fromkeys((*hosts, *ALWAYS))),
            "port": port,
            "link_port": link_port or (port if local else port + 1),
            "clients": tuple(clients),
        },
        "the deployment",
        "other options (fedkd deploy init --help)",
    )
    (folder / "server/nodes/revoked").mkdir(parents=True)
    (folder / "server/state/runs").mkdir(parents=True, mode=0o700)
    ca_key = keys.new_key()
    keys.write_pem(folder / "ca.key", ca_key)
    keys.write_certificate(folder / "server/ca.crt", keys.certify_ca(settings.name, ca_key))
    write(folder / "server/executor.secret", secrets.token_hex(32).encode(), 0o600)
    dump(settings, folder / "server" / SERVER)
    rotate(folder)
    templates.write_server(folder / "server", settings)
    for name in clients:
        _client(folder, settings, name)
    return settings


def add(folder: Path, name: str) -> None:
    """Another client at the end of the list. Raises: FedkdError for a name that cannot be used."""
    settings = server_settings(folder / "server")
    if name in settings.clients or not NAME.fullmatch(name):
        raise FedkdError("this name is taken, or cannot be one", value=name)
    settings = settings.model_copy(update={"clients": (*settings.clients, name)})
    dump(settings, folder / "server" / SERVER)
    _client(folder, settings, name)


def rotate(folder: Path, days: int = keys.SERVER_DAYS) -> None:
    """A new key and certificate for the server, for so many days; clients need nothing new."""
    settings = server_settings(folder / "server")
    key, ca_key = keys.new_key(), keys.read_pem(folder / "ca.key")
    ca = keys.read_certificate(folder / "server/ca.crt")
    keys.write_pem(folder / "server/server.key", key)
    keys.write_certificate(
        folder / "server/server.pem", keys.certify_server(settings.hosts, key, ca, ca_key, days)
    )


def rotate_client(folder: Path, name: str) -> None:
    """A new key pair for a client; its old one is revoked. Its data and its ledger stay."""
    settings = server_settings(folder / "server")
    settings.seat(name)
    old = folder / "server/nodes" / f"{name}.pub"
    if old.exists():
        os.replace(old, former(folder / "server", name))
    line = keys.write_node_key(folder / "clients" / name)
    write(folder / "server/nodes" / f"{name}.pub", line.encode(), 0o644)


def revoke(server: Path, name: str) -> Path:
    """Take a client's key off the list; a running server lets it go within seconds.

    Returns: where the key lies now. It is never taken again: `rotate_client` makes a new one.
    Raises: FedkdError for a client that is not on the list.
    """
    server_settings(server).seat(name)
    path = server / "nodes" / f"{name}.pub"
    if not path.exists():
        raise FedkdError("this client is revoked already", value=name)
    target = former(server, name)
    os.replace(path, target)
    return target


def former(server: Path, name: str) -> Path:
    """Where a client's key goes that is no longer allowed; what it has signed stays signed."""
    folder = server / "nodes/revoked"
    number = len(list(folder.glob(f"{name}.*.pub")))
    return folder / f"{name}.{number + 1}.pub"


def _client(folder: Path, settings: ServerSettings, name: str) -> None:
    own = folder / "clients" / name
    (own / "state").mkdir(parents=True, mode=0o700)
    line = keys.write_node_key(own)
    (folder / "server/nodes" / f"{name}.pub").write_text(line)
    (own / "ca.crt").write_bytes((folder / "server/ca.crt").read_bytes())
    client = ClientSettings(
        name=name, server=f"{settings.hosts[0]}:{settings.port}", seat=settings.seat(name)
    )
    dump(client, own / CLIENT)
    templates.write_client(own, settings, name)

"""`fedkd deploy client`: one client, on its own data, in its own folder."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from clients.app import app
from clients.fleet import Fleet
from clients.node import Node, Say, serve
from clients.signing import Signer
from fedkd.data.sources import Source, load
from fedkd.errors import FedkdError
from fedkd.files import locked
from scenarios.deploy.folder import ClientSettings, client_settings
from scenarios.deploy.keys import read_node_key

LOADER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def client(folder: Path, data: str | None, say: Say, stop: threading.Event) -> None:
    """Answer a server until `stop` is set.

    Args: data: in place of the settings' section data; see `source_of`.
    Raises: FedkdError for a folder or data that cannot be used, or a server that refuses.
    """
    folder = folder.resolve()
    settings = client_settings(folder)
    source = settings.data if data is None else source_of(data)
    if source is not None:
        load(source)  # a mistake is said now, before the server hears of this client
    state = folder / "state"
    with locked(state):
        key, ca = read_node_key(folder / "key"), (folder / "ca.crt").read_bytes()
        fleet = Fleet(settings.server, ca, key, settings.heartbeat_s)
        signer = Signer(key, settings.seat, state)
        node = Node(fleet, app, config_of(settings, source, state), state, signer)
        serve(node, say, stop, settings.heartbeat_s)


def config_of(
    settings: ClientSettings, source: Source | None, state: Path
) -> dict[str, str | int | float | bool]:
    """The node's config, as `clients.place` reads it."""
    config: dict[str, str | int | float | bool] = {
        "seat": settings.seat,
        "state": str(state),
        "consent": settings.consent.model_dump_json(),
    }
    if source is not None:
        config["data"] = json.dumps(source.model_dump(mode="json"))
    return config


def source_of(text: str) -> Source:
    """A data section from what a user types: a path, module:function, or JSON of such a section.

    Raises: FedkdError for what is neither.
    """
    if text.lstrip().startswith("{"):
        table = text
    elif LOADER.fullmatch(text):
        table = json.dumps({"name": "python", "path": text})
    else:
        path = Path(text).expanduser().resolve()
        if not path.exists():
            raise FedkdError("no such file or folder of data", value=text)
        table = json.dumps({"name": _kind(path), "path": str(path)})
    try:
        source: Source = TypeAdapter(Source).validate_json(table)
    except ValidationError as error:
        first = error.errors()[0]
        raise FedkdError(
            f"these data cannot be read: {first['msg']}",
            value=text,
            fix="give a file or folder, module:function, or JSON as a scenario's data section "
            "(see fedkd list)",
        ) from None
    return source


def _kind(path: Path) -> str:
    if path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npz"))):
        return "npz"
    if path.is_dir() and any(path.glob("*idx3-ubyte*")):
        return "idx"
    if path.is_dir() and any(path.glob("*.txt")):
        return "text"
    raise FedkdError(
        "what kind of data is this?",
        value=str(path),
        allowed="an .npz file or a folder of them, of IDX files or of .txt files",
        fix='say it: --data \'{"name": "huggingface", …}\' (see fedkd list)',
    )

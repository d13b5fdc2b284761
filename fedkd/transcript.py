"""Who said what to whom: statements that clients sign, in a file whose lines hang together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fedkd.errors import FedkdError

Entry = dict[str, Any]
SIGNED = "signed"
"""The record of a reply that holds its `model` and `signature`: one, since each costs two calls."""


class Statement(NamedTuple):
    """What a client says of one answer, bound to what it was asked; hashes are SHA-256 in hex.

    Metrics, which a client tells beside its answer, are not in it.
    """

    job: str
    seed: int
    round: int
    step: str
    """The message's type: query.hello, train, evaluate, …"""
    client: int
    scenario: str
    """Hash of the scenario as the message carries it, JSON."""
    pool: str
    """Hash of the proxy set, or nothing."""
    asked: str
    """Hash of the payload that the server sent; of nothing if there was none."""
    answered: str
    """Hash of the payload that the client sent."""
    model: str
    """`model_digest` of the model that answered, or nothing."""

    def to_bytes(self) -> bytes:
        """What is signed: JSON with sorted keys."""
        return json.dumps(self._asdict(), sort_keys=True).encode()


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def model_digest(weights: Mapping[str, Tensor]) -> str:
    """Hash of a model's tensors with their names, types and shapes, whatever their order."""
    found = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        found.update(values.numpy().tobytes())
    return found.hexdigest()


class Chain:
    """A file of JSON lines, only ever added to; each line holds the hash of the one before it."""

    def __init__(self, path: Path) -> None:
        """Go on with what is there; a last line that a crash has torn is dropped."""
        self._path = path
        self._head = ""
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                with path.open("r+b") as file:
                    file.truncate(len(whole))
            if whole:
                self._head = digest(whole.splitlines()[-1])

    def add(self, entry: Entry) -> None:
        """One more line."""
        line = json.dumps({**entry, "before": self._head}).encode()
        with self._path.open("ab") as file:
            file.write(line + b"\n")
        self._head = digest(line)


def read(path: Path) -> Iterator[Entry]:
    """The lines of a chain, without a last one that a crash has torn.

    Raises: FedkdError at the first that does not follow the one before.
    """
    before, data = "", path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(line)
            follows = entry.pop("before") == before
        except (ValueError, KeyError, AttributeError, TypeError):
            raise FedkdError(f"line {number} of {path.name} is no line of a chain") from None
        if not follows:
            raise FedkdError(
                f"line {number} of {path.name} does not follow the line before it: one of the two "
                "was changed, or lines were taken out, put in or exchanged"
            )
        before = digest(line)
        yield entry


def statement_of(entry: Entry) -> Statement:
    """The statement in a line. Raises: FedkdError for a line without one."""
    try:
        return Statement(**{name: entry[name] for name in Statement._fields})
    except KeyError as error:
        raise FedkdError(f"a line without {error}") from None

"""An append-only record of everything that left a client, kept by the client itself.

Each entry says what left, how many rows, who sees it, and under which guarantee:

* `proved`: privacy events that `privacy.totals` adds up, or a computation on what is already
  charged (`derived_from`), which costs nothing more;
* `empirical`: a heuristic, such as a temperature; no epsilon follows from it;
* `none`: it left as it was.

Nothing is sent without an entry: `seal` is the only way to what the client app can send, and it
asks for the receipt that `Ledger.record` returns.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from fedkd.errors import FedkdError
from fedkd.payload import Bytes
from fedkd.section import Section
from privacy.events import Event

What = Literal[
    "raw samples",
    "summary",
    "training",
    "accept mask",
    "sample weights",
    "soft labels",
    "label means",
    "weights",
]
SeenBy = Literal["no one", "sum only", "server", "server and all clients"]
"""`no one`: it cost privacy but stayed on the client, as training under DP-SGD does.
`sum only`: the server sees the sum over clients and no part of it."""


class Sensitivity(Section):
    """By how much the released value can move under the neighbouring relation of the events."""

    norm: Literal["l1", "l2", "linf"]
    bound: float = Field(ge=0)


def _reason(data: dict[str, Any]) -> str:
    return "no mechanism" if data.get("guarantee") == "none" else ""


class Release(Section):
    """One thing that left one client in one round, or that what left was made of."""

    client: int
    """A partition id; -1, in the server's own ledger, stands for any one client."""
    round: int
    what: What
    rows: int = Field(ge=0)
    seen_by: SeenBy
    guarantee: Literal["proved", "empirical", "none"] = "none"
    reason: str = Field(default_factory=_reason)
    """Which mechanism, or why there is no guarantee."""
    events: tuple[Event, ...] = ()
    derived_from: tuple[What, ...] = ()
    """Entries of this client that it is computed from, and from nothing else that is private."""
    sensitivity: Sensitivity | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.guarantee == "proved") != bool(self.events or self.derived_from):
            raise ValueError(
                "'proved' needs events or derived_from, and nothing else may have them"
            )
        if not self.reason and not self.events:
            raise ValueError("an entry without events needs a reason")
        if self.what in self.derived_from:
            raise ValueError("an entry cannot be derived from its own kind")
        return self

    def as_line(self) -> bytes:
        """The entry as one line of JSON; what has no value is left out."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


_KEY = object()


@dataclass(frozen=True)
class Receipt:
    """Proof that a release is in a ledger; only `Ledger.record` makes one."""

    release: Release
    key: object

    def __post_init__(self) -> None:
        if self.key is not _KEY:
            raise FedkdError("a receipt comes from Ledger.record only", fix="record the release")


class Sealed(NamedTuple):
    """Bytes that may leave: all that is private in them is recorded. Made by `seal`, `public`."""

    data: Bytes
    receipts: tuple[Receipt, ...]


def seal(data: Bytes, *receipts: Receipt, client: int, round_: int) -> Sealed:
    """What the client app may send: `data`, with the receipts of everything private in it.

    Raises: FedkdError without a receipt, or for one of another client, of another round, or of
        something that was recorded as seen by no one.
    """
    if not receipts:
        raise FedkdError("nothing leaves a client without an entry in its ledger")
    for receipt in receipts:
        entry = receipt.release
        if (entry.client, entry.round) != (client, round_) or entry.seen_by == "no one":
            raise FedkdError(
                "the receipt is for something else",
                value=(entry.client, entry.round, entry.seen_by),
                allowed=f"client {client}, round {round_}, seen by others",
            )
    return Sealed(data, receipts)


def public(data: Bytes) -> Sealed:
    """What the client app may send without an entry: bytes drawn without looking at its data."""
    return Sealed(data, ())


class _Known(NamedTuple):
    """A ledger file as this process last saw it."""

    stamp: tuple[int, int, int]  # inode, size, time of change in ns
    entries: dict[Release, None]


MOST_KNOWN = 100_000
"""Entries of all ledgers together that a process remembers, some 100 MB."""
_known: OrderedDict[Path, _Known] = OrderedDict()


class Ledger:
    """The releases of one client; in a file if `path` is given, else in memory.

    A release is recorded before it is sent, so one that may have left is always charged. A round
    that is repeated after a crash sends the same bits again: recording that twice adds nothing.

    A file that did not change since this process last saw it is not read again, so opening the
    ledger for every message costs one `stat`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries: dict[Release, None] = {}
        self._refresh()

    def record(self, release: Release) -> Receipt:
        """Append one release, on disk before this returns.

        Raises: FedkdError if it claims to be derived from something that was never recorded.
        """
        self._refresh()
        if release not in self._entries:
            missing = set(release.derived_from) - {entry.what for entry in self._entries}
            if missing:
                raise FedkdError(
                    "a release is derived from what the ledger has no entry of",
                    value=", ".join(sorted(missing)),
                    fix="record that first",
                )
            if self._path is not None:
                with self._path.open("ab") as file:
                    file.write(release.as_line())
                    file.flush()
                    os.fsync(file.fileno())
            self._entries[release] = None
            self._remember()
        return Receipt(release, _KEY)

    def entries(self) -> tuple[Release, ...]:
        """All releases, oldest first."""
        return tuple(self._entries)

    def __contains__(self, release: Release) -> bool:
        return release in self._entries

    def _refresh(self) -> None:
        """Read the file unless it is as this process last saw it."""
        if self._path is None or not self._path.exists():
            return
        known = _known.get(self._path)
        if known is not None and known.stamp == _stamp(self._path):
            self._entries = known.entries
        else:
            self._entries = _read(self._path)
        self._remember()

    def _remember(self) -> None:
        if self._path is None:
            return
        _known[self._path] = _Known(_stamp(self._path), self._entries)
        _known.move_to_end(self._path)
        while len(_known) > 1 and sum(len(known.entries) for known in _known.values()) > MOST_KNOWN:
            _known.popitem(last=False)


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def look(path: Path) -> tuple[Release, ...]:
    """The entries of a ledger's file so far, for a reader: nothing is written or remembered."""
    data = path.read_bytes()
    return tuple(_entries(path, data[: data.rfind(b"\n") + 1]))


def _read(path: Path) -> dict[Release, None]:
    """The entries of a file; a last line that a crash has torn is cut off."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    entries = _entries(path, whole)
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return entries


def _entries(path: Path, whole: bytes) -> dict[Release, None]:
    entries: dict[Release, None] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            entries[Release.model_validate_json(line)] = None
        except ValidationError as error:
            raise FedkdError(
                f"line {number} of the ledger {path} is no entry",
                value=line.decode(errors="replace")[:200],
                fix=f"put back the line as it was ({error.errors()[0]['msg']}); without it, what "
                "was spent is not known",
            ) from None
    return entries

"""The recording of a run: what its server heard and accepted, and what it told, on disk.

    pool.safetensors         the proxy set as it was sent, with who gave each record
    answers-NNNNN.parquet    round, client, sample, values [classes]: soft labels, by client; then
                             the round's consensus, of client SERVER
    sum-NNNNN.parquet        the same with values [classes + 1], of client SERVER: under secure
                             aggregation, the sum of the answers and how many there are of each
                             sample. There, no answer of one client exists
    weights-NNNNN.parquet    round, client, records, values [size]: of FedAvg, what the round
                             starts from (client START), the clients' weights, their average
                             (SERVER); `records` is how many taught them

`sample` is a proxy id: of texts, that of a position. Sparse answers are recorded as the dense rows
that they decode to. Each client's rows are row groups of their own, and the footer says which, so
one client can be read without the others. Compressed with zstd; float32 as it was sent, except
that sums are rounded to it.

A round is there as a whole or not at all: files are written under another name, synced, renamed.
An entry of a ledger belongs to an upload if client, round and `Recording.what` are the same.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from fedkd import payload
from fedkd.errors import FedkdError
from privacy.ledger import What

SERVER = -1
"""The client of what the server told."""
START = -2
"""The client of the weights that a round starts from."""
POOL = "pool.safetensors"
KEPT = 8
"""Answers that a reader keeps in memory."""

Kind = Literal["answers", "sum", "weights"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NAME = re.compile(rf"(?P<kind>{'|'.join(KINDS)})-(?P<round>\d+)\.parquet")
FOOTER = "fedkd"
Values = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Rows = tuple[NDArray[np.int32], Values]


class About(NamedTuple):
    """What each file says of its run."""

    what: What
    """What a ledger calls the clients' uploads."""
    n_samples: int
    """Of the proxy set; 0 without one."""
    n_classes: int
    positions: int
    """Samples that a proxy record is: 1 image, or L tokens."""


class Writer:
    """One round of a recording, written as it is heard; nobody sees it before `commit`."""

    def __init__(self, folder: Path, round_: int, about: About) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._round = round_
        self._about = about
        self._parts: dict[Kind, _Part] = {}

    def add(self, kind: Kind, client: int, ids: NDArray[np.int32], values: Floats) -> None:
        """Append rows of one client.

        Shapes: ids [m]: proxy ids, or of weights the number of records; values [m, width], the
        same width for all of a kind.
        """
        if kind not in self._parts:
            self._parts[kind] = _Part(self._folder, kind, self._round, values.shape[1])
        self._parts[kind].add(client, ids, values)

    @property
    def n_bytes(self) -> int:
        """On disk so far."""
        return sum(part.file.tell() for part in self._parts.values())

    def close(self, clients: Iterable[int] = ()) -> int:
        """Write what is still missing; returns the round's size in bytes.

        Args: clients: whose answers are in a sum.
        """
        for part in self._parts.values():
            part.close({**self._about._asdict(), "summed": sorted(clients)})
        return sum(part.path.stat().st_size for part in self._parts.values())

    def commit(self) -> None:
        """Make a closed round part of the recording; `answers` or `weights` last, they count."""
        for kind in sorted(self._parts, key=lambda kind: kind != "sum"):
            self._parts[kind].path.rename(_path(self._folder, kind, self._round))
        _sync(self._folder)

    def discard(self) -> None:
        """Forget the round."""
        for part in self._parts.values():
            part.writer.close()  # else it would write to the file when it is collected
            part.file.close()
            part.path.unlink()


class _Part:
    """One file of a round, under a name that no reader looks at."""

    def __init__(self, folder: Path, kind: Kind, round_: int, width: int) -> None:
        self.path = folder / f"part-{kind}-{round_:05d}"
        self.file: BinaryIO = self.path.open("wb")
        self._round = round_
        self._groups: list[int] = []
        ids = "records" if kind == "weights" else "sample"
        self._row = pa.list_(pa.field("element", pa.float32(), nullable=False), width)
        types = {"round": pa.int32(), "client": pa.int32(), ids: pa.int32(), "values": self._row}
        self._schema = pa.schema([pa.field(*column, nullable=False) for column in types.items()])
        self.writer = parquet.ParquetWriter(
            self.file, self._schema, compression="zstd", use_dictionary=False
        )

    def add(self, client: int, ids: NDArray[np.int32], values: Floats) -> None:
        """Write one row group, of no rows too."""
        numbers = [np.full(len(ids), number, np.int32) for number in (self._round, client)]
        flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
        rows = pa.FixedSizeListArray.from_arrays(flat, type=self._row)
        table = pa.table([*numbers, ids, rows], schema=self._schema)
        self.writer.write_table(table, row_group_size=max(1, len(ids)))
        self._groups.append(client)

    def close(self, about: dict[str, Any]) -> None:
        """Write the footer, and force it to the disk."""
        about = {**about, "round": self._round, "groups": self._groups}
        self.writer.add_key_value_metadata({FOOTER: json.dumps(about)})
        self.writer.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def keep_pool(folder: Path, packed: payload.Bytes) -> None:
    """Write the proxy set as it was sent."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part-{POOL}"
    with part.open("wb") as file:
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())
    part.rename(folder / POOL)
    _sync(folder)


def cut(folder: Path, round_: int) -> None:
    """Drop what was written after a round, and what a crash has left of files."""
    for path in folder.glob("*"):
        found = NAME.match(path.name)
        if path.name.startswith("part-") or (found and int(found["round"]) > round_):
            path.unlink()


def recorded(folder: Path) -> list[int]:
    """The rounds that are there, ascending."""
    names = [NAME.match(path.name) for path in folder.glob("*.parquet")]
    return sorted(int(name["round"]) for name in names if name and name["kind"] != "sum")


def n_bytes(folder: Path) -> int:
    """What a recording takes on disk."""
    return sum(path.stat().st_size for path in folder.glob("*"))


def _path(folder: Path, kind: Kind, round_: int) -> Path:
    return folder / f"{kind}-{round_:05d}.parquet"


def _sync(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


@dataclass(frozen=True)
class _Footer:
    """What the footer of one file says."""

    about: About
    groups: tuple[int, ...]
    """The client of each row group."""
    summed: tuple[int, ...]


class Recording:
    """Reads a recording, also of a run that goes on: the rounds that were there when it was opened.

    Footers are read at once, rows when they are asked for, one client of one round at a time; the
    last `KEPT` of them are kept. The arrays are shared, and read-only.
    """

    def __init__(self, folder: Path, footers: dict[tuple[Kind, int], _Footer]) -> None:
        self._folder = folder
        self._footers = footers
        self._about = next(iter(footers.values())).about
        self._part = lru_cache(maxsize=KEPT)(self._read)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open the folder `uploads` of a cell.

        Raises: FedkdError where nothing is recorded, or for a file that cannot be read.
        """
        folder = Path(folder)
        paths = {(kind, r): _path(folder, kind, r) for r in recorded(folder) for kind in KINDS}
        if not paths:
            raise FedkdError(
                "no round is recorded here",
                value=str(folder),
                fix="run with audit = true, and give the folder uploads of a row and seed",
            )
        return cls(folder, {at: _footer(path) for at, path in paths.items() if path.exists()})

    @property
    def rounds(self) -> tuple[int, ...]:
        """From 1 on without a gap; rounds that did not fit into `audit_mb` are missing."""
        return tuple(sorted({round_ for _, round_ in self._footers}))

    @property
    def what(self) -> What:
        """What the ledgers call an upload: their entries have the same client and round."""
        return self._about.what

    @property
    def n_samples(self) -> int:
        """Samples of the proxy set; 0 without one."""
        return self._about.n_samples

    @property
    def n_classes(self) -> int:
        """Classes of a soft label."""
        return self._about.n_classes

    @property
    def positions(self) -> int:
        """Samples that a proxy record is: 1 image, or L tokens; sample l of record r is r L + l."""
        return self._about.positions

    @property
    def clients(self) -> tuple[int, ...]:
        """Clients that were heard in any round, ascending; none where only sums are known."""
        return tuple(sorted({client for round_ in self.rounds for client in self.heard(round_)}))

    def heard(self, round_: int) -> tuple[int, ...]:
        """Clients that were heard in a round, ascending."""
        return tuple(sorted({c for kind in KINDS for c in self._groups(kind, round_) if c >= 0}))

    def answer(self, round_: int, client: int) -> Rows | None:
        """What one client answered: ids int32 [m], ascending, and values float32 [m, classes].

        None if it was not heard: it did not take part, failed, abstained, was refused, or answered
        into a sum.
        """
        return self._part("answers", round_, client)

    def consensus(self, round_: int) -> Rows | None:
        """What all were told, as `answer`; of no samples where nothing was."""
        return self._part("answers", round_, SERVER)

    def sum(self, round_: int) -> Rows | None:
        """What secure aggregation showed the server: ids int32 [m] and float32 [m, classes + 1].

        The last column counts who answered a sample; with noise, all of it is noisy. None without
        secure aggregation, or if the sum was lost.
        """
        return self._part("sum", round_, SERVER)

    def summed(self, round_: int) -> tuple[int, ...]:
        """Clients whose answers are in the sum of a round."""
        footer = self._footers.get(("sum", round_))
        return () if footer is None else footer.summed

    def weights(self, round_: int, client: int) -> Values | None:
        """FedAvg's weights, float32 [size]: of a client, of the SERVER, or of the round's START."""
        found = self._part("weights", round_, client)
        return None if found is None else found[1][0]

    def n_records(self, round_: int, client: int) -> int | None:
        """How many records taught a client its weights."""
        found = self._part("weights", round_, client)
        return None if found is None else int(found[0][0])

    def pool(self) -> payload.Pool | None:
        """The proxy set, and which client gave each record; None where there is none."""
        path = self._folder / POOL
        return payload.decode_pool(path.read_bytes()) if path.exists() else None

    def _groups(self, kind: Kind, round_: int) -> tuple[int, ...]:
        footer = self._footers.get((kind, round_))
        return () if footer is None else footer.groups

    def _read(self, kind: Kind, round_: int, client: int) -> Rows | None:
        groups = [i for i, c in enumerate(self._groups(kind, round_)) if c == client]
        if not groups:
            return None
        with parquet.ParquetFile(_path(self._folder, kind, round_)) as file:
            table = file.read_row_groups(groups).combine_chunks()
        ids, values = (table.column(i).combine_chunks() for i in (2, 3))
        width = values.type.list_size
        rows = ids.to_numpy(), values.flatten().to_numpy().reshape(-1, width)
        for array in rows:
            array.setflags(write=False)
        return rows


def _footer(path: Path) -> _Footer:
    try:
        with parquet.ParquetFile(path) as file:
            found = json.loads(file.metadata.metadata[FOOTER.encode()])
    except (OSError, ValueError, KeyError) as error:
        raise FedkdError(
            f"cannot read the recording {path}: {error}",
            fix="delete that file and those of later rounds; the rounds before can be audited",
        ) from None
    about = About(**{name: found[name] for name in About._fields})
    return _Footer(about, tuple(found["groups"]), tuple(found["summed"]))

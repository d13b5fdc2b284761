"""The server's state after a round, on disk: safetensors + JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedkd.errors import FedkdError

KEEP = 2


class Checkpoint(NamedTuple):
    """`note` holds what JSON can hold, `arrays` the rest."""

    round: int
    note: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/round-NNNNN/` by a rename, then forget all but the newest `KEEP`."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"round-{checkpoint.round:05d}"
    part = folder / f"part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
    save_file(arrays, part / "arrays.safetensors")
    (part / "note.json").write_text(json.dumps(checkpoint.note), encoding="utf-8")
    for path in part.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for old in _rounds(folder)[:-KEEP]:
        shutil.rmtree(old)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None. Raises: FedkdError for one that cannot be read."""
    rounds = _rounds(folder)
    if not rounds:
        return None
    try:
        note = json.loads((rounds[-1] / "note.json").read_text(encoding="utf-8"))
        arrays = load_file(rounds[-1] / "arrays.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise FedkdError(
            f"cannot read the checkpoint {rounds[-1]}: {error}",
            fix="delete that folder; the run goes on from the one before",
        ) from None
    return Checkpoint(int(rounds[-1].name[6:]), note, arrays)


def _rounds(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*"), key=lambda path: int(path.name[6:]))

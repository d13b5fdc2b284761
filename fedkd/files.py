"""Files that survive kill -9: written whole or not at all; folders that one process works in."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedkd.errors import FedkdError


def write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace a file in one step: the old or the new is there, never a part, and on the disk.

    Its folder is made.

    Args: mode: who may read it, from its first byte on; the umask takes off what it takes off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    made = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(made, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


INSTANT_S = 0.5


def is_locked(folder: Path, name: str = "lock") -> bool:
    """Whether a process works in a folder now. It holds the lock for an instant itself."""
    path = folder / name
    if not path.exists():
        return False
    with path.open("w") as file:
        return not _taken(file)


@contextmanager
def locked(folder: Path, name: str = "lock") -> Iterator[None]:
    """Keep a second process out of a folder; the lock goes with the process.

    Waits out who only looks (`is_locked`).

    Args: name: of what is locked; an audit's keeps out other audits, and not the run.
    Raises: FedkdError where another process has it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FedkdError(f"cannot make this folder: {error.strerror}", value=str(folder)) from None
    deadline = time.monotonic() + INSTANT_S
    with (folder / name).open("w") as file:
        while not _taken(file):
            if time.monotonic() > deadline:
                raise FedkdError(
                    "another process is working in this folder", value=os.fspath(folder)
                )
            time.sleep(INSTANT_S / 50)
        yield


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

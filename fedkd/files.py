"""Files that survive kill -9: written whole or not at all; folders that one process works in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedkd.errors import FedkdError


def write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace a file in one step: the old or the new is there, never a part, and on the disk.

    Args: mode: who may read it, from its first byte on; the umask takes off what it takes off.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    made = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(made, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def is_locked(folder: Path, name: str = "lock") -> bool:
    """Whether a process works in a folder now."""
    try:
        with locked(folder, name):
            return False
    except FedkdError:
        return True


@contextmanager
def locked(folder: Path, name: str = "lock") -> Iterator[None]:
    """Keep a second process out of a folder; the lock goes with the process.

    Args: name: of what is locked; an audit's keeps out other audits, and not the run.
    Raises: FedkdError where another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FedkdError(
                "another process is working in this folder", value=os.fspath(folder)
            ) from None
        yield

"""The event log: one JSON object a line, appended; a resumed run cuts it at its checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]


class EventLog:
    """Keeps events in `path`, or only tells them to the listener if there is none."""

    def __init__(self, path: Path | None, listener: Listener | None = None) -> None:
        self._path = path
        self._listener = listener

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event and tell it."""
        record: Event = {"event": event, **fields}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._listener is not None:
            self._listener(record)

    def size(self) -> int:
        """Bytes written so far; what a checkpoint remembers."""
        return self._path.stat().st_size if self._path is not None and self._path.exists() else 0

    def sync(self) -> None:
        """Force what was written to the disk; done before a checkpoint that counts on it."""
        if self._path is not None and self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, size: int) -> None:
        """Drop what was written after a checkpoint, and tell the listener what remains."""
        if self._path is None or not self._path.exists():
            return
        with self._path.open("r+b") as file:
            file.truncate(size)
        if self._listener is not None:
            for event in read(self._path):
                self._listener(event)


def read(path: Path) -> Iterable[Event]:
    """The events of a log, oldest first; a last line torn by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)

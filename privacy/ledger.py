"""An append-only record of everything that left a client, kept by the client itself.

Each entry says what left, how many rows, who sees it, and under which guarantee. Without a
mechanism the guarantee is "none": no epsilon is printed, because there is none.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

What = Literal["raw samples", "soft labels", "weights"]


@dataclass(frozen=True, kw_only=True)
class Release:
    """One thing that left one client in one round."""

    client: int
    round: int
    what: What
    rows: int
    seen_by: Literal["server", "server and all clients"]
    guarantee: Literal["none"] = "none"


class Ledger:
    """The releases of one client; in a file if `path` is given, else in memory.

    A release is recorded before it is sent, so one that may have left is always charged. A round
    that is repeated after a crash sends the same bits again: recording that twice adds nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries: list[Release] = []
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a crash may tear the last one
            self._entries = [Release(**json.loads(line)) for line in whole]
            if len(whole) < len(lines):
                os.truncate(path, len("".join(whole).encode()))

    def record(self, release: Release) -> None:
        """Append one release, on disk before this returns."""
        if release in self._entries:
            return
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(release)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._entries.append(release)

    def entries(self) -> tuple[Release, ...]:
        """All releases, oldest first."""
        return tuple(self._entries)

"""What an exchange hears and tells, kept for audits (`privacy.audit.recording`), up to a bound."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedkd import payload
from privacy.audit import recording
from privacy.audit.recording import About, Floats, Kind


class Recorder:
    """Records each round in `folder` until one would take more than there is room for.

    That round is dropped, and no later one is recorded, so what is there has no gap. Without a
    folder nothing is recorded. An exchange says `start`, then `add` for all it hears and tells.
    """

    def __init__(self, folder: Path | None, most_bytes: int) -> None:
        self._folder = folder
        self._most = most_bytes
        self._room = 0
        self._writer: recording.Writer | None = None
        self._summed: list[int] = []
        self._dropped = False

    def cut(self, round_: int) -> None:
        """Forget what was recorded after a checkpoint."""
        if self._folder is not None:
            recording.cut(self._folder, round_)

    def pool(self, packed: payload.Bytes) -> None:
        """Keep the proxy set as it was sent, if there is room."""
        if self._folder is not None and len(packed) <= self._most:
            recording.keep_pool(self._folder, packed)

    def start(self, round_: int, about: About) -> None:
        """A round begins."""
        self._dropped = False
        self._summed = []
        if self._folder is not None and recording.recorded(self._folder) == list(range(1, round_)):
            self._room = self._most - recording.n_bytes(self._folder)
            self._writer = recording.Writer(self._folder, round_, about)

    def add(self, kind: Kind, client: int, ids: NDArray[np.int32], values: Floats) -> None:
        """Rows of one client, or of the server: see `recording.Writer.add`."""
        if self._writer is not None:
            self._writer.add(kind, client, ids, values)
            if self._writer.n_bytes > self._room:
                self._drop()

    def summed(self, clients: Iterable[int]) -> None:
        """Whose answers are in the sum of this round."""
        self._summed = list(clients)

    def finish(self) -> bool:
        """The round is over, and on disk. Returns: whether it was dropped, true once a run."""
        if self._writer is not None:
            if self._writer.close(self._summed) > self._room:
                self._drop()
            else:
                self._writer.commit()
                self._writer = None
        return self._dropped

    def close(self) -> None:
        """Forget a round that was not finished."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _drop(self) -> None:
        self.close()
        self._dropped = True

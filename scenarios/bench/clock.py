"""When an engine's first round began and how long each took: what it reports."""

from __future__ import annotations

import time
from typing import Any


class Clock:
    """Told of rounds by ticks, before the first and after each, or by how long each `took`."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._last = 0.0
        self._seconds: list[float] = []

    def tick(self) -> None:
        """Before the first round and after each."""
        now = time.perf_counter()
        if self._began is None:
            self._began = time.time()
        else:
            self._seconds.append(now - self._last)
        self._last = now

    def took(self, seconds: float) -> None:
        """Just after a round that took so long."""
        if self._began is None:
            self._began = time.time() - seconds
        self._seconds.append(seconds)

    def report(self, n: int) -> dict[str, Any]:
        """What `scenarios.bench.runs` reads; `n` clients took part in each round."""
        return {"n": n, "began": self._began, "seconds": self._seconds}

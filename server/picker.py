"""The server's draw of the pool: which records a round is about, and what it remembers for that."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
import torch
from numpy.typing import NDArray

from fedkd import payload
from fedkd.errors import PayloadError
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.selection import All
from fedkd.rng import stream
from server.hearing import Sizes
from server.job import Job

KEPT = "asked."
"""Of what it remembers in a checkpoint."""


class Picker:
    """What is asked in each round; all of the pool, if the method says no more."""

    def __init__(self, job: Job, sizes: Sizes) -> None:
        self._method, self._seed = job.scenario.method, job.seed
        self._positions = sizes.positions
        n = sizes.n_samples // sizes.positions
        self._entropy = np.full(n, np.inf)
        self._likeliest = np.full(n, -1, np.int64)
        self._asked: dict[int, NDArray[np.bool_]] = {}
        """Of this round and the one before, whose answers may come late: [records]."""

    def ask(self, round_: int) -> payload.Bytes | None:
        """The question of a round, the same if it is asked again; None where all is asked."""
        row = self._method.select
        if isinstance(row, All):
            return None
        n = len(self._entropy)
        if round_ not in self._asked:
            draws = stream(self._seed, "server", round_, purpose="select")
            asked = np.zeros(n, bool)
            asked[row.order(self._entropy, self._likeliest, draws)[: row.size(n)]] = True
            last = {r: mask for r, mask in self._asked.items() if r == round_ - 1}
            self._asked = {**last, round_: asked}
        return payload.encode_selection(np.flatnonzero(self._asked[round_]), n, round_)

    def check(self, round_: int, ids: NDArray[np.int32]) -> None:
        """Raises: PayloadError for samples that the round is not about."""
        asked = self._asked.get(round_)
        if asked is not None and not asked[ids // self._positions].all():
            raise PayloadError("an answer about a sample that was not asked")

    def learn(self, consensus: Consensus) -> None:
        """Remember how sure what was told is, and of what."""
        if isinstance(self._method.select, All) or not len(consensus.ids):
            return
        sure = self._method.release.target(torch.from_numpy(consensus.values)).numpy()
        nats = scipy.special.entr(np.clip(sure.astype(np.float64), 0, None)).sum(axis=1)
        records, place = np.unique(consensus.ids // self._positions, return_inverse=True)
        self._entropy[records] = np.bincount(place, nats) / np.bincount(place)
        if self._positions == 1:
            self._likeliest[records] = consensus.values.argmax(axis=1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it remembers, for a checkpoint."""
        if isinstance(self._method.select, All):
            return {}
        return {KEPT + "entropy": self._entropy, KEPT + "likeliest": self._likeliest}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take it back."""
        if KEPT + "entropy" in arrays:
            self._entropy = arrays[KEPT + "entropy"].copy()
            self._likeliest = arrays[KEPT + "likeliest"].copy()

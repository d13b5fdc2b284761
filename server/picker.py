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
        self._told_in = np.zeros(n, np.int64)
        """[records] the last round in which something was told of it; 0: never."""
        self._asked: dict[int, NDArray[np.bool_]] = {}
        """Of this round and the one before, whose answers may come late: [records]."""
        self._drawn: tuple[int, NDArray[np.int64]] = (0, np.empty(0, np.int64))
        """The last round that was asked about, and its draw, ascending."""

    def ask(self, round_: int) -> payload.Bytes | None:
        """The question of a round, the same if it is asked again; None where all is asked."""
        row = self._method.select
        if isinstance(row, All):
            return None
        n = len(self._entropy)
        if round_ not in self._asked:
            draws = stream(self._seed, "server", round_, purpose="select")
            drawn = np.sort(row.order(self._entropy, self._likeliest, draws)[: row.size(n)])
            asked = np.zeros(n, bool)
            asked[drawn] = ~row.fresh(self._told_in[drawn], round_)
            last = {r: mask for r, mask in self._asked.items() if r == round_ - 1}
            self._asked, self._drawn = {**last, round_: asked}, (round_, drawn)
        masks = np.flatnonzero(self._asked[round_]), self._drawn[1]
        question = payload.Question(*(ids.astype(np.int32) for ids in masks))
        return payload.encode_selection(question, n, round_)

    @property
    def recalls(self) -> bool:
        """Whether some of the draw is learnt from what clients have kept."""
        round_, drawn = self._drawn
        return round_ in self._asked and len(drawn) > self._asked[round_].sum()

    def check(self, round_: int, ids: NDArray[np.int32]) -> None:
        """Raises: PayloadError for samples that the round is not about."""
        asked = self._asked.get(round_)
        if asked is not None and not asked[ids // self._positions].all():
            raise PayloadError("an answer about a sample that was not asked")

    def learn(self, round_: int, consensus: Consensus) -> None:
        """Remember how sure what was told in a round is, and of what."""
        if isinstance(self._method.select, All) or not len(consensus.ids):
            return
        sure = self._method.release.target(torch.from_numpy(consensus.values)).numpy()
        nats = scipy.special.entr(np.clip(sure.astype(np.float64), 0, None)).sum(axis=1)
        records, place = np.unique(consensus.ids // self._positions, return_inverse=True)
        self._told_in[records] = round_
        self._entropy[records] = np.bincount(place, nats) / np.bincount(place)
        if self._positions == 1:
            self._likeliest[records] = consensus.values.argmax(axis=1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it remembers, for a checkpoint."""
        if isinstance(self._method.select, All):
            return {}
        kept = {"entropy": self._entropy, "likeliest": self._likeliest, "told_in": self._told_in}
        return {KEPT + key: array for key, array in kept.items()}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take it back."""
        if KEPT + "entropy" in arrays:
            self._entropy = arrays[KEPT + "entropy"].copy()
            self._likeliest = arrays[KEPT + "likeliest"].copy()
            self._told_in = arrays[KEPT + "told_in"].copy()

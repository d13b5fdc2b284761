"""Stage 4, combine: what the clients say together.

Streaming: the server holds O(samples x classes), whatever the number of clients. Every answer is
rounded to a multiple of 2^-30, far below float32's own precision of a probability. Sums of such
numbers are exact in float64 up to 2^23, so a sum has the same bits in any order and grouping.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.section import Section, table

GRID = 2.0**30
"""Steps in one: sums are kept as whole numbers of steps."""


def steps(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each value as the nearest whole number of steps of 1 / `GRID`; exact, also in float32."""
    scaled = values * np.float32(GRID)
    np.rint(scaled, out=scaled)
    return scaled


class Consensus(NamedTuple):
    """What the clients say together about the samples that at least one of them answered."""

    ids: NDArray[np.int32]  # [kept], ascending proxy ids
    values: NDArray[np.float32]  # [kept, classes]


class Votes(NamedTuple):
    """The running sum over clients; `Mean.start` makes it, `Mean.add` fills it in place."""

    total: NDArray[np.float64]  # [samples, classes], in steps of 1 / GRID
    voters: NDArray[np.int32]  # [samples]


class Mean(Section):
    """The mean of the answers to each sample; a sample without a voter is dropped."""

    name: Literal["mean"] = "mean"

    def start(self, n_samples: int, n_classes: int) -> Votes:
        """No votes yet: zeros [samples, classes] and [samples]."""
        return Votes(np.zeros((n_samples, n_classes)), np.zeros(n_samples, np.int32))

    def add(self, votes: Votes, ids: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Add one client's answers: `ids` [m] unique, `values` [m, classes]."""
        rows = _places(ids)
        votes.total[rows] += steps(values)
        votes.voters[rows] += 1

    def merge(self, votes: Votes, ids: NDArray[np.int32], more: Votes) -> None:
        """Add votes that were counted elsewhere: `ids` [m] ascending, `more` of those samples."""
        rows = _places(ids)
        votes.total[rows] += more.total
        votes.voters[rows] += more.voters

    def finish(self, votes: Votes) -> Consensus:
        """Divide each kept sample by its number of voters."""
        ids = np.flatnonzero(votes.voters).astype(np.int32)
        mean = votes.total[ids] / (votes.voters[ids, None] * GRID)
        return Consensus(ids, mean.astype(np.float32))


def _places(ids: NDArray[np.int32]) -> slice | NDArray[np.int32]:
    # Most answers are to one run of samples, and a slice costs a fifth of what an index does.
    run = len(ids) > 0 and ids[-1] - ids[0] + 1 == len(ids)
    return slice(ids[0], ids[-1] + 1) if run else ids


Combine = Annotated[Mean, Field()]
COMBINES = table(Mean)


class WeightAverage:
    """FedAvg's mean of weight vectors, each weighted by its client's samples.

    Source: McMahan et al., AISTATS 2017, Algorithm 1. Streaming, in float64 and partition order.
    """

    def __init__(self) -> None:
        self._total: NDArray[np.float64] | None = None
        self._samples = 0

    def add(self, weights: NDArray[np.float32], n_samples: int) -> None:
        """Add one client's weights [size]."""
        part = weights.astype(np.float64) * n_samples
        self._total = part if self._total is None else self._total + part
        self._samples += n_samples

    def finish(self) -> NDArray[np.float32] | None:
        """The mean [size], or None if no client with samples answered."""
        if self._total is None or self._samples == 0:
            return None
        return (self._total / self._samples).astype(np.float32)

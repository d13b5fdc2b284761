"""Stage 4, combine: what the clients say together; the table of rules.

Rules of the mean are here and streaming: the server holds O(samples x classes), whatever the number
of clients. Every answer is rounded to a multiple of 2^-30, far below float32's own precision of a
probability. Sums of such numbers are exact in float64 up to 2^23, so a sum has the same bits in any
order and grouping. Rules that need every vote are in `every_vote` and `weighed`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.exchange.consensus import Consensus, normalised, places
from fedkd.exchange.every_vote import (
    Cronus,
    GeometricMedian,
    Median,
    Spectral,
    TrimmedMean,
)
from fedkd.exchange.weighed import LEAST, Agreement, ExpGuard, Vouched
from fedkd.section import Section, table

GRID = 2.0**30
"""Steps in one: sums are kept as whole numbers of steps."""


def steps(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each value as the nearest whole number of steps of 1 / `GRID`; exact, also in float32."""
    scaled = values * np.float32(GRID)
    np.rint(scaled, out=scaled)
    return scaled


class Votes(NamedTuple):
    """The running sum over clients; `Mean.start` makes it, `Mean.add` fills it in place."""

    total: NDArray[np.float64]  # [samples, classes], in steps of 1 / GRID
    voters: NDArray[np.int32]  # [samples]


class Weighed(NamedTuple):
    """The running weighted sum; `Summed.start_weighed` makes it, `add_weighed` fills it in place.

    In float64 as it comes, so clients must come in the same order for the same bits.
    """

    total: NDArray[np.float64]  # [samples, classes]
    mass: NDArray[np.float64]  # [samples]
    labels: NDArray[np.int64] | None = None  # [samples], for a rule that is told them


class Summed(Section):
    """What the rules of the mean have in common; a sample without a voter is dropped."""

    name: str
    simplex: ClassVar[bool] = False
    """Whether the answers must be distributions."""
    weighs: ClassVar[bool] = False
    """Whether the rule itself gives each answer a weight."""
    told_labels: ClassVar[bool] = False
    """Whether it must know the proxy set's true labels."""

    def start(self, n_samples: int, n_classes: int) -> Votes:
        """No votes yet: zeros [samples, classes] and [samples]."""
        return Votes(np.zeros((n_samples, n_classes)), np.zeros(n_samples, np.int32))

    def add(self, votes: Votes, ids: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Add one client's answers: `ids` [m] unique, `values` [m, classes]."""
        rows = places(ids)
        votes.total[rows] += steps(values)
        votes.voters[rows] += 1

    def merge(self, votes: Votes, ids: NDArray[np.int32], more: Votes) -> None:
        """Add votes that were counted elsewhere: `ids` [m] ascending, `more` of those samples."""
        rows = places(ids)
        votes.total[rows] += more.total
        votes.voters[rows] += more.voters

    def start_weighed(
        self, n_samples: int, n_classes: int, labels: NDArray[np.int64] | None = None
    ) -> Weighed:
        """No votes yet. Args: labels: [samples], for a rule that is told them."""
        return Weighed(np.zeros((n_samples, n_classes)), np.zeros(n_samples), labels)

    def add_weighed(
        self,
        votes: Weighed,
        ids: NDArray[np.int32],
        values: NDArray[np.float32],
        weights: NDArray[np.float32] | None,
    ) -> None:
        """As `add`, each answer by its weight [m], and by what the rule itself thinks of it."""
        rows, given = places(ids), values.astype(np.float64)
        labels = None if votes.labels is None else votes.labels[rows]
        each = self.weight_of(given, labels)
        each = each if weights is None else each * weights
        votes.total[rows] += each[:, None] * given
        votes.mass[rows] += each

    def weight_of(
        self, values: NDArray[np.float64], labels: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        """What the rule makes of each answer [m, classes] by itself: 1 [m]."""
        return np.ones(len(values))

    def finish_weighed(self, votes: Weighed) -> Consensus:
        """As `finish`; a sample whose voters weigh at most `LEAST` together is dropped."""
        ids = np.flatnonzero(votes.mass > LEAST).astype(np.int32)
        mean = votes.total[ids] / votes.mass[ids, None]
        return Consensus(ids, self.made_of(mean).astype(np.float32))

    def finish(self, votes: Votes) -> Consensus:
        """Divide each kept sample by its number of voters, and what the rule makes of that."""
        ids = np.flatnonzero(votes.voters).astype(np.int32)
        mean = votes.total[ids] / (votes.voters[ids, None] * GRID)
        return Consensus(ids, self.made_of(mean).astype(np.float32))

    def made_of(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """The consensus [kept, classes] of a mean [kept, classes]."""
        return mean


class Mean(Summed):
    """The mean of the answers to each sample; a sample without a voter is dropped."""

    name: Literal["mean"] = "mean"


class Variance(Summed):
    """The mean by weights: the variance over classes of each answer, so the surer count more.

    Source: Fed-ET, Cho et al., IJCAI 2022, of logits; only its introduction was read. An even
    answer counts nothing; a sample that all answer evenly is dropped.
    """

    name: Literal["variance"] = "variance"
    weighs: ClassVar[bool] = True

    def weight_of(
        self, values: NDArray[np.float64], labels: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        """The variance [m]."""
        spread: NDArray[np.float64] = values.var(axis=1)
        return spread


class TrueLabel(Summed):
    """Softmax of the sum of answers, each by -1 / log of what it gives the true label.

    Source: Weighted-FD, FGCS 183 (2026) 108517, and its released code: the weights are not
    normalised, and the softmax is of probabilities. Deviation: there a probability that rounds to 1
    becomes a weight of -1e10, which turns the label into its opposite; here none counts as more
    than `sure`, nor as less than the least float32.
    """

    name: Literal["true-label"] = "true-label"
    simplex: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    told_labels: ClassVar[bool] = True
    sure: float = Field(1 - 1e-6, gt=0, lt=1)
    """The probability from which on an answer is as good as sure: no weight is above 1e6."""

    def weight_of(
        self, values: NDArray[np.float64], labels: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        """-1 / log p(label) [m]; 0 where the label is unknown."""
        assert labels is not None  # the hearing was given them
        right = values[np.arange(len(values)), labels.clip(min=0)]
        least = float(np.finfo(np.float32).tiny)
        weight: NDArray[np.float64] = -1 / np.log(right.clip(least, self.sure))
        return np.where(labels >= 0, weight, 0.0)

    def finish_weighed(self, votes: Weighed) -> Consensus:
        """As said, of the sum itself."""
        ids = np.flatnonzero(votes.mass > LEAST).astype(np.int32)
        total = votes.total[ids]
        shifted = np.exp(total - total.max(axis=1, keepdims=True))
        return Consensus(ids, normalised(shifted).astype(np.float32))


class Era(Summed):
    """Softmax of the mean soft label at a low temperature: sharper (entropy reduction, DS-FL).

    Source: Itahara et al., arXiv 2008.06180; temperature 0.1 as there. As it grows,
    the consensus tends to the uniform distribution, not to the mean.
    """

    name: Literal["era"] = "era"
    simplex: ClassVar[bool] = True
    temperature: float = Field(0.1, gt=0)

    def made_of(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """softmax(mean / temperature)."""
        shifted = np.exp((mean - mean.max(axis=1, keepdims=True)) / self.temperature)
        return normalised(shifted)


class Power(Summed):
    """A power of the mean soft label, renormalised: sharper above 1, the mean at 1 (SCARLET).

    Source: "enhanced ERA" of SCARLET, arXiv 2504.19602; beta 1.5 is one of the values tried there.
    """

    name: Literal["power"] = "power"
    simplex: ClassVar[bool] = True
    beta: float = Field(1.5, gt=0)

    def made_of(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """mean^beta over its sum; relative to the largest, so that no power vanishes in all."""
        return normalised((mean / mean.max(axis=1, keepdims=True)) ** self.beta)


Combine = Annotated[
    Mean
    | Variance
    | TrueLabel
    | Era
    | Power
    | Median
    | TrimmedMean
    | GeometricMedian
    | Spectral
    | Cronus
    | ExpGuard
    | Agreement
    | Vouched,
    Field(discriminator="name"),
]
COMBINES = table(
    Mean,
    Variance,
    TrueLabel,
    Era,
    Power,
    Median,
    TrimmedMean,
    GeometricMedian,
    Spectral,
    Cronus,
    ExpGuard,
    Agreement,
    Vouched,
)


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

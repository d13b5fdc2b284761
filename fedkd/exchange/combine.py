"""Stage 4, combine: what the clients say together.

Rules of the mean are streaming: the server holds O(samples x classes), whatever the number of
clients. Every answer is rounded to a multiple of 2^-30, far below float32's own precision of a
probability. Sums of such numbers are exact in float64 up to 2^23, so a sum has the same bits in any
order and grouping.

Rules that need every vote keep the answers as they came, in float32, and go by blocks of samples.
A centre of one or two votes is no defence, whatever its name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.exchange import robust, trust
from fedkd.section import Section, table

GRID = 2.0**30
"""Steps in one: sums are kept as whole numbers of steps."""
Measure = Callable[
    [Sequence[NDArray[np.int32]], Sequence[NDArray[np.float32]], int], NDArray[np.float64]
]
BLOCK = 2**22
"""Numbers of votes that are looked at together; some copies of them are made, in float64."""


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


class Summed(Section):
    """What the rules of the mean have in common; a sample without a voter is dropped."""

    name: str
    simplex: ClassVar[bool] = False
    """Whether the answers must be distributions."""

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
        return _normalised(shifted)


class Power(Summed):
    """A power of the mean soft label, renormalised: sharper above 1, the mean at 1 (SCARLET).

    Source: "enhanced ERA" of SCARLET, arXiv 2504.19602; beta 1.5 is one of the values tried there.
    """

    name: Literal["power"] = "power"
    simplex: ClassVar[bool] = True
    beta: float = Field(1.5, gt=0)

    def made_of(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """mean^beta over its sum; relative to the largest, so that no power vanishes in all."""
        return _normalised((mean / mean.max(axis=1, keepdims=True)) ** self.beta)


class Ballots(NamedTuple):
    """All votes so far, as they came; `EveryVote.start` makes it, `EveryVote.add` fills it."""

    voters: NDArray[np.int64]  # [samples]
    n_classes: int
    ids: list[NDArray[np.int32]]
    values: list[NDArray[np.float32]]
    clients: list[int]
    """Whose they are; answers may come in several parts."""
    belief: dict[int, float]
    """What a rule with a memory thinks of each client: before the round, and once it has finished
    after it. Starts empty."""


class EveryVote(Section):
    """What the rules have in common that need every vote.

    They hold O(answers x classes) in float32; what they do takes O(`BLOCK`) more.
    """

    name: str
    simplex: ClassVar[bool] = False
    """Whether the answers must be distributions."""

    def start(self, n_samples: int, n_classes: int) -> Ballots:
        """No votes yet."""
        return Ballots(np.zeros(n_samples, np.int64), n_classes, [], [], [], {})

    def add(
        self, votes: Ballots, ids: NDArray[np.int32], values: NDArray[np.float32], client: int = -1
    ) -> None:
        """Add some of one client's answers: `ids` [m] ascending, unique; `values` [m, classes]."""
        votes.voters[ids] += 1
        votes.clients.append(client)
        votes.ids.append(ids.copy())
        votes.values.append(values.copy())

    def trust(self, votes: Ballots) -> dict[int, float]:
        """How far each client is to be believed, from 0 to 1: said of every rule, used by some."""
        return _of_clients(votes, trust.vouched)

    def finish(self, votes: Ballots) -> Consensus:
        """The centre of the votes on each sample that has any."""
        most = int(votes.voters.max(initial=1))
        size = max(1, BLOCK // (most * votes.n_classes))
        parts = [
            self._block(votes, start, min(start + size, len(votes.voters)))
            for start in range(0, len(votes.voters), size)
        ]
        values = [np.empty((0, votes.n_classes)), *parts]
        ids = np.flatnonzero(votes.voters).astype(np.int32)
        return Consensus(ids, np.concatenate(values).astype(np.float32))

    def _block(self, votes: Ballots, start: int, stop: int) -> NDArray[np.float64]:
        """The centres of samples `start` to `stop`, those without a vote left out."""
        stack, counts, _ = _stacked(votes, start, stop)
        return self.centre(stack, counts)

    @abstractmethod
    def centre(self, votes: NDArray[np.float64], voters: NDArray[np.int64]) -> NDArray[np.float64]:
        """The centre [m, classes] of votes [most, m, classes]; see `fedkd.exchange.robust`."""


def _stacked(
    votes: Ballots, start: int, stop: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The votes on samples `start` to `stop`, those without one left out, for `robust`.

    Returns: votes [most, m, classes], voters [m], and the place in `votes` of each, -1 for none.
    """
    spans = [np.searchsorted(ids, (start, stop)) for ids in votes.ids]
    pairs = list(zip(votes.ids, votes.values, spans, strict=True))
    ids = np.concatenate([np.empty(0, np.int32), *(i[a:b] for i, _, (a, b) in pairs)])
    rows = [np.empty((0, votes.n_classes), np.float32), *(v[a:b] for _, v, (a, b) in pairs)]
    places = np.repeat(np.arange(len(pairs)), [b - a for _, _, (a, b) in pairs])
    order = np.argsort(ids, kind="stable")
    counts = votes.voters[start:stop]
    counts = counts[counts > 0]
    sample = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    stack = np.zeros((counts.max(initial=0), len(counts), votes.n_classes))
    stack[rank, sample] = np.concatenate(rows)[order]
    whose = np.full(stack.shape[:2], -1)
    whose[rank, sample] = places[order]
    return stack, counts, whose


class TrimmedMean(EveryVote):
    """The mean of each class without its least and most votes, renormalised.

    Source: Yin et al., ICML 2018, there of gradients. Renormalised to a distribution
    as in Roux et al., ICLR 2025, arXiv 2402.12265; the mean of the votes where nothing is left.
    """

    name: Literal["trimmed-mean"] = "trimmed-mean"
    simplex: ClassVar[bool] = True
    trim: float = Field(0.1, ge=0, lt=0.5)
    """Share of the votes on a sample that is left out on each side, rounded down."""

    def centre(self, votes: NDArray[np.float64], voters: NDArray[np.int64]) -> NDArray[np.float64]:
        """As said."""
        return _on_simplex(robust.trimmed_mean(votes, voters, self.trim), votes, voters)


class Median(EveryVote):
    """The median of each class, renormalised.

    Source: PredictionMedian of Roux et al., ICLR 2025, arXiv 2402.12265. Deviations: of an even
    number of votes the mean of the middle two, and not the lower; the mean of the votes where all
    medians are 0, as of three voters who are sure of three different classes.
    """

    name: Literal["median"] = "median"
    simplex: ClassVar[bool] = True

    def centre(self, votes: NDArray[np.float64], voters: NDArray[np.int64]) -> NDArray[np.float64]:
        """As said."""
        return _on_simplex(robust.trimmed_mean(votes, voters, 0.5), votes, voters)


class GeometricMedian(EveryVote):
    """The point nearest to all votes by the sum of distances (Weiszfeld).

    Source: GeoMedian of Roux et al., ICLR 2025, arXiv 2402.12265; the steps are Vardi and Zhang's.
    """

    name: Literal["geometric-median"] = "geometric-median"

    def centre(self, votes: NDArray[np.float64], voters: NDArray[np.int64]) -> NDArray[np.float64]:
        """As said."""
        return robust.geometric_median(votes, voters)


class Spectral(EveryVote):
    """The mean without the votes that lie farthest out, where the votes vary most.

    Source: PredictionFilter of Roux et al., ICLR 2025, arXiv 2402.12265, with a quantile.
    """

    name: Literal["spectral"] = "spectral"
    simplex: ClassVar[bool] = True
    keep: float = Field(0.7, gt=0, le=1)
    """The quantile of the scores up to which a vote is kept."""

    def centre(self, votes: NDArray[np.float64], voters: NDArray[np.int64]) -> NDArray[np.float64]:
        """As said."""
        return robust.mean(*robust.filtered(votes, voters, self.keep))


class Cronus(EveryVote):
    """The spectral filter twice, each time with the quantile 1 - b / 2N, b = ceil(N / 2) - 1.

    Source: Chang et al., arXiv 1912.11279, as in the released code of Roux et al.; N is the number
    of voters on the sample.
    """

    name: Literal["cronus"] = "cronus"
    simplex: ClassVar[bool] = True

    def centre(self, votes: NDArray[np.float64], voters: NDArray[np.int64]) -> NDArray[np.float64]:
        """As said."""
        left, many = votes, voters
        for _ in range(2):
            keep = 1 - (np.ceil(many / 2) - 1) / (2 * many)
            left, many = robust.filtered(left, many, keep)
        return robust.mean(left, many)


class Weighed(EveryVote):
    """What the rules have in common that give each client a weight: the weighted mean.

    A sample whose voters all have the weight 0 is dropped.
    """

    simplex: ClassVar[bool] = True

    @abstractmethod
    def weights(self, votes: Ballots) -> dict[int, float]:
        """The weight of each client, at least 0."""

    def finish(self, votes: Ballots) -> Consensus:
        """As said; clients in the order of their ids, so that arrival changes no bits."""
        weights = self.weights(votes)
        total = np.zeros((len(votes.voters), votes.n_classes))
        mass = np.zeros(len(votes.voters))
        order = sorted(range(len(votes.clients)), key=lambda i: (votes.clients[i], i))
        for i in order:
            weight, ids = weights[votes.clients[i]], _places(votes.ids[i])
            total[ids] += weight * votes.values[i]
            mass[ids] += weight
        ids = np.flatnonzero(mass > 0).astype(np.int32)
        return Consensus(ids, (total[ids] / mass[ids, None]).astype(np.float32))

    def centre(self, votes: NDArray[np.float64], voters: NDArray[np.int64]) -> NDArray[np.float64]:
        """The mean, without clients nothing else can be said."""
        return robust.mean(votes, voters)


class ExpGuard(Weighed):
    """Weights that shrink by e^(-eta x mean outlier score) each round, kept across rounds.

    Source: ExpGuard of Roux et al., ICLR 2025, arXiv 2402.12265, with the spectral score. At eta 0
    it is the mean. The weights are the run's memory, and part of its checkpoints.
    """

    name: Literal["expguard"] = "expguard"
    eta: float = Field(5.0, ge=0)

    def weights(self, votes: Ballots) -> dict[int, float]:
        """As said, the largest scaled to 1."""
        scores = self._scores(votes)
        logs = {c: votes.belief.get(c, 0.0) - self.eta * o for c, o in scores.items()}
        top = max(logs.values(), default=0.0)
        votes.belief.update(logs)
        return {client: float(np.exp(log - top)) for client, log in logs.items()}

    def trust(self, votes: Ballots) -> dict[int, float]:
        """The weights after the round."""
        top = max((votes.belief[c] for c in votes.clients), default=0.0)
        return {c: float(np.exp(votes.belief[c] - top)) for c in sorted(set(votes.clients))}

    def _scores(self, votes: Ballots) -> dict[int, float]:
        """The mean `robust.outlying` of each client's votes."""
        most = int(votes.voters.max(initial=1))
        size = max(1, BLOCK // (most * votes.n_classes))
        sums, counts = np.zeros(len(votes.ids)), np.zeros(len(votes.ids))
        for start in range(0, len(votes.voters), size):
            stop = min(start + size, len(votes.voters))
            stack, voters, whose = _stacked(votes, start, stop)
            found = robust.outlying(stack, voters)
            there = whose >= 0
            np.add.at(sums, whose[there], found[there])
            np.add.at(counts, whose[there], 1)
        scores: dict[int, list[float]] = {}
        for client, score, count in zip(votes.clients, sums, counts, strict=True):
            had = scores.setdefault(client, [0.0, 0.0])
            had[0] += score
            had[1] += count
        return {client: total / max(n, 1) for client, (total, n) in sorted(scores.items())}


class Agreement(Weighed):
    """Each client counts as far as its votes agree with those of others on the same samples.

    Ours: the share of agreeing likeliest classes, to a power.
    """

    name: Literal["agreement"] = "agreement"
    power: float = Field(4.0, ge=0)

    def weights(self, votes: Ballots) -> dict[int, float]:
        """As said."""
        return {c: w**self.power for c, w in self.trust(votes).items()}

    def trust(self, votes: Ballots) -> dict[int, float]:
        """The share."""
        return _of_clients(votes, trust.agreement)


class Vouched(Weighed):
    """Each client counts as far as the others vouch for it, each other once: for masked votes.

    Ours: where filters leave a sample one or two voters, no centre of its votes is a defence.
    `fedkd.exchange.trust.vouched` to a power.
    """

    name: Literal["vouched"] = "vouched"
    power: float = Field(8.0, ge=0)

    def weights(self, votes: Ballots) -> dict[int, float]:
        """As said."""
        return {c: w**self.power for c, w in self.trust(votes).items()}


def _of_clients(votes: Ballots, measure: Measure) -> dict[int, float]:
    """A measure of `fedkd.exchange.trust` by client; parts of an answer are put together first."""
    clients = sorted(set(votes.clients))
    parts = [[i for i, c in enumerate(votes.clients) if c == client] for client in clients]
    ids = [np.concatenate([votes.ids[i] for i in mine]) for mine in parts]
    values = [np.concatenate([votes.values[i] for i in mine]) for mine in parts]
    found = measure(ids, values, len(votes.voters))
    return dict(zip(clients, found.tolist(), strict=True))


def _on_simplex(
    centre: NDArray[np.float64], votes: NDArray[np.float64], voters: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Each row over its sum; the mean of the votes where that is 0."""
    empty = centre.sum(axis=1) <= 0
    centre[empty] = robust.mean(votes[:, empty], voters[empty])
    return _normalised(centre)


def _normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    whole: NDArray[np.float64] = rows / rows.sum(axis=1, keepdims=True)
    return whole


def _places(ids: NDArray[np.int32]) -> slice | NDArray[np.int32]:
    # Most answers are to one run of samples, and a slice costs a fifth of what an index does.
    run = len(ids) > 0 and ids[-1] - ids[0] + 1 == len(ids)
    return slice(ids[0], ids[-1] + 1) if run else ids


Combine = Annotated[
    Mean
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

"""Rules of stage 4 that need every vote: a centre of the votes on each sample.

They keep the answers as they came, in float32, and go by blocks of samples. A centre of one or two
votes is no defence, whatever its name: see `fedkd.exchange.weighed`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.exchange import robust, trust
from fedkd.exchange.consensus import Consensus, normalised
from fedkd.section import Section

Measure = Callable[
    [Sequence[NDArray[np.int32]], Sequence[NDArray[np.float32]], int], NDArray[np.float64]
]
BLOCK = 2**22
"""Numbers of votes that are looked at together; some copies of them are made, in float64."""


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
        return of_clients(votes, trust.vouched)

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
        stack, counts, _ = stacked(votes, start, stop)
        return self.centre(stack, counts)

    @abstractmethod
    def centre(self, votes: NDArray[np.float64], voters: NDArray[np.int64]) -> NDArray[np.float64]:
        """The centre [m, classes] of votes [most, m, classes]; see `fedkd.exchange.robust`."""


def stacked(
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


def of_clients(votes: Ballots, measure: Measure) -> dict[int, float]:
    """A measure of `fedkd.exchange.trust` by client; parts of an answer are put together first."""
    clients = sorted(set(votes.clients))
    parts = [[i for i, c in enumerate(votes.clients) if c == client] for client in clients]
    ids = [np.concatenate([votes.ids[i] for i in mine]) for mine in parts]
    values = [np.concatenate([votes.values[i] for i in mine]) for mine in parts]
    found = measure(ids, values, len(votes.voters))
    return dict(zip(clients, found.tolist(), strict=True))


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


def _on_simplex(
    centre: NDArray[np.float64], votes: NDArray[np.float64], voters: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Each row over its sum; the mean of the votes where that is 0."""
    empty = centre.sum(axis=1) <= 0
    centre[empty] = robust.mean(votes[:, empty], voters[empty])
    return normalised(centre)

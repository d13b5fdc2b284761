"""Rules of stage 4 that weigh clients: by what their votes are beside those of others."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.exchange import robust, trust
from fedkd.exchange.consensus import Consensus, places
from fedkd.exchange.every_vote import BLOCK, Ballots, EveryVote, of_clients, stacked

LEAST = 1e-290
"""A sample whose voters weigh no more together is dropped: float64 has few digits left there."""


class Weighed(EveryVote):
    """What the rules have in common that give each client a weight: the weighted mean.

    A sample whose voters weigh at most `LEAST` together is dropped.
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
            weight, ids = weights[votes.clients[i]], places(votes.ids[i])
            total[ids] += weight * votes.values[i].astype(np.float64)
            mass[ids] += weight
        ids = np.flatnonzero(mass > LEAST).astype(np.int32)
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
            stack, voters, whose = stacked(votes, start, stop)
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
        return of_clients(votes, trust.agreement)


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

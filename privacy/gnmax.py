"""Confident-GNMax: the server answers with the noisy winner of the clients' votes, if it is clear.

Source: PATE (Papernot et al., ICLR 2018, arXiv 1802.08908), clients as teachers. Soft votes, which
are ours, cost the same: a client that is replaced moves a sum of distributions no further than a
sum of votes. So a temperature changes nothing here. Only the data-independent bound is given: the
data-dependent one is smaller, but is itself a secret.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import dp_accounting
import torch
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.mechanisms import Cost, Gaussian
from privacy.sensitivity import Neighbours, finite, positive


class Answered(NamedTuple):
    """What the server publishes."""

    rows: Tensor  # int64 [k], ascending: the queries that were clear enough
    labels: Tensor  # int64 [k]


@dataclass(frozen=True)
class ConfidentGNMax:
    """Answer where the largest vote sum plus N(0, sigma_threshold^2) reaches `threshold` votes.

    Guarantee: `neighbours`; the answered rows and their labels, against all who read them; the
    server that sees the votes is trusted. Event: Gaussian mechanisms, one a query for the
    threshold and one an answer for the winner.
    """

    threshold: float
    sigma_threshold: float
    sigma: float
    neighbours: Neighbours = "replace one client"

    def __post_init__(self) -> None:
        positive(sigma_threshold=self.sigma_threshold, sigma=self.sigma)

    def release(self, votes: Tensor, generator: torch.Generator) -> Answered:
        """The answers to m queries, of the sums over clients of their votes [m, classes].

        A client's vote on a query is one distribution: one-hot, or a soft label.
        """
        sums = finite(votes)
        if bool((sums < 0).any()):
            raise FedkdError("votes are sums of distributions", allowed="0 or more each")
        top = sums.amax(1, keepdim=True)
        clear = Gaussian(self.sigma_threshold).add(top, generator)[:, 0] >= self.threshold
        # Noise is drawn for all rows, so that one answer's draw does not depend on another's.
        winner = Gaussian(self.sigma).add(sums, generator).argmax(1)
        return Answered(clear.nonzero()[:, 0], winner[clear])

    def cost(self, queries: int, answered: int) -> Cost:
        """The charge for `queries` queries of which `answered` were answered.

        Renyi DP of order alpha: alpha/(2 sigma_threshold^2) a query, alpha/sigma^2 an answer
        (alpha/(2 sigma^2) if a client is added or removed). Which queries are answered is known
        only afterwards: to promise a cost beforehand, or to stop at a budget, charge `queries`.
        """
        move = math.sqrt(2) if self.neighbours == "replace one client" else 1.0
        mu = math.hypot(
            math.sqrt(queries) / self.sigma_threshold, math.sqrt(answered) * move / self.sigma
        )
        event = dp_accounting.GaussianDpEvent(1 / mu) if mu else dp_accounting.NoOpDpEvent()
        return Cost(neighbours=self.neighbours, event=event, pure_epsilon=None, sensitivity=move)

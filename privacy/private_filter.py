"""A client's filter with a guarantee: one private summary of its data, asked once.

The accept mask is a message: it says which proxy samples look like the client's data. Here it is
computed from a private summary and a private threshold alone, so it costs what they cost, however
many proxy samples are asked for. The proxy set is public; a sample that a client contributed itself
is in the clear already, and always answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.exchange.gate import Gate, accept
from fedkd.protection import DpClassMeans, DpKernel, DpKMeans
from privacy.accounting import least_gaussian
from privacy.class_means import Features, class_means, features
from privacy.events import Event, Gaussian, Protects, Pure
from privacy.interval_trees import Grid, distance_sums, grid
from privacy.private_gate import held_out, private_scores
from privacy.private_kmeans import Seeds, private_kmeans, seeds
from privacy.summaries import View, view

Row = DpKMeans | DpClassMeans | DpKernel
BINS = 16
"""Of the noisy histogram of held-out scores; at quantiles of the proxy set's scores."""
GATES_PART = 0.25
"""Of the epsilon, for the threshold; the summary has the rest."""
RECORD = Protects("record", "add-remove")


class Summary(Protocol):
    """Any of the private summaries."""

    def score(self, x: Tensor) -> Tensor:
        """How strange [n] each of x [n, p] is."""


@dataclass(frozen=True, eq=False)
class Public:
    """What every client may know before it looks at its own data: made of the proxy set alone."""

    row: Row
    x: Tensor  # [n, p] the proxy samples
    view: View
    made: Seeds | Features | Grid

    @classmethod
    def of(cls, row: Row, x: Tensor, generator: torch.Generator) -> Public:
        """From the proxy samples x [n, p]; the generator must be the same for all clients.

        Raises: FedkdError where the proxy set has fewer dimensions than `row.axes`, or is empty.
        """
        seen = view(x, row.axes)
        made: Seeds | Features | Grid
        match row:
            case DpKMeans():
                made = seeds(x, seen, generator, k=row.k)
            case DpClassMeans():
                made = features(seen.look(x), generator)
            case DpKernel():
                made = grid(x, seen)
        return cls(row, x, seen, made)

    def summarise(self, x: Tensor, delta: float, generator: torch.Generator) -> Summary:
        """The private summary of records x [n, p]; n may be 0.

        Guarantee: the first of the events that `cost` gives for `row` and `delta`.
        Raises: FedkdError where x has another width than the proxy set, NaN or infinity.
        """
        nowhere = torch.zeros(len(x), dtype=torch.int64)
        if isinstance(self.made, Grid):
            epsilon = (1 - GATES_PART) * self.row.epsilon
            return distance_sums(x, nowhere, 1, self.made, epsilon, generator)
        noise = _noise(self.row, delta).noise_multiplier
        if isinstance(self.made, Seeds):
            return private_kmeans(x, None, 1, self.made, noise, generator)
        means = class_means(self.view.look(x), nowhere, 1, self.made, noise, generator)
        return _Viewed(self.view, means)


@dataclass(frozen=True, eq=False)
class _Viewed:
    """A summary of what a view shows."""

    view: View
    inner: Summary

    def score(self, x: Tensor) -> Tensor:
        return self.inner.score(self.view.look(x))


def cost(row: Row, delta: float) -> tuple[Event, Event]:
    """What a client's filter costs one record added or removed: the summary, and the threshold.

    Together at most `row.epsilon` at `delta`, by either accountant. They are added up although each
    record is in one of the two only, since the ledger has no event for the worse of two.
    """
    threshold = _pure(row, GATES_PART)
    if isinstance(row, DpKernel):
        return _pure(row, 1 - GATES_PART), threshold
    return _noise(row, delta), threshold


def _pure(row: Row, part: float) -> Pure:
    return Pure(epsilon=part * row.epsilon, unit=RECORD.unit, relation=RECORD.relation)


def _noise(row: Row, delta: float) -> Gaussian:
    """Of a summary with Gaussian noise: the least that leaves room for the threshold."""
    return least_gaussian(row.epsilon, RECORD, delta, (_pure(row, GATES_PART),))


def private_mask(
    public: Public,
    x: Tensor,
    own: Tensor,
    gate: Gate,
    heldout: float,
    delta: float,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """The mask bool [p] of proxy samples that a client answers, and the threshold.

    Args: x: the client's records [n, d]; own: bool [p], what it contributed; gate: run on held-out
        scores that a noisy histogram stands for; heldout: the share of records that are held out,
        each by its own coin.
    Guarantee: `row.epsilon` at `delta` for one record added or removed, of the mask and the
        threshold together; the ledger charges `cost`. Which samples the client contributed is in
        the clear. That it has records, and how many, is not hidden.
    Raises: FedkdError for a client without records, or a proxy set that the summary cannot tell
        apart.
    """
    if len(x) == 0:
        raise FedkdError("a private filter needs records to summarise")
    apart = held_out(len(x), heldout, generator)
    summary = public.summarise(x[~apart], delta, generator)
    of_pool = summary.score(public.x).double()
    inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    edges = torch.unique(torch.quantile(of_pool, inner))
    threshold_epsilon = GATES_PART * public.row.epsilon
    scores = private_scores(summary.score(x[apart]), edges, threshold_epsilon, generator)
    if len(scores) == 0 and not bool(own.any()):
        # The noise left no record in sight, so there is nothing that a quantile could be taken of.
        return own, -math.inf
    return accept(gate, scores, of_pool, own)

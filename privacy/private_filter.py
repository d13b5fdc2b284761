"""A client's filter with a guarantee: one private summary of its data, asked once.

The accept mask is a message: it says which proxy samples look like the client's data. Here it is
computed from a private summary and a private threshold alone, so it costs what they cost, however
many proxy samples are asked for. The proxy set is public; a sample that a client contributed itself
is in the clear already, and always answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.exchange.gate import Gate, accept
from fedkd.protection import DpClassMeans, DpKernel, DpKMeans
from privacy.class_means import Features, class_means, features
from privacy.events import Event, Gaussian, Pure
from privacy.interval_trees import Grid, distance_sums, grid
from privacy.private_gate import held_out, private_scores
from privacy.private_kmeans import Seeds, private_kmeans, seeds
from privacy.summaries import View, noise_multiplier, view

Row = DpKMeans | DpClassMeans | DpKernel
BINS = 16
"""Of the noisy histogram of held-out scores; at quantiles of the proxy set's scores."""
GATES_PART = 0.25
"""Of the epsilon, for the threshold; the summary has the rest."""


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

    def summarise(
        self, x: Tensor, epsilon: float, delta: float, generator: torch.Generator
    ) -> Summary:
        """The private summary of records x [n, p]."""
        nowhere = torch.zeros(len(x), dtype=torch.int64)
        if isinstance(self.made, Grid):
            return distance_sums(x, nowhere, 1, self.made, epsilon, generator)
        noise = noise_multiplier(epsilon, delta)
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


def cost(row: Row, delta: float) -> tuple[Event, ...]:
    """What a client's filter costs one record added or removed: the summary, and the threshold."""
    gates = Pure(epsilon=GATES_PART * row.epsilon, unit="record", relation="add-remove")
    rest = (1 - GATES_PART) * row.epsilon
    if isinstance(row, DpKernel):
        return Pure(epsilon=rest, unit="record", relation="add-remove"), gates
    noise = noise_multiplier(rest, delta)
    return Gaussian(noise_multiplier=noise, unit="record", relation="add-remove"), gates


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
    Guarantee: `row.epsilon` at `delta` for one record added or removed: a quarter for the threshold
        and the rest for the summary, added up. `cost` is what the ledger charges.
    Raises: FedkdError for a client without records.
    """
    if len(x) == 0:
        raise FedkdError("a private filter needs records to summarise")
    epsilon = public.row.epsilon
    apart = held_out(len(x), heldout, generator)
    summary = public.summarise(x[~apart], (1 - GATES_PART) * epsilon, delta, generator)
    of_pool = summary.score(public.x)
    inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    edges = torch.unique(torch.quantile(of_pool.double(), inner))
    scores = private_scores(summary.score(x[apart]), edges, GATES_PART * epsilon, generator)
    return accept(gate, scores, of_pool.double(), own)

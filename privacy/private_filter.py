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

    def teach(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """Soft labels float64 [n, classes] of x [n, p]."""


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
        self, x: Tensor, y: Tensor, n_classes: int, event: Event, generator: torch.Generator
    ) -> Summary:
        """The private summary of records x [n, p] with labels y int64 [n]; n may be 0.

        Guarantee: the event, whose noise this draws; it is one that `summary_event` gives for
        `row`. Add/remove one record, its label included; any number of uses.
        Raises: FedkdError where x has another width than the proxy set, NaN or infinity.
        """
        match self.made, event:
            case Grid() as made, Pure(epsilon=epsilon):
                return distance_sums(x, y, n_classes, made, epsilon, generator)
            case Seeds() as made, Gaussian(noise_multiplier=noise):
                return private_kmeans(x, y, n_classes, made, noise, generator)
            case Features() as made, Gaussian(noise_multiplier=noise):
                means = class_means(self.view.look(x), y, n_classes, made, noise, generator)
                return _Viewed(self.view, means)
        raise FedkdError("a summary of another kind was charged", value=event.name)


@dataclass(frozen=True, eq=False)
class _Viewed:
    """A summary of what a view shows."""

    view: View
    inner: Summary

    def score(self, x: Tensor) -> Tensor:
        return self.inner.score(self.view.look(x))

    def teach(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """As the summary."""
        return self.inner.teach(self.view.look(x), temperature)


def cost(row: Row, delta: float) -> tuple[Event, Pure]:
    """What a client's filter costs one record added or removed: the summary, and the threshold.

    Together at most `row.epsilon` at `delta`, by either accountant. They are added up although each
    record is in one of the two only, since the ledger has no event for the worse of two.
    """
    threshold = _pure(GATES_PART * row.epsilon)
    return summary_event(row, delta, threshold), threshold


def summary_event(row: Row, delta: float, *others: Pure) -> Event:
    """What a summary costs: all of `row.epsilon` at `delta` that `others` leave."""
    if isinstance(row, DpKernel):
        return _pure(row.epsilon - sum(other.epsilon for other in others))
    return least_gaussian(row.epsilon, RECORD, delta, others)


def _pure(epsilon: float) -> Pure:
    return Pure(epsilon=epsilon, unit=RECORD.unit, relation=RECORD.relation)


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
    of_one_class = torch.zeros(int((~apart).sum()), dtype=torch.int64)
    event, threshold = cost(public.row, delta)
    summary = public.summarise(x[~apart], of_one_class, 1, event, generator)
    of_pool = summary.score(public.x).double()
    inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    edges = torch.unique(torch.quantile(of_pool, inner))
    scores = private_scores(summary.score(x[apart]), edges, threshold.epsilon, generator)
    if len(scores) == 0 and not bool(own.any()):
        # The noise left no record in sight, so there is nothing that a quantile could be taken of.
        return own, -math.inf
    return accept(gate, scores, of_pool, own)

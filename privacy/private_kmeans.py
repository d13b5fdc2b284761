"""Private k-means: noisy centroids and counts of a client, as a filter and as a teacher.

Seeds are the centroids of the public proxy set, so they cost nothing. Each Lloyd step assigns the
client's records to the nearest centroid and releases noisy sums and counts; a centroid moves as far
as its records outweigh the noise. What is left is read as a mixture of round Gaussians, one about
each centroid and weighed by its count; the score is how much denser the proxy set's own mixture,
about the seeds, is at a sample. EdgeFD's distance to the nearest centroid is not used: a cluster of
one record, or of noise, says there as much as one of a thousand (measured: worse at every budget).

Source: the noisy sums and counts are Blum, Dwork, McSherry, Nissim, PODS 2005 (SuLQ k-means), here
with Gaussian noise on both at once; seeding from public data as in FedDP-KMeans (ICML 2025), of
which the abstract was available. The mixture is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from dp_accounting import SelfComposedDpEvent
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.exchange.kmeans import kmeans
from privacy.summaries import (
    ROUNDING,
    View,
    check_labels,
    check_multiplier,
    gaussian_event,
    normal,
    to_ball,
)

SENSITIVITY = math.sqrt(2) * ROUNDING
"""L2, of one step's sums (in radii) and counts together: one record moves one of each by 1."""

_PULL = 3.0  # standard deviations of noise: as many records as that pull at where it was
_CERTAIN = 2.0  # standard deviations of noise that a cluster's count must stand above 0
_WIDTH = 2.0  # the mixture's variance, in those of proxy samples about their seeds


@dataclass(frozen=True, eq=False)
class Seeds:
    """The centroids of the proxy set, all public.

    Shapes: `centroids` float64 [k, d]; `counts` float64 [k], proxy samples nearest to each.
    `variance`, of every Gaussian on every axis.
    """

    view: View
    centroids: Tensor
    counts: Tensor
    variance: float


def seeds(proxy: Tensor, view: View, generator: torch.Generator, *, k: int = 30) -> Seeds:
    """k-means of the proxy samples [n, p] as the view shows them.

    Raises: FedkdError where the proxy is empty, not finite, or k < 1.
    """
    x = view.look(proxy)
    found = kmeans(x, k, generator)
    squared, nearest = _squared(x, found).min(1)
    counts = torch.bincount(nearest, minlength=len(found)).double()
    variance = max(_WIDTH * float(squared.mean()) / x.shape[1], 1e-6 * view.radius**2)
    return Seeds(view, found, counts, variance)


def _squared(x: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances [n, k]; in float64, near the origin, |a|² + |b|² - 2ab loses nothing."""
    offsets = x.square().sum(1, keepdim=True) + centroids.square().sum(1)
    return torch.addmm(offsets, x, centroids.T, alpha=-2).clamp_(min=0)


@dataclass(frozen=True, eq=False)
class Centroids:
    """What was released of a client, and what follows from it.

    Shapes: `centroids` float64 [classes, k, d]; `counts` float64 [classes, k], with noise of
    standard deviation `count_std`. One class where labels were not given.
    """

    seeds: Seeds
    centroids: Tensor
    counts: Tensor
    count_std: float
    event: DpEvent

    def log_densities(self, x: Tensor) -> Tensor:
        """The log of each class's part of the client's density at x [n, p]: [n, classes].

        Clusters that the noise may have made up are left out; the largest one always counts. A
        class without clusters has minus infinity. Common constants are left out.
        """
        kept = self.counts > _CERTAIN * self.count_std
        kept.view(-1)[self.counts.argmax()] = True
        weights = self.counts.clamp(min=1).masked_fill(~kept, 0)
        return _log_mixture(self.seeds.view.look(x), self.centroids, weights, self.seeds.variance)

    def score(self, x: Tensor) -> Tensor:
        """How strange [n] each of x [n, p] is: log of the proxy's density over the client's."""
        public = _log_mixture(
            self.seeds.view.look(x),
            self.seeds.centroids[None],
            self.seeds.counts[None],
            self.seeds.variance,
        )
        return public[:, 0] - self.log_densities(x).logsumexp(1)

    def teach(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """Soft labels float64 [n, classes]: softmax of the log densities / temperature."""
        return torch.softmax(self.log_densities(x) / temperature, 1)


def _log_mixture(x: Tensor, centroids: Tensor, weights: Tensor, variance: float) -> Tensor:
    """Log of sum_k weights[c, k] exp(-|x - centroids[c, k]|² / 2 variance) / all weights."""
    n_classes, k, d = centroids.shape
    squared = _squared(x, centroids.reshape(-1, d)).reshape(len(x), n_classes, k)
    return ((weights / weights.sum()).log() - squared / (2 * variance)).logsumexp(2)


def private_kmeans(
    x: Tensor,
    y: Tensor | None,
    n_classes: int,
    seeds: Seeds,
    noise_multiplier: float,
    generator: torch.Generator,
    *,
    iterations: int = 1,
) -> Centroids:
    """Noisy Lloyd steps from the public seeds, over the records x [n, p]; n may be 0.

    With labels y int64 [n], in every class apart: a record lies in one class only, so that costs no
    more than one k-means (parallel composition). Without them (None) `n_classes` must be 1.

    Guarantee: `iterations` adaptive Gaussian releases, together as private as one of
    `noise_multiplier` sensitivities; add/remove one record of the client, its label included;
    any number of uses. `event` is their privacy event.
    Raises: FedkdError where x is not finite, y does not fit, or a number is out of range.
    """
    check_multiplier(noise_multiplier)
    if iterations < 1:
        raise FedkdError("k-means needs iterations", value=iterations, allowed=">= 1")
    points = seeds.view.look(x)
    labels = torch.zeros(len(x), dtype=torch.int64) if y is None else y
    check_labels(x, labels, n_classes)
    radius, each = seeds.view.radius, noise_multiplier * math.sqrt(iterations)
    std = each * SENSITIVITY
    centroids = seeds.centroids.repeat(n_classes, 1, 1)
    for _ in range(iterations):
        sums, counts = _totals(points, labels, centroids)
        sums += normal(sums.shape, std * radius, generator)
        counts += normal(counts.shape, std, generator)
        pull = max(_PULL * std, 1e-9)  # an empty cluster stays where it was
        moved = (sums + pull * centroids) / (counts.clamp(min=0) + pull)[..., None]
        centroids = to_ball(moved.flatten(0, 1), radius).reshape(centroids.shape)
    event = SelfComposedDpEvent(gaussian_event(each), iterations)
    return Centroids(seeds, centroids, counts, std, event)


def _totals(points: Tensor, labels: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [classes, k, d] and counts [classes, k] of the points nearest to each centroid."""
    n_classes, k, d = centroids.shape
    sums, counts = centroids.new_zeros(n_classes * k, d), centroids.new_zeros(n_classes * k)
    for label in range(n_classes):
        rows = points[labels == label]
        cells = label * k + _squared(rows, centroids[label]).argmin(1)
        sums.index_add_(0, cells, rows)
        counts.index_add_(0, cells, torch.ones_like(rows[:, 0]))
    return sums.reshape(centroids.shape), counts.reshape(n_classes, k)

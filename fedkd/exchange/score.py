"""Stage 1, score: how strange is proxy sample x to this client? Higher is stranger.

Source: EdgeFD (Mujtaba et al., arXiv 2508.14769) scores by a KMeans density-ratio estimator. Of
that paper only the abstract was available: the number of centroids, the Euclidean distance to the
nearest one, and the choice of pixels or features are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.exchange.kmeans import distances, kmeans
from fedkd.exchange.kmeans_many import kmeans_many
from fedkd.exchange.scores.distances import Logistic, Mahalanobis, Neighbours
from fedkd.exchange.scores.kernels import KDE, ULSIF, KuLSIF
from fedkd.exchange.scores.logits import Energy, Entropy, MaxSoftmax
from fedkd.section import Section, table


class KMeans(Section):
    """EdgeFD: distance to the nearest of k centroids of the private samples."""

    name: Literal["kmeans"] = "kmeans"
    k: int = Field(10, ge=1)
    per_class: bool = False
    """Fit k centroids in each class of the client instead of k in all its samples."""
    space: Literal["pixels", "features"] = "pixels"
    """Where distances are taken: raw input, or the client's own penultimate layer."""
    needs_public: ClassVar[bool] = False

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> Tensor:
        """Centroids [k', d] of x [n, d]; labels y [n] serve only `per_class`."""
        if not self.per_class:
            return kmeans(x, self.k, generator)
        return torch.cat([kmeans(x[y == label], self.k, generator) for label in torch.unique(y)])

    def fit_many(
        self, xs: Sequence[Tensor], ys: Sequence[Tensor], generators: Sequence[torch.Generator]
    ) -> list[Tensor]:
        """As `fit` for each client, up to rounding, in one call."""
        if not self.per_class:
            return kmeans_many(xs, self.k, generators)
        parts = [
            (client, x[y == label])
            for client, (x, y) in enumerate(zip(xs, ys, strict=True))
            for label in torch.unique(y)
        ]
        owners = [generators[client] for client, _ in parts]
        found = kmeans_many([part for _, part in parts], self.k, owners)
        of_client: list[list[Tensor]] = [[] for _ in xs]
        for (client, _), centroids in zip(parts, found, strict=True):
            of_client[client].append(centroids)
        return [torch.cat(centroids) for centroids in of_client]

    def score(self, state: Tensor, x: Tensor) -> Tensor:
        """Distances [n] of x [n, d] to the nearest of the centroids `state` [k', d]."""
        return distances(x, state)


class NoScore(Section):
    """Every sample is equally familiar: there is no filter."""

    name: Literal["none"] = "none"
    space: Literal["pixels"] = "pixels"
    needs_public: ClassVar[bool] = False

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> Tensor:
        """Nothing is learnt: an empty state [0, d]."""
        return x.new_empty((0, x.shape[1]))

    def score(self, state: Tensor, x: Tensor) -> Tensor:
        """Zeros [n]."""
        return x.new_zeros(len(x))


def fit_together(
    score: Score,
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    generators: Sequence[torch.Generator],
    publics: Sequence[Tensor | None] | None = None,
) -> list[Any]:
    """The state of each client's score, fitted on its x [n_i, d] and labels y [n_i].

    On a CPU one client after another: the single k-means passes over most points, and 32 clients
    of some 600 images took 6 ms each where the batched one took 27 ms.
    Args: publics: the others' proxy samples [p_i, d], for a score that `needs_public`.
    Returns: states as the score's own `fit` makes them.
    """
    if isinstance(score, KMeans) and len(xs) > 1 and xs[0].device.type != "cpu":
        return score.fit_many(xs, ys, generators)
    publics = publics or [None] * len(xs)
    return [
        score.fit(x, y, g, public)
        for x, y, g, public in zip(xs, ys, generators, publics, strict=True)
    ]


Score = Annotated[
    KMeans
    | KDE
    | KuLSIF
    | ULSIF
    | Mahalanobis
    | Neighbours
    | Logistic
    | Energy
    | MaxSoftmax
    | Entropy
    | NoScore,
    Field(discriminator="name"),
]
SCORES = table(
    KMeans,
    KDE,
    KuLSIF,
    ULSIF,
    Mahalanobis,
    Neighbours,
    Logistic,
    Energy,
    MaxSoftmax,
    Entropy,
    NoScore,
)

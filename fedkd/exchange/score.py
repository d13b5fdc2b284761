"""Stage 1, score: how strange is proxy sample x to this client? Higher is stranger.

Source: EdgeFD (Mujtaba et al., arXiv 2508.14769) scores by a KMeans density-ratio estimator. Of
that paper only the abstract was available: the number of centroids, the Euclidean distance to the
nearest one, and the choice of pixels or features are ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.exchange.kmeans import distances, kmeans
from fedkd.section import Section, table


class KMeans(Section):
    """EdgeFD: distance to the nearest of k centroids of the private samples."""

    name: Literal["kmeans"] = "kmeans"
    k: int = Field(10, ge=1)
    per_class: bool = False
    """Fit k centroids in each class of the client instead of k in all its samples."""
    space: Literal["pixels", "features"] = "pixels"
    """Where distances are taken: raw input, or the client's own penultimate layer."""

    def fit(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Centroids [k', d] of x [n, d]; labels y [n] serve only `per_class`."""
        if not self.per_class:
            return kmeans(x, self.k, generator)
        return torch.cat([kmeans(x[y == label], self.k, generator) for label in torch.unique(y)])

    def score(self, state: Tensor, x: Tensor) -> Tensor:
        """Distances [n] of x [n, d] to the nearest of the centroids `state` [k', d]."""
        return distances(x, state)


class NoScore(Section):
    """Every sample is equally familiar: there is no filter."""

    name: Literal["none"] = "none"
    space: Literal["pixels"] = "pixels"

    def fit(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Nothing is learnt: an empty state [0, d]."""
        return x.new_empty((0, x.shape[1]))

    def score(self, state: Tensor, x: Tensor) -> Tensor:
        """Zeros [n]."""
        return x.new_zeros(len(x))


Score = Annotated[KMeans | NoScore, Field(discriminator="name")]
SCORES = table(KMeans, NoScore)

"""Scores by distance to the private samples, or by a line between them and the others'."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.exchange.scores.space import by_block, squared
from fedkd.section import Section


class Mahalanobis(Section):
    """Distance to the nearest class mean, in units of the spread along each direction.

    One covariance for all classes (around their own means), or one a class; shrunk towards a sphere
    of the same mean variance. With one a class its volume is not counted, so wide classes take
    more. Texts are all of one class.
    Source: Lee et al., NeurIPS 2018 (shared). Shrinkage is ours, at a fixed weight.
    """

    name: Literal["mahalanobis"] = "mahalanobis"
    covariance: Literal["shared", "class"] = "shared"
    shrinkage: float = Field(0.1, gt=0, le=1)
    space: Literal["pixels", "features"] = "features"
    needs_public: ClassVar[bool] = False

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Means [k, d], and Cholesky factors of covariances [1 or k, d, d]."""
        x = x.double()
        if y.ndim > 1:  # a text has many labels and no class
            y = y.new_zeros(len(x))
        labels, place = torch.unique(y, return_inverse=True)
        means = torch.stack([x[place == k].mean(dim=0) for k in range(len(labels))])
        rest = x - means[place]
        groups = [rest]
        if self.covariance == "class":
            groups = [rest[place == k] for k in range(len(labels))]
        return means, torch.stack([self._factor(group) for group in groups])

    def _factor(self, rest: Tensor) -> Tensor:
        covariance = rest.T @ rest / len(rest)
        sphere = float(covariance.diagonal().mean()) or 1.0  # a class of one sample has no spread
        covariance *= 1 - self.shrinkage
        covariance.diagonal().add_(self.shrinkage * sphere)
        factor: Tensor = torch.linalg.cholesky(covariance)
        return factor

    def score(self, state: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """Distances [n] to the nearest of the means."""
        means, factors = state

        def nearest(some: Tensor) -> Tensor:
            best = some.new_full((len(some),), torch.inf, dtype=torch.float64)
            for mean, factor in zip(means, factors.expand(len(means), -1, -1), strict=True):
                gap = torch.linalg.solve_triangular(factor, (some - mean).T, upper=False)
                best = torch.minimum(best, gap.square().sum(dim=0))
            return best.sqrt()

        return by_block(x.double(), nearest)


class Neighbours(Section):
    """Distance to the k-th nearest private sample, if asked along the main axes alone (PCA).

    Source: Sun et al., ICML 2022, arXiv 2204.06507. Deviation: features are not normalised.
    """

    name: Literal["knn"] = "knn"
    k: int = Field(10, ge=1)
    """All of them, if there are fewer."""
    axes: int = Field(0, ge=0)
    """Principal axes of the private samples that distances are taken along; 0 is all of space."""
    space: Literal["pixels", "features"] = "pixels"
    needs_public: ClassVar[bool] = False

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The samples along the axes, and the axes [d, axes]; none of them is all of space."""
        x = x.double()
        axes = x.new_empty(x.shape[1], 0)
        if self.axes:
            rest = x - x.mean(dim=0)
            axes = torch.linalg.eigh(rest.T @ rest).eigenvectors[:, -self.axes :]
        return _along(axes, x), axes

    def score(self, state: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """Distances [n]."""
        samples, axes = state
        k = min(self.k, len(samples))

        def kth(some: Tensor) -> Tensor:
            return squared(_along(axes, some), samples).kthvalue(k, dim=1).values.sqrt()

        return by_block(x.double(), kth)


def _along(axes: Tensor, x: Tensor) -> Tensor:
    return x @ axes if axes.shape[1] else x


class Logistic(Section):
    """FedAUX: log-odds of being another's sample, by logistic regression against the proxy set.

    The log of the density ratio, up to a constant. Samples are divided by the largest norm.
    Source: Sattler et al., arXiv 2102.02514; penalty 0.01 as there, here of the mean
    loss. Deviation: no noise on the weights of the regression, so the score has no guarantee.
    """

    name: Literal["logistic"] = "logistic"
    penalty: float = Field(0.01, gt=0)
    space: Literal["pixels", "features"] = "features"
    needs_public: ClassVar[bool] = True

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Weights [d] and offset; zeros where nobody else gave a sample."""
        from sklearn.linear_model import LogisticRegression

        if public is None or len(public) == 0:
            return x.new_zeros(x.shape[1], dtype=torch.float64), 0.0
        both = torch.cat([x, public]).double()
        scale = float(torch.linalg.vector_norm(both, dim=1).max()) or 1.0
        theirs = torch.arange(len(both)) >= len(x)
        model = LogisticRegression(C=1 / (self.penalty * len(both)), tol=1e-6, max_iter=1000)
        model.fit((both / scale).cpu().numpy(), theirs.numpy())
        weights = torch.from_numpy(model.coef_[0] / scale).to(x.device)
        return weights, float(model.intercept_[0])

    def score(self, state: tuple[Tensor, float], x: Tensor) -> Tensor:
        """Log-odds [n]."""
        weights, offset = state
        return x.double() @ weights + offset

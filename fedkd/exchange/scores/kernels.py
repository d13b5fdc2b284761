"""Densities and density ratios by Gaussian kernels: KDE, KuLSIF, uLSIF.

k(a, b) = exp(-|a - b|^2 / (2 bandwidth^2)). A bandwidth that is not given is the median distance
between private samples (at most `SEEN` of them), the usual heuristic. The guard, for ratios: one so
small that private samples do not see each other is refused, for then all scores are one number, 0,
and a threshold accepts everything or nothing.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.exchange.scores.space import by_block, squared
from fedkd.section import Section

SEEN = 500
Bandwidth = Annotated[float | None, Field(gt=0)]
State = tuple[Tensor, Tensor, float]
"""Points [k, d], their weights [k], and the bandwidth."""


def bandwidth(x: Tensor, given: float | None, generator: torch.Generator) -> float:
    """The given bandwidth or the median distance between samples of x [n, d]; 1 if that is 0.

    Raises: FedkdError for one under which half of the samples are alone in float64.
    """
    order = torch.randperm(len(x), generator=generator)[:SEEN].to(x.device)
    apart = squared(x[order], x[order])
    apart.fill_diagonal_(math.inf)
    if given is None:
        some = apart[apart.isfinite()]
        return (float(some.median()) if len(some) else 0.0) ** 0.5 or 1.0
    nearest = float(apart.min(dim=1).values.median())
    if math.isfinite(nearest) and math.exp(-nearest / (2 * given**2)) == 0:
        raise FedkdError(
            "method.score.bandwidth is so small that no private sample is near another",
            value=given,
            allowed=f"about {nearest**0.5:.3g} and more",
            fix="raise it, or leave it out",
        )
    return given


def _kernel(x: Tensor, points: Tensor, width: float) -> Tensor:
    return (squared(x, points) / (-2 * width**2)).exp()


class KDE(Section):
    """Minus the log-density of the private samples, by Gaussian kernels.

    By log-sum-exp, so that far samples are told apart where their density is 0 in floats. Up to a
    constant. Source: Parzen 1962.
    """

    name: Literal["kde"] = "kde"
    bandwidth: Bandwidth = None
    space: Literal["pixels", "features"] = "pixels"
    needs_public: ClassVar[bool] = False

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> State:
        """The samples themselves."""
        width = self.bandwidth or bandwidth(x, None, generator)
        return x, x.new_full((len(x),), 1 / len(x), dtype=torch.float64), width

    def score(self, state: State, x: Tensor) -> Tensor:
        """-log of the mean kernel [n]."""
        points, weights, width = state
        log_weights = weights.log()
        return by_block(
            x,
            lambda some: -(squared(some, points) / (-2 * width**2) + log_weights).logsumexp(dim=1),
        )


class _Ratio(Section):
    """What density-ratio scores have in common: they say minus the ratio own / others."""

    name: str
    bandwidth: Bandwidth = None
    against: Literal["uniform", "public"] = "uniform"
    """The denominator: uniform on the box of the private samples, or the others' proxy samples."""
    auxiliary: int = Field(250, ge=1)
    """Samples of the denominator, if there are so many."""
    space: Literal["pixels", "features"] = "pixels"

    @property
    def needs_public(self) -> bool:
        """Whether `fit` looks at the others' proxy samples."""
        return self.against == "public"

    def score(self, state: State, x: Tensor) -> Tensor:
        """Minus the estimated ratio [n]."""
        points, weights, width = state
        return by_block(x, lambda some: -(_kernel(some, points, width) @ weights))

    def _others(self, x: Tensor, generator: torch.Generator, public: Tensor | None) -> Tensor:
        """Samples of the denominator; uniform where nobody else gave any."""
        if self.against == "public" and public is not None and len(public):
            order = torch.randperm(len(public), generator=generator)[: self.auxiliary]
            return public[order.to(public.device)].double()
        draws = torch.rand(self.auxiliary, x.shape[1], generator=generator, dtype=torch.float64)
        low, high = x.double().amin(dim=0), x.double().amax(dim=0)
        return low + draws.to(x.device) * (high - low)


class KuLSIF(_Ratio):
    """Selective-FD: kernel least-squares density ratio, own over uniform; cubic in `auxiliary`.

    With n samples u of the denominator and m private y: (K_uu / n + penalty I) a =
    -K_uy 1 / (n m penalty), r(x) = sum of a_i k(x, u_i) + sum of k(x, y_j) / (m penalty). Solved by
    Cholesky; the released code multiplies by the matrix.
    Source: Kanamori, Suzuki, Sugiyama, Machine Learning 2012; Shao et al., Nature
    Communications 2024. Deviations: all private samples are known, there the first 5 %; the box is
    that of the private samples; penalty n^(-1/2) as there.
    """

    name: Literal["kulsif"] = "kulsif"

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> State:
        """Points: the denominator's and the private ones, with their weights."""
        width = bandwidth(x, self.bandwidth, generator)
        others = self._others(x, generator, public)
        n, m = len(others), len(x)
        penalty = n**-0.5
        system = _kernel(others, others, width) / n
        system.diagonal().add_(penalty)
        seen = by_block(others, lambda some: _kernel(some, x, width).sum(dim=1))
        right = -seen / (n * m * penalty)
        weights = torch.cholesky_solve(right[:, None], torch.linalg.cholesky(system)).squeeze(1)
        own = weights.new_full((m,), 1 / (m * penalty))
        return torch.cat([others, x.double()]), torch.cat([weights, own]), width


class ULSIF(_Ratio):
    """Least-squares density ratio on `basis` kernels at private samples: linear in all samples.

    r(x) = sum of max(0, a_l) k(x, c_l) with (H + penalty I) a = h; H is the mean of products of
    kernels over the denominator, h the mean of kernels over the private samples.
    Source: Kanamori, Hido, Sugiyama, JMLR 2009. Deviation: penalty n^(-1/2), as
    KuLSIF's, and no cross-validation.
    """

    name: Literal["ulsif"] = "ulsif"
    basis: int = Field(100, ge=1)

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> State:
        """Points: `basis` of the private samples, with their weights."""
        width = bandwidth(x, self.bandwidth, generator)
        others = self._others(x, generator, public)
        order = torch.randperm(len(x), generator=generator)[: self.basis]
        centres = x[order.to(x.device)].double()
        of_others = _kernel(others, centres, width)
        system = of_others.T @ of_others / len(others)
        system.diagonal().add_(len(others) ** -0.5)
        mine = by_block(centres, lambda some: _kernel(some, x, width).mean(dim=1))
        weights = torch.cholesky_solve(mine[:, None], torch.linalg.cholesky(system)).squeeze(1)
        return centres, weights.clamp_min(0), width

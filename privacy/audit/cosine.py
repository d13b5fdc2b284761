"""Epsilon from canary clients: clients that upload a random direction and nothing else.

A canary's score is the cosine between its direction and what the observer sees (a consensus, or a
student's logits on the proxy set, as one vector of `dim` numbers). For a canary that took no part
the distribution is known: density proportional to (1 - t^2)^((dim - 3) / 2), whatever is observed,
so no run without canaries is needed.

Source: Andrew et al. 2024, arXiv:2302.03098, section 4. Deviations: the null is exact in any
dimension, and the bound's threshold is fixed on a split instead of the best of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaln
from scipy.stats import beta, norm

from fedkd.errors import FedkdError
from privacy.audit.epsilon import Claim, LowerBound, from_rates, halves
from privacy.audit.intervals import above

TAILS = 12.0
"""Standard deviations on either side that integrals reach: the rest has a mass below 1e-32."""
STEPS = 20_001
"""Points of each distribution's grid."""
FEWEST = 8
"""Cosines that reach a threshold worth testing: the other half hardly reaches a higher one."""
MOST_EPSILON = 2.0**20


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An empirical epsilon: what a fitted distribution would imply. It may be too low or too high.

    It is no bound, has no confidence, and contradicts no ledger.
    """

    epsilon: float
    delta: float
    mean: float
    std: float
    """Of the canaries' cosines; the null has mean 0 and variance 1 / dim."""

    def __str__(self) -> str:
        return f"estimate, not a bound: epsilon {self.epsilon:.4g} at delta {self.delta:g}"


def estimate(cosines: NDArray[np.float64], dim: int, delta: float) -> Estimate:
    """The epsilon of a normal distribution fitted to `cosines` [n] against the null.

    Empirical, and too high with few canaries, as delta looks far into tails that are fitted: for an
    epsilon of 1.99 its median was 2.8 over 100 canaries and 2.3 over 1000.
    Raises: FedkdError for a delta that is not above 0, fewer than two different cosines,
    or what is no cosine.
    """
    _check(cosines, dim)
    if not 0 < delta < 1:
        raise FedkdError("no delta for an estimate", value=delta, allowed="above 0, below 1")
    mean, std = float(np.mean(cosines)), float(np.std(cosines, ddof=1))
    if std == 0:
        raise FedkdError("all cosines are equal, so there is nothing to fit", value=mean)
    shape = (dim - 1) / 2
    # The null has no mass beyond 1, so the fit must have none either.
    ends = np.nextafter([-1.0, 1.0], 0)
    spread = np.linspace(-TAILS, TAILS, STEPS)
    grid = np.union1d(np.clip(spread / math.sqrt(dim), *ends), np.clip(mean + std * spread, *ends))
    null = beta.logpdf((1 + grid) / 2, shape, shape) - math.log(2)
    fitted = norm.logpdf(grid, mean, std) - math.log(np.diff(norm.cdf([-1, 1], mean, std))[0])
    return Estimate(
        epsilon=_epsilon_between(grid, null, fitted, delta), delta=delta, mean=mean, std=std
    )


def from_cosines(
    cosines: NDArray[np.float64], dim: int, claim: Claim, rng: np.random.Generator
) -> LowerBound:
    """A bound by the exact null for FPR and Clopper-Pearson for FNR; `cosines` [n >= 2].

    Guarantee: at the claimed confidence, for independent cosines. Half of them choose the
    threshold, the others give the bound.
    Raises: FedkdError for fewer than two cosines, or what is none.
    """
    _check(cosines, dim)
    choosing, testing = halves(cosines, rng)
    # Between two cosines a higher threshold only lowers FPR, so the best is at a cosine.
    candidates = np.sort(choosing)[: max(1, len(choosing) - FEWEST + 1)]
    missed = above(np.arange(len(candidates)), len(choosing), claim.alpha)
    found = from_rates(null_log_tail(candidates, dim), missed, claim.delta)
    threshold = float(candidates[int(np.argmax(found))])
    fnr = above((testing < threshold).sum(), len(testing), claim.alpha)
    epsilon = float(from_rates(null_log_tail(threshold, dim), fnr, claim.delta))
    return LowerBound(
        epsilon=max(0.0, epsilon),
        claim=claim,
        method="cosines of canary clients against their exact null, threshold fixed on a split",
        at=threshold,
        assumes="independent cosines, so a dim far above the number of canaries",
    )


def null_log_tail(cosine: ArrayLike, dim: int) -> NDArray[np.float64]:
    """The logarithm of P[cosine of an unseen canary >= `cosine`], or of a bound just above it.

    Where the probability is too small for a float, (1 - t^2)^((d - 1) / 2) / (t (d - 1) B) bounds
    it, B = B((d - 1) / 2, 1 / 2): the density times u / t >= 1, integrated.
    """
    t, shape = np.asarray(cosine, dtype=np.float64), (dim - 1) / 2
    tail = beta.sf((1 + t) / 2, shape, shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = shape * np.log1p(-(t**2)) - np.log(t * (dim - 1)) - betaln(shape, 0.5)
        found: NDArray[np.float64] = np.where(tail > 1e-250, np.log(tail), bound)
    return found


def _epsilon_between(
    grid: NDArray[np.float64], one: NDArray[np.float64], other: NDArray[np.float64], delta: float
) -> float:
    """The epsilon at `delta` of two log-densities on a grid, in the worse direction."""

    def excess(epsilon: float) -> float:
        parts = []
        for p, q in ((one, other), (other, one)):
            gap = np.minimum(epsilon + q - p, 0)
            parts.append(np.trapezoid(-np.exp(p) * np.expm1(gap), grid))
        return float(max(parts)) - delta

    if excess(0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > MOST_EPSILON:
            return math.inf
    return float(brentq(excess, 0, high, xtol=1e-9))


def _check(cosines: NDArray[np.float64], dim: int) -> None:
    if dim < 3:
        raise FedkdError("too few dimensions for a null", value=dim, allowed="3 or more")
    if len(cosines) < 2 or not (np.abs(cosines) <= 1).all():
        raise FedkdError("at least two cosines are needed, each from -1 to 1", value=cosines[:8])

"""Canary clients: the null of their cosines, the estimate of epsilon, and its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from numpy.typing import NDArray
from scipy import integrate, stats

from bounds import CLAIM, DELTA, MOST_WRONG, PURE, RUNS, ledger
from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit import cosine
from privacy.audit.cosine import estimate, from_cosines, null_log_tail
from privacy.audit.epsilon import (
    contradiction,
)


@pytest.mark.parametrize("dim", [3, 4, 50, 3000])
@pytest.mark.parametrize("deviations", [-1.0, 0.0, 0.5, 2.0, 6.0])
def test_the_null_of_a_cosine_is_the_integral_of_its_density(dim: int, deviations: float) -> None:
    at = min(deviations / math.sqrt(dim), 0.99)
    end = min(1.0, 12 / math.sqrt(dim))

    def mass(low: float) -> float:
        shape = (dim - 3) / 2
        return float(integrate.quad(lambda t: (1 - t * t) ** shape, low, end, epsabs=0)[0])

    expected = math.log(mass(at) / mass(-end))
    assert float(null_log_tail(at, dim)) == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("dim", [5000, 10**6])
def test_where_a_float_holds_no_probability_the_null_is_bounded_from_just_above(dim: int) -> None:
    shape = (dim - 3) / 2
    for t in (0.5, 0.9):
        assert stats.norm.sf(t * math.sqrt(dim)) < 1e-250
        whole = math.log(math.sqrt(math.pi)) + math.lgamma(shape + 1) - math.lgamma(shape + 1.5)
        rest = integrate.quad(
            lambda u, t=t: math.exp(shape * (math.log1p(-u * u) - math.log1p(-t * t))),
            t,
            min(1 - 1e-12, t + 200 / dim),
            epsabs=0,
        )[0]
        exact = shape * math.log1p(-t * t) + math.log(rest) - whole
        assert exact <= float(null_log_tail(t, dim)) + 1e-6
        assert float(null_log_tail(t, dim)) == pytest.approx(exact, abs=0.01)


def test_cosines_with_random_directions_have_that_null() -> None:
    rng, dim = stream(1, "test"), 20
    directions = rng.normal(size=(4000, dim))
    cosines = directions[:, 0] / np.linalg.norm(directions, axis=1)
    tail = np.exp(null_log_tail(cosines, dim))
    assert stats.kstest(tail, "uniform").pvalue > 0.001


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
def test_the_estimate_of_shifted_gaussians_is_the_analytic_epsilon(mu: float) -> None:
    dim = 10**6
    base = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    cosines = (mu + base / np.std(base, ddof=1)) / math.sqrt(dim)
    found = estimate(cosines, dim, DELTA)
    assert found.mean == pytest.approx(mu / math.sqrt(dim))
    assert found.std == pytest.approx(1 / math.sqrt(dim))
    assert found.epsilon == pytest.approx(get_epsilon_gaussian(1 / mu, DELTA), rel=1e-3)
    assert "not a bound" in str(found)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.2, 2.0])
def test_the_estimate_of_gaussians_of_two_widths(ratio: float) -> None:
    """At the epsilon found, the worse of the two hockey-stick divergences is delta."""
    dim, mu = 10**8, 1.0
    base = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    cosines = (mu + ratio * base / np.std(base, ddof=1)) / math.sqrt(dim)
    eps = estimate(cosines, dim, DELTA).epsilon
    null, fitted = stats.norm(0, 1), stats.norm(mu, ratio)

    def divergence(p: stats.rv_continuous, q: stats.rv_continuous) -> float:
        x = np.linspace(-30, 30, 2_000_001)
        return float(np.trapezoid(np.maximum(0, p.pdf(x) - math.exp(eps) * q.pdf(x)), x))

    worse = max(divergence(null, fitted), divergence(fitted, null))
    assert worse == pytest.approx(DELTA, rel=2e-3)


def clients(multiplier: float, n: int, dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Cosines of n canary clients, each a unit vector, with their noisy sum."""
    canaries = rng.normal(size=(n, dim))
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    seen = canaries.sum(axis=0) + rng.normal(0, multiplier, dim)
    found: NDArray[np.float64] = canaries @ seen / np.linalg.norm(seen)
    return found


def test_canary_clients_estimate_the_epsilon_of_the_sum() -> None:
    accounted = get_epsilon_gaussian(2.0, DELTA)
    found, bounds = [], []
    for run in range(20):
        rng = stream(run, "test")
        cosines = clients(2.0, 1000, 4000, rng)
        found.append(estimate(cosines, 4000, DELTA).epsilon)
        bounds.append(from_cosines(cosines, 4000, CLAIM, rng))
    assert np.mean(found) == pytest.approx(accounted, rel=0.25)
    for lower in bounds:
        contradiction(lower, ledger(2.0))
    with pytest.raises(FedkdError, match="found more than the ledger allows"):
        contradiction(
            from_cosines(
                clients(0.4, 400, 4000, stream(1, "test")), 4000, CLAIM, stream(2, "test")
            ),
            ledger(4.0),
        )


def test_bounds_from_cosines_are_wrong_no_more_often_than_they_claim() -> None:
    """Canaries that are seen plainly or not at all: then all is a matter of one chance."""
    dim, share, wrong, tight = 10, 0.8, 0, []
    tail = float(null_log_tail(0.99, dim))
    truth = math.log(share) - tail
    for run in range(RUNS):
        rng = stream(run, "test")
        cosines = np.where(rng.random(200) < share, 0.99, -0.99)
        found = from_cosines(cosines, dim, PURE, rng).epsilon
        tight.append(found)
        wrong += found > truth
    assert wrong <= MOST_WRONG
    assert truth - np.mean(tight) < 0.3


def test_cosines_that_are_none_are_refused() -> None:
    for cosines, dim in (([0.1, 1.2], 10), ([0.1], 10), ([0.1, 0.2], 2), ([0.1, math.nan], 10)):
        with pytest.raises(FedkdError, match=r"cosines|dimensions"):
            estimate(np.array(cosines), dim, DELTA)
    with pytest.raises(FedkdError, match="all cosines are equal"):
        estimate(np.array([0.1, 0.1]), 10, DELTA)
    with pytest.raises(FedkdError, match="no delta for an estimate"):
        estimate(np.array([0.1, 0.2]), 10, 0.0)


def test_cosines_that_nothing_explains_have_no_finite_epsilon() -> None:
    assert estimate(np.array([1 - 1e-7, 1 - 2e-7]), 10**6, DELTA).epsilon > 1e6 / 4
    assert cosine.MOST_EPSILON > 1e6

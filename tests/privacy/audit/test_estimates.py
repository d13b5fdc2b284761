"""Exposure by interpolation and extrapolation: brute force, theory, and fits that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.estimates import extrapolated, interpolated, null_error, ranks
from privacy.audit.exposure import NULL_BITS

LOSSES = st.lists(st.integers(0, 9), min_size=1, max_size=20).map(
    lambda values: np.array(values, dtype=np.float64)
)


@given(LOSSES, LOSSES)
def test_exposures_come_in_the_order_of_the_canaries(
    losses: NDArray[np.float64], references: NDArray[np.float64]
) -> None:
    expected = [math.log2(len(references)) - math.log2(1 + (references <= x).sum()) for x in losses]
    np.testing.assert_allclose(interpolated(losses, references), expected, atol=1e-12)
    assert ranks(losses, references).tolist() == [1 + (references <= x).sum() for x in losses]


def test_interpolation_is_capped_and_puts_ties_behind() -> None:
    references = np.arange(1024.0)
    found = interpolated(np.array([2000.0, -5.0, 0.0]), references)
    assert found.tolist() == pytest.approx([-math.log2(1025 / 1024), 10, 9])


def test_what_is_not_remembered_has_1_44_bits_within_the_error() -> None:
    rng = stream(1, "test")
    n, n_references, runs = 200, 1000, 400
    means = []
    for _ in range(runs):
        losses = rng.normal(size=n + n_references)
        means.append(interpolated(losses[:n], losses[n:]).mean())
    error = null_error(n, n_references)
    # In a space of 1000 the mean is lower by about log2(2 pi 1000) / 2000 bits and more by none.
    assert abs(np.mean(means) - NULL_BITS) < 4 * error / math.sqrt(runs) + 0.01
    assert np.std(means) == pytest.approx(error, rel=0.12)
    # The error without what the references share would be too small.
    assert np.std(means) > 1.03 * null_error(n)


def test_extrapolation_agrees_with_ranks_where_there_are_references() -> None:
    rng = stream(1, "test")
    references = stats.skewnorm.rvs(3, loc=40, scale=6, size=20_000, random_state=rng)
    losses = np.quantile(references, [0.9, 0.5, 0.01])
    found = extrapolated(losses, references, 10**9)
    assert found.bits is not None
    np.testing.assert_allclose(found.bits, interpolated(losses, references), atol=0.1)
    assert found.distance < 0.01
    assert found.p_value > 0.05


def test_extrapolation_goes_beyond_the_references_by_the_logarithm() -> None:
    """Far out, where the cdf is 0 as a float, up to the cap and not beyond."""
    references = stream(1, "test").normal(100, 5, size=20_000)
    losses = np.array([72.0, 50.0, -200.0])
    found = extrapolated(losses, references, 2**900)
    assert found.bits is not None
    shape, loc, scale = stats.skewnorm.fit(references)

    def bits(loss: float) -> float:
        log_top = stats.skewnorm.logpdf(loss, shape, loc, scale)
        mass = integrate.quad(
            lambda x: math.exp(stats.skewnorm.logpdf(x, shape, loc, scale) - log_top),
            loss - 30,
            loss,
            epsabs=0,
        )[0]
        return float(-(log_top + math.log(mass)) / math.log(2))

    assert found.bits[:2].tolist() == pytest.approx([bits(72.0), bits(50.0)], rel=1e-4)
    assert 20 < found.bits[0] < 40
    assert found.bits[2] == 900
    capped = extrapolated(losses, references, 10**4).bits
    assert capped is not None
    np.testing.assert_allclose(capped, math.log2(10**4))


@pytest.mark.parametrize("shape", ["exponential", "two humps"])
def test_a_bad_fit_is_refused_and_says_how_bad(shape: str) -> None:
    rng = stream(1, "test")
    references = {
        "exponential": rng.exponential(size=3000),
        "two humps": rng.normal(np.repeat([0, 6], 1500)),
    }[shape]
    found = extrapolated(np.array([-1.0]), references, 10**6)
    assert found.bits is None
    assert found.distance > 0.05
    assert found.p_value < 1e-6


def test_losses_that_are_none_are_refused() -> None:
    with pytest.raises(FedkdError, match="scores that are no numbers"):
        interpolated(np.array([math.nan]), np.arange(3.0))
    with pytest.raises(FedkdError, match="there are no scores"):
        extrapolated(np.array([1.0]), np.array([]), 10)

"""Confidence limits: SciPy's own test, and how often the truth is within them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from fedkd.rng import stream
from privacy.audit.intervals import above, below, half_width


@given(st.integers(0, 30), st.integers(1, 30))
def test_limits_of_a_probability_are_scipys(hits: int, n: int) -> None:
    hits = min(hits, n)
    exact = binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert float(below(hits, n, 0.025)) == pytest.approx(exact.low, abs=1e-12)
    assert float(above(hits, n, 0.025)) == pytest.approx(exact.high, abs=1e-12)


@given(st.integers(2, 12), st.integers(0, 999), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_of_a_mean_is_that_of_scipys_test(n: int, seed: int, level: float) -> None:
    values = stream(seed, "test").normal(3, 2, n)
    expected = ttest_1samp(values, 0).confidence_interval(level)
    half = half_width(values, level)
    assert half == pytest.approx((expected.high - expected.low) / 2)


def test_three_seeds_hold_the_truth_as_often_as_is_said() -> None:
    values = stream(1, "test").normal(0, 1, (4000, 3))
    halves = np.array([half_width(row) for row in values])
    held = (np.abs(values.mean(axis=1)) <= halves).mean()
    assert held == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 4000) ** 0.5)
    errors = values.std(axis=1, ddof=1) / 3**0.5
    assert (np.abs(values.mean(axis=1)) <= 1.96 * errors).mean() < 0.85  # the normal factor


def test_of_fewer_than_two_there_is_no_interval() -> None:
    assert half_width([]) is None
    assert half_width([0.7]) is None
    assert half_width([0.7, 0.7]) == 0.0

"""The audit of one run: p-values as written, the power of the reference, guesses and ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bounds import DELTA, PURE, RECORD
from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.epsilon import (
    Claim,
)
from privacy.audit.one_run import epsilon_of, from_guesses, guess, one_run, p_value


@pytest.mark.parametrize(
    ("guesses", "right", "expected"),
    [(20, 20, 1.79), (100, 100, 3.47), (1000, 1000, 5.78), (100, 90, 1.63), (1000, 900, 2.02)],
)
def test_power_is_that_of_the_reference(guesses: int, right: int, expected: float) -> None:
    assert epsilon_of(1000, guesses, right, DELTA, 0.05) == pytest.approx(expected, abs=0.005)


@given(st.integers(1, 40), st.data(), st.floats(0, 30), st.sampled_from([0, 1e-6, 1e-3]))
def test_p_values_are_those_of_the_sums_as_written(
    guesses: int, data: st.DataObject, eps: float, delta: float
) -> None:
    right, m = data.draw(st.integers(0, guesses)), 2 * guesses
    q = 1 / (1 + math.exp(-eps))
    beta = stats.binom.sf(right - 1, guesses, q)
    parts = [
        stats.binom.pmf(range(right - i, right), guesses, q).sum() / i for i in range(1, right + 1)
    ]
    expected = min(1, beta + 2 * m * delta * max(parts, default=0))
    assert p_value(m, guesses, right, delta, eps) == pytest.approx(expected, rel=1e-6)
    more = p_value(m, guesses, right, delta, eps + 0.1)
    assert more >= p_value(m, guesses, right, delta, eps) - 1e-12


def test_without_delta_all_guesses_right_have_a_closed_form() -> None:
    q = 0.05 ** (1 / 300)
    assert epsilon_of(300, 300, 300, 0.0, 0.05) == pytest.approx(math.log(q / (1 - q)), abs=2e-6)
    # Only such an alpha as this has an epsilon at which a float of q would be 1.
    assert epsilon_of(1, 1, 1, 0.0, 1 - 1e-9) == pytest.approx(math.log(1e9), abs=1e-4)


def test_delta_costs_and_is_never_assumed() -> None:
    by_delta = [epsilon_of(1000, 100, 95, d, 0.05) for d in (0, 1e-6, 1e-5, 1e-4)]
    assert by_delta == sorted(by_delta, reverse=True)
    assert by_delta[3] < by_delta[0] - 0.05
    with pytest.raises(TypeError, match="delta"):
        Claim(protects=RECORD)  # type: ignore[call-arg]
    with pytest.raises(FedkdError, match="delta is too large for an audit in one run"):
        epsilon_of(1000, 100, 95, 1e-3, 0.05)


def test_guesses_of_both_signs_and_abstentions() -> None:
    rng = stream(1, "test")
    scores = np.array([3.0, -1.0, 2.0, 0.0, 1.0])
    assert guess(scores, 2, 1, rng).tolist() == [1, -1, 1, 0, 0]
    assert guess(scores, 0, 2, rng).tolist() == [0, -1, 0, -1, 0]
    assert guess(scores, 0, 0, rng).tolist() == [0] * 5
    inside = np.array([True, False, False, True, True])
    found = from_guesses(np.array([1, -1, 1, 0, 0], dtype=np.int8), inside, PURE)
    assert found.at == 3
    assert found.epsilon == epsilon_of(5, 3, 2, 0.0, PURE.alpha) == 0
    with pytest.raises(FedkdError, match="as many guesses cannot be made"):
        guess(scores, 3, 3, rng)
    with pytest.raises(FedkdError, match="no number of guesses"):
        one_run(scores, inside, [], PURE, rng)


def test_the_order_of_the_canaries_decides_no_tie() -> None:
    """Members first and all scores equal: a stable sort would guess every coin."""
    rng, inside = stream(1, "test"), np.arange(1000) < 500
    found = [one_run(np.zeros(1000), inside, [(200, 200)], PURE, rng).epsilon for _ in range(50)]
    assert max(found) < 0.5
    assert np.mean(np.array(found) == 0) > 0.8

"""Signals against loops in mpmath's arithmetic, and where float32 or subtraction would tie."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.signals import (
    FLOOR,
    agreement,
    averaged,
    moments,
    phi,
    phi_of_labels,
    without,
)

LOGITS = arrays(np.float64, (6, 4), elements=st.floats(-80, 80))
LABELS = arrays(np.int64, 6, elements=st.integers(0, 3))


def slow_phi(logits: np.ndarray, label: int) -> float:
    """ln p - ln(1 - p), with 120 digits: 1 - p leaves out up to 70 of them."""
    with mpmath.workdps(120):
        e = [mpmath.exp(mpmath.mpf(float(z))) for z in logits]
        p = e[label] / mpmath.fsum(e)
        return float(mpmath.log(p) - mpmath.log(1 - p))


@given(LOGITS, LABELS)
@settings(deadline=None, max_examples=50)
def test_phi_is_the_log_odds_of_the_label(logits: np.ndarray, y: np.ndarray) -> None:
    slow = [slow_phi(row, label) for row, label in zip(logits, y, strict=True)]
    np.testing.assert_allclose(phi(logits, y), slow, rtol=1e-12, atol=1e-12)


def test_the_surest_of_the_sure_do_not_tie() -> None:
    """1 - p of float32 is 0 for all of these, that of float64 from 37 on; the floor is at 69."""
    gaps = np.arange(20.0, 69.0)
    logits = np.stack([gaps, np.zeros_like(gaps)], axis=1)
    subtracted = 1 - torch.softmax(torch.from_numpy(logits).float(), dim=1)[:, 0]
    assert len(subtracted.unique()) == 1
    y = np.zeros(len(gaps), np.int64)
    np.testing.assert_allclose(phi(logits, y), gaps, rtol=1e-14)
    soft = torch.softmax(torch.from_numpy(logits).float(), dim=1)  # an upload, in float32
    np.testing.assert_allclose(phi_of_labels(soft, y), gaps, rtol=1e-5)
    assert phi_of_labels([[1.0, 0.0]], [0])[0] == pytest.approx(-math.log(FLOOR))


@given(LOGITS, LABELS, st.sampled_from([1.0, 2.0, 20.0]))
@settings(deadline=None, max_examples=50)
def test_a_temperature_is_undone(logits: np.ndarray, y: np.ndarray, temperature: float) -> None:
    hot = torch.softmax(torch.from_numpy(logits) / temperature, dim=1)
    got = phi_of_labels(hot, y, temperature=temperature, floor=1e-300)
    np.testing.assert_allclose(got, phi(logits, y), rtol=1e-9, atol=1e-9)


def test_one_hot_labels_score_by_the_floor() -> None:
    right, wrong = phi_of_labels(np.eye(5)[[2, 3]], [2, 2], floor=1e-8)
    assert right == pytest.approx(-math.log(4e-8))
    assert wrong == pytest.approx(math.log(1e-8 / (1 + 3e-8)))


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"floor": 0.0}, {"floor": math.nan}])
def test_what_is_not_positive_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(FedkdError, match="must be positive"):
        phi_of_labels(np.eye(2), [0, 1], **setting)


def test_no_answer_and_no_label_are_no_evidence() -> None:
    logits = np.zeros((2, 3, 4))
    logits[0, 1] = np.nan
    got = phi(logits, [[0, 1, -100], [0, 1, 2]])
    assert np.isnan(got).tolist() == [[False, True, True], [False, False, False]]
    np.testing.assert_allclose(got[~np.isnan(got)], -math.log(3))


def test_moments_and_averages_leave_out_what_is_missing() -> None:
    signals = stream(1, "test").normal(size=(7, 20))
    signals[stream(2, "test").random((7, 20)) < 0.4] = np.nan
    signals[:, 3] = np.nan
    found = moments(signals)
    for column, n, mean, squares in zip(signals.T, *found, strict=True):
        there = column[~np.isnan(column)]
        assert n == len(there)
        if n == 0:
            assert math.isnan(mean)
            assert squares == 0
            continue
        assert mean == pytest.approx(there.mean())
        assert squares == pytest.approx(there.var() * n)
    np.testing.assert_array_equal(averaged(signals), found.mean)
    answers = signals.reshape(7, 5, 4)
    assert averaged(answers).shape == (5, 4)


def test_agreement_counts_rounds() -> None:
    """Three targets over four rounds: always right, right in one of two answers, never answered."""
    values = np.zeros((4, 3, 3))
    values[:, 0, 2] = 1
    values[0, 1, 0] = values[1, 1, 1] = 1
    values[2:, 1] = np.nan
    values[:, 2] = np.nan
    got = agreement(values, [2, 0, 0])
    np.testing.assert_allclose(got, [math.log(4.5 / 0.5), 0.0, math.nan])


def test_without_hides_what_was_learnt() -> None:
    members = np.array([[True, False], [False, False]])
    np.testing.assert_array_equal(without(np.ones((2, 2)), members), [[np.nan, 1], [1, 1]])

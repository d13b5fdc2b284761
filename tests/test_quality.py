"""Calibration, Brier score, recall and the worst off, against loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, recall_score

from fedkd import training
from fedkd.data.dataset import NO_LABEL
from fedkd.quality import N_BINS, brier, calibration, recalls, worst
from fedkd.rng import stream

QUICK = settings(deadline=None, max_examples=80)
ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)
LOGITS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9),
    elements=st.floats(-8, 8, width=32),
)


def drawn(logits: NDArray[np.float32], data: st.DataObject) -> NDArray[np.int64]:
    """A label for each row."""
    n, c = logits.shape
    return data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, c - 1)))


@given(ANSWERS)
@QUICK
def test_calibration_is_counted_by_hand(answers: list[tuple[float, bool]]) -> None:
    n = len(answers)
    gap_of_bin: dict[int, list[float]] = {b: [] for b in range(N_BINS)}
    for confidence, right in answers:
        at = min(int(confidence * N_BINS), N_BINS - 1)
        for b, gaps in gap_of_bin.items():
            gaps.append(right - confidence if b == at else 0.0)
    ece = sum(abs(math.fsum(gaps) / n) for gaps in gap_of_bin.values())
    errors = [float(np.std(gaps)) / math.sqrt(n) for gaps in gap_of_bin.values()]
    spread = 1.96 * math.sqrt(sum(error**2 for error in errors))
    low = ece - sum(errors) * math.sqrt(2 / math.pi) - spread
    confidence, right = (np.array(column, float) for column in zip(*answers, strict=True))
    expected = (ece, max(low, 0), min(ece + spread, 1))
    assert calibration(confidence, right) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("twist", [0.0, 0.03, 0.1, 0.3])
def test_the_interval_holds_the_true_error(twist: float) -> None:
    """A model that is right with probability confidence - twist * confidence^2: many test sets."""
    rng, n, times = stream(5, "test", purpose=f"calibration {twist}"), 1000, 400
    held = 0
    grid = rng.beta(5, 2, 2_000_000)
    bins = np.minimum((grid * N_BINS).astype(int), N_BINS - 1)
    truth = np.abs(np.bincount(bins, twist * grid**2, N_BINS) / len(grid)).sum()
    for _ in range(times):
        confidence = rng.beta(5, 2, n)
        right = rng.random(n) < confidence - twist * confidence**2
        found = calibration(confidence, right.astype(float))
        assert 0 <= found.low <= found.ece <= found.high <= 1
        held += found.low <= truth <= found.high
    assert held >= 0.95 * times - 2 * math.sqrt(0.95 * 0.05 * times)
    assert truth == 0 or found.high - found.low < 0.12  # and it says something


def test_a_sure_model_that_is_wrong_is_as_far_off_as_can_be() -> None:
    assert calibration(np.ones(50), np.zeros(50)) == (1, 1, 1)
    assert calibration(np.ones(50), np.ones(50)) == (0, 0, 0)


@given(LOGITS, st.data())
@QUICK
def test_brier_is_scikit_learn_s(logits: NDArray[np.float32], data: st.DataObject) -> None:
    y, probs = drawn(logits, data), torch.from_numpy(logits).softmax(dim=1)
    found = brier(probs, torch.from_numpy(y)).double().mean()
    even = probs.double() / probs.double().sum(dim=1, keepdim=True)
    classes = list(range(logits.shape[1]))
    expected = brier_score_loss(y, even.numpy(), labels=classes, scale_by_half=False)
    assert float(found) == pytest.approx(expected, abs=2e-5)


@given(LOGITS, st.data())
@QUICK
def test_recall_is_scikit_learn_s(logits: NDArray[np.float32], data: st.DataObject) -> None:
    y, c = drawn(logits, data), logits.shape[1]
    said = logits.argmax(axis=1)
    seen, hits = np.bincount(y, minlength=c), np.bincount(y[said == y], minlength=c)
    expected = recall_score(y, said, labels=range(c), average=None, zero_division=np.nan)
    found = recalls(hits, seen)
    assert [math.nan if one is None else one for one in found] == pytest.approx(
        expected.tolist(), nan_ok=True
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.integers(1, 20))
@QUICK
def test_the_worst_off_are_a_sorted_list_s_first(values: list[float], percents: int) -> None:
    n = max(1, -(-percents * len(values) // 100))
    assert worst(values, percents / 100) == pytest.approx(sum(sorted(values)[:n]) / n)


@given(LOGITS, st.data())
@QUICK
def test_grades_carry_confidence_and_brier(
    logits: NDArray[np.float32], data: st.DataObject
) -> None:
    y = drawn(logits, data)
    y[data.draw(hnp.arrays(bool, len(y)))] = NO_LABEL
    found = training.grade(torch.from_numpy(logits), torch.from_numpy(y))
    probs = np.exp(logits.astype(float))
    probs /= probs.sum(axis=1, keepdims=True)
    for row, label in enumerate(y.tolist()):
        squares = sum((p - (c == label)) ** 2 for c, p in enumerate(probs[row]))
        known = label != NO_LABEL
        assert float(found.confidence[row]) == pytest.approx(known * probs[row].max(), abs=1e-5)
        assert float(found.brier[row]) == pytest.approx(known * squares, abs=1e-5)

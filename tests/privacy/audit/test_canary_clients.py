"""Canary clients: their directions are uniform, can be uploaded, and are found in a consensus."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedkd import payload_answers
from fedkd.exchange.consensus import Consensus
from fedkd.rng import stream
from privacy.audit.canary_clients import (
    as_logits,
    as_probabilities,
    cosine,
    direction,
    joined,
)

SIZES = st.tuples(st.integers(2, 30), st.integers(2, 12), st.integers(0, 9), st.integers(0, 9))


@given(SIZES)
def test_a_direction_has_length_one_and_rows_that_sum_to_zero(
    where: tuple[int, int, int, int],
) -> None:
    found = direction(*where)
    assert found.shape == where[:2]
    assert np.linalg.norm(found) == pytest.approx(1)
    assert np.abs(found.sum(1)).max() < 1e-12
    assert np.array_equal(found, direction(*where))
    n_samples, n_classes, seed, number = where
    assert not np.array_equal(found, direction(n_samples, n_classes, seed, number + 1))
    assert not np.array_equal(found, direction(n_samples, n_classes, seed + 1, number))


@given(SIZES, st.floats(0.1, 100))
def test_what_it_uploads_is_valid_and_along_the_direction(
    where: tuple[int, int, int, int], bound: float
) -> None:
    found = direction(*where)
    n_samples, n_classes = where[:2]
    logits = as_logits(found, bound)
    assert np.linalg.norm(logits) == pytest.approx(bound, rel=1e-5)
    rows = as_probabilities(found)
    ids = np.arange(n_samples, dtype=np.int32)
    data = payload_answers.encode_answer(payload_answers.Answer(7, 1, ids, rows))
    payload_answers.decode_answer(
        data, client=7, round_=1, n_samples=n_samples, n_classes=n_classes, simplex=True
    )
    assert rows.min() == pytest.approx(0, abs=1e-6)  # no further
    for values in (rows, logits):
        assert cosine(found, Consensus(ids, values)) == pytest.approx(1, abs=1e-5)


def test_the_cosine_with_anything_else_is_that_of_a_random_direction() -> None:
    """In d = 6 * 2 dimensions t has density ~ (1 - t^2)^((d - 3) / 2): (t + 1) / 2 is a beta."""
    told = stream(1, "test").random((6, 3)).astype(np.float32)
    consensus = Consensus(np.array([0, 2, 3, 5, 8, 9], np.int32), told)
    found = [cosine(direction(10, 3, 1, k), consensus) for k in range(2000)]
    half = (6 * 2 - 1) / 2
    assert stats.kstest((np.array(found) + 1) / 2, "beta", (half, half)).pvalue > 0.01


def test_the_cosine_is_the_textbook_s_on_the_samples_told() -> None:
    rng = stream(2, "test")
    values, ids = rng.random((4, 5)).astype(np.float32), np.array([1, 2, 6, 7], np.int32)
    whole = direction(9, 5, 3, 0)
    a, b = whole[ids].ravel(), (values - values.mean(1, keepdims=True)).ravel().astype(np.float64)
    expected = a @ b / np.sqrt((a @ a) * (b @ b))
    assert cosine(whole, Consensus(ids, values)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("values", [np.zeros((0, 5)), np.full((3, 5), 0.2)])
def test_a_consensus_that_says_nothing_has_no_direction(values: np.ndarray) -> None:
    ids = np.arange(len(values), dtype=np.int32)
    assert cosine(direction(9, 5, 3, 0), Consensus(ids, values.astype(np.float32))) == 0


def test_the_joined_consensus_is_the_mean_with_them() -> None:
    rng = stream(3, "test")
    answers = [
        (np.array(ids, np.int32), rng.dirichlet(np.ones(4), len(ids)).astype(np.float32))
        for ids in ([0, 2], [1, 2, 3])
    ]
    canary = as_probabilities(direction(5, 4, 1, 0))
    found = joined(answers, [canary], 5, 4)
    assert found.ids.tolist() == [0, 1, 2, 3, 4]
    expected = [
        np.mean([canary[i], *(v[list(ids).index(i)] for ids, v in answers if i in ids)], 0)
        for i in range(5)
    ]
    assert np.allclose(found.values, expected, atol=1e-7)
    assert joined(answers, [], 5, 4).ids.tolist() == [0, 1, 2, 3]


def test_those_who_joined_are_told_from_those_who_did_not() -> None:
    """Ten clients and a canary client among them: its cosine lies far beyond the controls'."""
    rng = stream(4, "test")
    ids = np.arange(500, dtype=np.int32)
    answers = [(ids, rng.dirichlet(np.ones(10), 500).astype(np.float32)) for _ in range(10)]
    directions = [direction(500, 10, 1, k) for k in range(51)]
    consensus = joined(answers, [as_probabilities(directions[0])], 500, 10)
    cosines = [cosine(each, consensus) for each in directions]
    spread = 1 / np.sqrt(500 * 9)
    assert max(cosines[1:]) < 4 * spread < cosines[0]

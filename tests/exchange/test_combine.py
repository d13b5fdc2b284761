"""The mean of masked answers against brute force, exact sums, and its own definition."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from fedkd.exchange.combine import Mean, Votes
from fedkd.exchange.consensus import Consensus
from fedkd.rng import stream

Answer = tuple[NDArray[np.int32], NDArray[np.float32]]
QUICK = settings(deadline=None, max_examples=100)
SEEDS = st.integers(0, 2**31)
SIZES = {"n_clients": st.integers(0, 6), "n": st.integers(0, 8), "c": st.integers(1, 5)}


def mean(answers: Iterable[Answer], n: int, c: int) -> Consensus:
    rule = Mean()
    votes = rule.start(n, c)
    for ids, values in answers:
        rule.add(votes, ids, values)
    return rule.finish(votes)


def stepped(value: float) -> Fraction:
    """The nearest multiple of 2^-30, exactly."""
    return Fraction(round(Fraction(value) * 2**30), 2**30)


def soft(seed: int, n_clients: int, n: int, c: int) -> NDArray[np.float32]:
    """float32 [clients, samples, classes]: distributions, some of them sharp."""
    logits = stream(seed, "test").normal(size=(n_clients, n, c), scale=5)
    return softmax(logits, axis=2).astype(np.float32)


def masked(probs: NDArray[np.float32], masks: NDArray[np.bool_]) -> list[Answer]:
    return [
        (np.flatnonzero(mask).astype(np.int32), rows[mask])
        for rows, mask in zip(probs, masks, strict=True)
    ]


@given(seed=SEEDS, **SIZES)
@QUICK
def test_the_mean_is_that_of_brute_force(seed: int, n_clients: int, n: int, c: int) -> None:
    probs = soft(seed, n_clients, n, c)
    masks = stream(seed, "masks").random((n_clients, n)) < 0.5
    got = mean(masked(probs, masks), n, c)
    expected = {}
    for sample in range(n):
        voters = [k for k in range(n_clients) if masks[k, sample]]
        if voters:
            expected[sample] = [
                float(sum(stepped(float(probs[k, sample, j])) for k in voters) / len(voters))
                for j in range(c)
            ]
    assert got.ids.tolist() == sorted(expected)
    assert got.ids.dtype == np.int32
    assert got.values.dtype == np.float32
    assert got.values.shape == (len(expected), c)
    exact = np.array(list(expected.values())).reshape(-1, c)
    np.testing.assert_array_equal(got.values, exact.astype(np.float32))


@given(seed=SEEDS, n_clients=st.integers(1, 6), n=st.integers(1, 8), c=st.integers(1, 5))
@QUICK
def test_with_every_mask_open_it_is_fedmd(seed: int, n_clients: int, n: int, c: int) -> None:
    """The plain mean of soft labels of Li and Wang 2019, as NumPy takes it."""
    probs = soft(seed, n_clients, n, c)
    got = mean(masked(probs, np.ones((n_clients, n), bool)), n, c)
    assert got.ids.tolist() == list(range(n))
    fedmd = probs.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(got.values, fedmd, rtol=1e-7, atol=2.0**-31)


@given(seed=SEEDS, **SIZES)
@QUICK
def test_a_mean_of_distributions_is_one(seed: int, n_clients: int, n: int, c: int) -> None:
    probs = soft(seed, n_clients, n, c)
    masks = stream(seed, "masks").random((n_clients, n)) < 0.5
    got = mean(masked(probs, masks), n, c)
    np.testing.assert_allclose(got.values.sum(axis=1), 1, rtol=1e-6)
    assert (got.values >= 0).all()
    low = np.where(masks[..., None], probs, np.inf).min(axis=0, initial=np.inf)[got.ids]
    high = np.where(masks[..., None], probs, -np.inf).max(axis=0, initial=-np.inf)[got.ids]
    step = np.float32(2.0**-30)
    assert (low - step <= got.values).all()
    assert (got.values <= high + step).all()


def test_a_sample_without_a_voter_is_dropped_and_never_nan() -> None:
    one = (np.array([4, 0], np.int32), np.array([[0.25, 0.75], [1, 0]], np.float32))
    none = (np.array([], np.int32), np.zeros((0, 2), np.float32))
    got = mean([none, one, none], n=6, c=2)
    assert got.ids.tolist() == [0, 4]
    assert got.values.tolist() == [[1, 0], [0.25, 0.75]]


@pytest.mark.parametrize("n_clients", [0, 3])
def test_if_nobody_votes_nothing_is_kept(n_clients: int) -> None:
    none = (np.array([], np.int32), np.zeros((0, 4), np.float32))
    got = mean([none] * n_clients, n=5, c=4)
    assert got.ids.shape == (0,)
    assert got.values.shape == (0, 4)


def test_a_lone_voter_is_repeated_to_half_a_step() -> None:
    probs = soft(1, 1, 50, 7)
    got = mean(masked(probs, np.ones((1, 50), bool)), 50, 7).values
    np.testing.assert_allclose(got, probs[0], rtol=0, atol=2.0**-31)
    large = probs[0] >= 2.0**-7  # float32's own step is 2^-30 or more there
    assert np.array_equal(got[large], probs[0][large])


def test_sums_do_not_lose_what_float32_would() -> None:
    values: Sequence[float] = [2.0**24] + [1.0] * 99  # in float32, 2^24 + 1 is 2^24
    ids = np.array([0], np.int32)
    got = mean([(ids, np.array([[value]], np.float32)) for value in values], 1, 1)
    assert got.values[0, 0] == np.float32(math.fsum(values) / 100)
    lost = np.float32(0)
    for value in values:
        lost += np.float32(value)
    assert got.values[0, 0] != lost / np.float32(100)


@given(order=st.permutations(range(12)), cut=st.integers(0, 12))
@QUICK
def test_sums_are_the_same_bits_in_any_order_and_grouping(order: list[int], cut: int) -> None:
    """What lets workers add up their own clients, and masks of secure aggregation cancel."""
    probs = soft(3, 12, 10, 4)
    answers = masked(probs, stream(3, "masks").random((12, 10)) < 0.7)
    in_order = mean(answers, 10, 4)
    rule = Mean()
    halves = [rule.start(10, 4), rule.start(10, 4)]
    for place, client in enumerate(order):
        rule.add(halves[place >= cut], *answers[client])
    whole = Votes(*(a + b for a, b in zip(*halves, strict=True)))
    assert np.array_equal(in_order.values, rule.finish(whole).values)
    merged = rule.start(10, 4)
    for half in halves:
        ids = np.flatnonzero(half.voters).astype(np.int32)
        rule.merge(merged, ids, Votes(half.total[ids], half.voters[ids]))
    for one, other in zip(merged, whole, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_plain_float64_sums_would_not_be() -> None:
    probs = soft(3, 500, 10, 4).astype(np.float64)
    assert not np.array_equal(sum(probs), sum(probs[::-1]))


def test_finishing_takes_nothing_away() -> None:
    rule = Mean()
    votes = rule.start(3, 2)
    ids, values = np.array([1], np.int32), np.array([[0.5, 0.5]], np.float32)
    rule.add(votes, ids, values)
    first = rule.finish(votes)
    rule.add(votes, ids, np.array([[1, 0]], np.float32))
    assert first.values.tolist() == [[0.5, 0.5]]
    assert rule.finish(votes).values.tolist() == [[0.75, 0.25]]
    assert values.tolist() == [[0.5, 0.5]]

"""Rules that sharpen the mean or need every vote, against slow code, by sample and by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import trim_mean

from fedkd.exchange import every_vote
from fedkd.exchange.combine import COMBINES, Combine, Era, Mean, Power
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.every_vote import GeometricMedian, Median, TrimmedMean
from fedkd.exchange.robust import geometric_median
from fedkd.rng import stream

Answer = tuple[NDArray[np.int32], NDArray[np.float32]]
QUICK = settings(deadline=None, max_examples=30)
SEEDS = st.integers(0, 2**31)
N, C = 9, 4
RULES = [cls() for cls in COMBINES.values()]
CENTRES = [Median(), TrimmedMean(trim=0.3), GeometricMedian()]
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
EVERY_CENTRE = pytest.mark.parametrize("rule", CENTRES, ids=lambda rule: rule.name)


def combined(rule: Combine, answers: list[Answer], n: int = N, c: int = C) -> Consensus:
    votes = rule.start(n, c)
    for ids, values in answers:
        rule.add(votes, ids, values)  # type: ignore[arg-type]
    return rule.finish(votes)  # type: ignore[arg-type]


def answers_of(seed: int, n_clients: int = 7, share: float = 0.6) -> list[Answer]:
    draws = stream(seed, "test")
    probs = softmax(draws.normal(size=(n_clients, N, C), scale=3), axis=2).astype(np.float32)
    masks = draws.random((n_clients, N)) < share
    return [
        (np.flatnonzero(mask).astype(np.int32), rows[mask])
        for rows, mask in zip(probs, masks, strict=True)
    ]


def votes_on(sample: int, answers: list[Answer]) -> NDArray[np.float64]:
    found = [values[ids == sample][0] for ids, values in answers if sample in ids]
    return np.array(found, np.float64).reshape(-1, C)


@given(seed=SEEDS, trim=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.45]))
@QUICK
def test_centres_are_those_of_each_sample_by_itself(seed: int, trim: float) -> None:
    answers = answers_of(seed)
    medians = combined(Median(), answers)
    trimmed = combined(TrimmedMean(trim=trim), answers)
    voted = [s for s in range(N) if len(votes_on(s, answers))]
    assert medians.ids.tolist() == trimmed.ids.tolist() == voted
    for row, sample in enumerate(voted):
        votes = votes_on(sample, answers)
        middle, inner = np.median(votes, axis=0), trim_mean(votes, trim, axis=0)
        np.testing.assert_allclose(medians.values[row], middle / middle.sum(), rtol=1e-5)
        np.testing.assert_allclose(trimmed.values[row], inner / inner.sum(), rtol=1e-5)


@given(seed=SEEDS)
@settings(deadline=None, max_examples=10)
def test_no_point_is_nearer_to_all_votes_than_the_geometric_median(seed: int) -> None:
    answers = answers_of(seed)
    got = combined(GeometricMedian(), answers)
    for row, sample in enumerate(got.ids):
        votes = votes_on(int(sample), answers)

        def cost(y: NDArray[np.float64], votes: NDArray[np.float64] = votes) -> float:
            return float(np.sqrt(((votes - y) ** 2).sum(axis=1)).sum())

        found = minimize(cost, votes.mean(axis=0), method="Nelder-Mead", options={"fatol": 1e-10})
        best = min(found.fun, *(cost(vote) for vote in votes))
        assert cost(got.values[row].astype(np.float64)) <= best + 1e-4


def test_a_mean_that_is_a_vote_but_not_the_centre_is_left() -> None:
    """Where plain Weiszfeld divides by 0, or stays: votes at -1 (three), 0 and 3, mean 0."""
    votes = np.array([-1.0, -1.0, -1.0, 0.0, 3.0]).reshape(5, 1, 1)
    got = geometric_median(votes, np.array([5]))
    assert got.item() == pytest.approx(-1, abs=1e-6)


def test_a_vote_that_is_the_centre_is_kept() -> None:
    """Of four corners of a square and its middle."""
    votes = np.array([[0, 0], [0, 2], [2, 0], [2, 2], [1, 1]], np.float64).reshape(5, 1, 2)
    np.testing.assert_allclose(geometric_median(votes, np.array([5])), [[1, 1]], atol=1e-12)


@EVERY_RULE
@given(seed=SEEDS)
@settings(deadline=None, max_examples=10)
def test_the_order_of_clients_says_nothing(rule: Combine, seed: int) -> None:
    answers = answers_of(seed)
    order = stream(seed, "order").permutation(len(answers))
    one, other = combined(rule, answers), combined(rule, [answers[i] for i in order])
    np.testing.assert_array_equal(one.ids, other.ids)
    if isinstance(rule, GeometricMedian):  # its sums are rounded in the order of partitions
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(one.values, other.values)


@EVERY_RULE
@given(seed=SEEDS)
@settings(deadline=None, max_examples=10)
def test_distributions_give_a_distribution(rule: Combine, seed: int) -> None:
    got = combined(rule, answers_of(seed))
    assert got.ids.dtype == np.int32
    assert got.values.dtype == np.float32
    np.testing.assert_allclose(got.values.sum(axis=1), 1, rtol=1e-5)
    assert (got.values >= 0).all()


@EVERY_CENTRE
@pytest.mark.parametrize("n_voters", [1, 2, 5])
def test_one_opinion_is_the_consensus(rule: Combine, n_voters: int) -> None:
    (alone,) = answers_of(4, n_clients=1)
    got = combined(rule, [alone] * n_voters)
    np.testing.assert_array_equal(got.ids, alone[0])
    np.testing.assert_allclose(got.values, alone[1], rtol=1e-6)


@EVERY_CENTRE
def test_a_minority_that_lies_does_not_decide(rule: Combine) -> None:
    honest = np.array([[0.9, 0.1, 0, 0]], np.float32)
    liar = np.array([[0, 0, 0, 1]], np.float32)
    ids = np.zeros(1, np.int32)
    answers = [(ids, honest)] * 5 + [(ids, liar)] * 2
    got = combined(rule, answers, n=1)
    np.testing.assert_allclose(got.values, honest, atol=2e-3)
    assert combined(Mean(), answers, n=1).values[0, 3] > 0.28


@EVERY_RULE
def test_nobody_says_nothing(rule: Combine) -> None:
    none = (np.empty(0, np.int32), np.empty((0, C), np.float32))
    for answers in ([], [none, none]):
        got = combined(rule, answers)
        assert got.ids.shape == (0,)
        assert got.values.shape == (0, C)


@EVERY_CENTRE
def test_blocks_of_samples_and_of_answers_change_no_bit(
    rule: Combine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = answers_of(5)
    whole = combined(rule, answers)
    halves = [(i[part], v[part]) for i, v in answers for part in (slice(0, 3), slice(3, None))]
    monkeypatch.setattr(every_vote, "BLOCK", 2 * 7 * C)
    if isinstance(rule, GeometricMedian):  # a block's steps end together
        np.testing.assert_allclose(combined(rule, halves).values, whole.values, atol=1e-6)
    else:
        np.testing.assert_array_equal(combined(rule, halves).values, whole.values)


@EVERY_CENTRE
def test_what_is_added_is_kept_though_its_array_is_used_again(rule: Combine) -> None:
    ids, values = np.array([2], np.int32), np.array([[0.5, 0.5, 0, 0]], np.float32)
    votes = rule.start(N, C)
    rule.add(votes, ids, values)  # type: ignore[arg-type]
    values[:] = 0
    ids[:] = 7
    got = rule.finish(votes)  # type: ignore[arg-type]
    assert got.ids.tolist() == [2]
    assert got.values.tolist() == [[0.5, 0.5, 0, 0]]


def test_three_sure_voters_of_three_classes_have_a_mean_and_no_median() -> None:
    sure = np.eye(4, dtype=np.float32)[:3]
    answers = [(np.zeros(1, np.int32), row[None]) for row in sure]
    for rule in (Median(), TrimmedMean(trim=0.4)):
        np.testing.assert_allclose(combined(rule, answers, n=1).values, [[1 / 3] * 3 + [0]])


@given(seed=SEEDS, beta=st.floats(0.2, 6), temperature=st.floats(0.02, 10))
@QUICK
def test_sharpening_is_as_its_formula_says(seed: int, beta: float, temperature: float) -> None:
    answers = answers_of(seed)
    ids, mean = combined(Mean(), answers)
    mean = mean.astype(np.float64)
    power = combined(Power(beta=beta), answers)
    era = combined(Era(temperature=temperature), answers)
    np.testing.assert_array_equal(power.ids, ids)
    raised = mean**beta
    expected = raised / raised.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(power.values, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        era.values, softmax(mean / temperature, axis=1), rtol=1e-4, atol=1e-7
    )


def test_sharpening_has_its_limits() -> None:
    answers = answers_of(2)
    mean = combined(Mean(), answers).values
    np.testing.assert_allclose(combined(Power(beta=1), answers).values, mean, rtol=1e-6)
    np.testing.assert_allclose(combined(Era(temperature=1e6), answers).values, 1 / C, rtol=1e-5)
    onehot = np.eye(C)[mean.argmax(axis=1)]
    for rule in (Power(beta=5_000), Era(temperature=1e-5)):
        np.testing.assert_allclose(combined(rule, answers).values, onehot, atol=1e-3)
    peaks = [combined(Power(beta=b), answers).values.max(axis=1) for b in (1, 1.5, 3)]
    assert all((less < more).all() for less, more in pairwise(peaks))

"""Lower bounds of epsilon: valid as often as they claim, and able to find what is wrong.

Oracles are mechanisms whose epsilon is known exactly: randomised response, for which bounds are
nearly tight, so that one without its correction would be caught, and Gaussian noise.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from bounds import CLAIM, DELTA, MOST_WRONG, PURE, RECORD, RUNS, ledger
from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.cosine import from_cosines, null_log_tail
from privacy.audit.epsilon import (
    Claim,
    LowerBound,
    contradiction,
    from_rank,
    from_rates,
    from_scores,
)
from privacy.audit.one_run import one_run
from privacy.events import Protects
from privacy.ledger import Release
from privacy.totals import total


def gaussian(
    multiplier: float, m: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """One release of m canaries, each a direction of its own, in by a fair coin: scores, coins."""
    inside = rng.random(m) < 0.5
    return inside + rng.normal(0, multiplier, m), inside


def response(
    loss: float, m: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Randomised response on each of m coins: its epsilon is `loss` and no less."""
    inside = rng.random(m) < 0.5
    lies = rng.random(m) < 1 / (1 + math.exp(loss))
    return (inside ^ lies).astype(np.float64), inside


def by_one_run(
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    claim: Claim,
    rng: np.random.Generator,
) -> LowerBound:
    tenth = len(scores) // 10
    return one_run(scores, inside, [(tenth, tenth)], claim, rng)


def by_split(
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    claim: Claim,
    rng: np.random.Generator,
) -> LowerBound:
    return from_scores(scores[inside], scores[~inside], claim, rng)


METHODS = pytest.mark.parametrize("method", [by_one_run, by_split])


@METHODS
def test_a_correct_gaussian_mechanism_is_never_contradicted(method: type[by_one_run]) -> None:
    accounted, wrong, found = ledger(2.0), 0, []
    for run in range(RUNS):
        rng = stream(run, "test")
        lower = method(*gaussian(2.0, 1000, rng), CLAIM, rng)
        found.append(lower.epsilon)
        try:
            contradiction(lower, accounted)
        except FedkdError:
            wrong += 1
    assert wrong == 0  # both methods are far from tight here: MOST_WRONG would be no test
    assert 0 < np.mean(found) < accounted.epsilon / 2


@METHODS
@pytest.mark.parametrize("loss", [0.3, 1.5])
def test_bounds_are_wrong_no_more_often_than_they_claim(
    method: type[by_one_run], loss: float
) -> None:
    wrong, found = 0, []
    for run in range(RUNS):
        rng = stream(run, "test")
        found.append(method(*response(loss, 8000, rng), PURE, rng).epsilon)
        wrong += found[-1] > loss
    assert wrong <= MOST_WRONG
    assert np.mean(found) > 0.4 * loss


@METHODS
def test_noise_of_a_third_of_what_is_claimed_is_found(method: type[by_one_run]) -> None:
    accounted = ledger(7.0)  # epsilon 0.5
    for run in range(5):
        rng = stream(run, "test")
        scores = gaussian(7.0 / 3, 20_000, rng)
        with pytest.raises(FedkdError, match="the audit found more than the ledger allows") as told:
            contradiction(method(*scores, CLAIM, rng), accounted)
        for part in ("at delta 1e-05", "one record added or removed", "0.95", "assumes"):
            assert part in str(told.value)
        assert str(accounted) in str(told.value)


def test_the_best_of_many_thresholds_would_be_no_bound() -> None:
    """What other tools report, on cosines that tell nothing: it finds an epsilon far too often."""
    ours, naive = 0, 0
    missed = stats.beta.ppf(0.95, np.arange(200) + 1, 200 - np.arange(200))
    for run in range(RUNS):
        rng = stream(run, "test")
        cosines = rng.normal(0, 1 / 100, size=200)
        ours += from_cosines(cosines, 10**4, PURE, rng).epsilon > 0
        thresholds = np.sort(cosines)
        naive += (from_rates(null_log_tail(thresholds, 10**4), missed, 0.0) > 0).any()
    assert ours <= MOST_WRONG < naive


def test_the_best_of_many_numbers_of_guesses_is_paid_for() -> None:
    counts = [(n, n) for n in range(5, 250, 5)]
    paid, unpaid = 0, 0
    for run in range(RUNS):
        rng = stream(run, "test")
        scores, inside = rng.normal(size=500), rng.random(500) < 0.5
        paid += one_run(scores, inside, counts, PURE, rng).epsilon > 0
        unpaid += any(one_run(scores, inside, [n], PURE, rng).epsilon > 0 for n in counts)
    assert paid <= MOST_WRONG < unpaid


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.floats(0, 0.1))
def test_no_smaller_epsilon_allows_these_rates(fpr: float, fnr: float, delta: float) -> None:
    least = float(from_rates(np.log(fpr), fnr, delta))

    def allowed(eps: float) -> bool:
        loss = math.exp(eps)
        return 1 - fnr <= loss * fpr + delta and 1 - fpr <= loss * fnr + delta

    if math.isfinite(least):
        assert allowed(least + 1e-6)
        assert not allowed(least - 1e-6)


@pytest.mark.parametrize(("rank", "size", "copies"), list(product([1, 7], [1025, 10**6], [1, 4])))
def test_exposure_of_one_canary_is_where_its_rank_gets_likely(
    rank: int, size: int, copies: int
) -> None:
    found = from_rank(rank, size, CLAIM, copies)
    eps = found.epsilon
    group = DELTA * math.expm1(copies * eps) / math.expm1(eps)
    assert math.exp(copies * eps) * rank / size + group == pytest.approx(0.05, rel=1e-9)
    if copies == 1:
        assert eps == pytest.approx(math.log((0.05 - DELTA) * size / rank))
    pure = from_rank(rank, size, PURE, copies).epsilon
    assert pure == pytest.approx(math.log(0.05 * size / rank) / copies)
    assert eps < pure


def test_exposure_bounds_are_those_of_the_reference() -> None:
    # rank 1 of 2^k places is an exposure of k bits
    assert from_rank(1, 2**10, CLAIM).epsilon == pytest.approx(3.9, abs=0.05)
    assert from_rank(1, 2**16, CLAIM).epsilon == pytest.approx(8.1, abs=0.05)
    assert from_rank(600, 1000, CLAIM).epsilon == 0
    for rank, copies in ((0, 1), (1001, 1), (1, 0)):
        with pytest.raises(FedkdError, match="no rank of a canary"):
            from_rank(rank, 1000, CLAIM, copies)


def test_a_canary_that_is_chosen_at_random_is_rarely_too_high() -> None:
    """Counts of 200 candidates with Laplace noise, the canary's one higher: epsilon is 1."""
    wrong = 0
    for run in range(RUNS):
        rng = stream(run, "test")
        noisy = rng.laplace(0, 1, 200)
        noisy[0] += 1
        wrong += from_rank(int((noisy >= noisy[0]).sum()), 200, PURE).epsilon > 1
    assert wrong <= MOST_WRONG


@pytest.mark.parametrize(
    "claim",
    [
        Claim(protects=Protects("client", "replace"), delta=DELTA),
        Claim(protects=Protects("record", "replace"), delta=DELTA),
        Claim(protects=RECORD, delta=DELTA / 10),
    ],
)
def test_a_bound_of_another_guarantee_is_not_compared(claim: Claim) -> None:
    with pytest.raises(FedkdError, match="speak of different guarantees"):
        contradiction(from_rank(1, 10**6, claim), ledger(2.0))


def test_a_bound_at_a_larger_delta_is_compared() -> None:
    lower = from_rank(1, 10**6, Claim(protects=RECORD, delta=1e-3))
    contradiction(lower, ledger(0.4))
    with pytest.raises(FedkdError, match="the audit found more"):
        contradiction(lower, ledger(5.0))


def test_what_has_no_epsilon_is_not_contradicted() -> None:
    bare = Release(client=1, round=1, what="soft labels", rows=3, seen_by="server")
    contradiction(from_rank(1, 10**6, CLAIM), total([bare], RECORD, DELTA))


@pytest.mark.parametrize("wrong", [{"delta": -0.1}, {"delta": 1.0}, {"confidence": 1.0}])
def test_claims_are_probabilities(wrong: dict[str, float]) -> None:
    with pytest.raises(FedkdError, match="is no probability"):
        Claim(**{"protects": RECORD, "delta": DELTA, **wrong})  # type: ignore[arg-type]


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(FedkdError, match="too few scores to split"):
        from_scores(np.array([1.0]), np.array([1.0, 2.0]), CLAIM, stream(1, "test"))

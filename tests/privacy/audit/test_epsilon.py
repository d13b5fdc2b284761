"""Lower bounds of epsilon: valid as often as they claim, and able to find what is wrong.

Oracles are mechanisms whose epsilon is known exactly: randomised response, for which bounds are
nearly tight, so that one without its correction would be caught, and Gaussian noise.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit import cosine
from privacy.audit.cosine import estimate, from_cosines, null_log_tail
from privacy.audit.epsilon import (
    Claim,
    LowerBound,
    contradiction,
    from_rank,
    from_rates,
    from_scores,
)
from privacy.audit.one_run import epsilon_of, from_guesses, guess, one_run, p_value
from privacy.events import Gaussian, Protects
from privacy.ledger import Release
from privacy.totals import Total, total

RECORD = Protects("record", "add-remove")
DELTA = 1e-5
CLAIM = Claim(protects=RECORD, delta=DELTA)
PURE = Claim(protects=RECORD, delta=0.0)
RUNS = 200
MOST_WRONG = int(stats.binom.ppf(0.999, RUNS, 0.05))
"""Wrong bounds that RUNS bounds at 95 % have at most, but for one time in a thousand."""


def ledger(multiplier: float, delta: float = DELTA) -> Total:
    event = Gaussian(unit="record", relation="add-remove", noise_multiplier=multiplier)
    release = Release(
        client=1,
        round=1,
        what="soft labels",
        rows=3,
        seen_by="server",
        guarantee="proved",
        events=(event,),
    )
    return total([release], RECORD, delta)


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

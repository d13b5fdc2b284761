"""Epsilon of composed events: against closed forms, brute force and dp-accounting's accountants."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as library
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import optimize, stats

from fedkd.errors import FedkdError
from privacy import accounting
from privacy.accounting import epsilon, rdp_epsilon
from privacy.dp_events import from_dp_event, to_dp_event
from privacy.events import (
    EVENTS,
    Event,
    Gaussian,
    Laplace,
    Protects,
    Pure,
    RandomisedResponse,
    SampledGaussian,
)

CLIENT = Protects("client", "replace")
RECORD = Protects("record", "add-remove")
DELTA = 1e-5


def gaussian(noise: float, count: int = 1) -> Gaussian:
    return Gaussian(unit="record", relation="add-remove", noise_multiplier=noise, count=count)


def laplace(noise: float, count: int = 1) -> Laplace:
    return Laplace(unit="record", relation="add-remove", noise_multiplier=noise, count=count)


def pure(loss: float, count: int = 1) -> Pure:
    return Pure(unit="record", relation="add-remove", epsilon=loss, count=count)


def response(loss: float, k: int, count: int = 1) -> RandomisedResponse:
    return RandomisedResponse(unit="client", epsilon=loss, n_categories=k, count=count)


def step(rate: float, noise: float, count: int = 1) -> SampledGaussian:
    return SampledGaussian(unit="record", rate=rate, noise_multiplier=noise, count=count)


def solve(delta_of: object, delta: float, most: float) -> float:
    """The epsilon at which a decreasing delta(epsilon) meets `delta`."""
    return float(optimize.brentq(lambda e: delta_of(e) - delta, 0, most, xtol=1e-13))  # type: ignore[operator]


def gaussian_delta(eps: float, mu: float) -> float:
    """Balle and Wang 2018, Theorem 8."""
    upper = stats.norm.cdf(mu / 2 - eps / mu)
    return float(upper - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu))


def response_delta(eps: float, loss: float, k: int, n: int) -> float:
    """All outcomes of n uses: i answers like one truth, j like the other, the rest like neither."""
    lie = 1 / (math.exp(loss) + k - 1)
    p = np.array([math.exp(loss) * lie, lie, (k - 2) * lie])
    i, j = (grid.ravel() for grid in np.mgrid[: n + 1, : n + 1])
    i, j = i[i + j <= n], j[i + j <= n]
    mass = stats.multinomial.pmf(np.stack([i, j, n - i - j], axis=1), n, p)
    return float(np.maximum(0, mass * -np.expm1(eps - loss * (i - j))).sum())


@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.01])
@pytest.mark.parametrize(("noise", "count"), [(0.4, 1), (1.0, 1), (3.7, 9), (60.0, 1000)])
def test_gaussian_is_the_analytic_one(noise: float, count: int, delta: float) -> None:
    mu = math.sqrt(count) / noise
    exact = solve(lambda e: gaussian_delta(e, mu), delta, 100)
    spent = epsilon([gaussian(noise, count)], RECORD, delta)
    assert spent.pld == pytest.approx(exact, abs=1e-6)
    assert spent.epsilon == spent.rdp >= exact


def test_gaussians_of_different_noise_are_one() -> None:
    """mu^2 adds up: 1/4 + 3/9 + 1/36 = 11/18."""
    events = [gaussian(2.0), gaussian(3.0, 3), gaussian(6.0)]
    exact = solve(lambda e: gaussian_delta(e, math.sqrt(11 / 18)), DELTA, 100)
    assert epsilon(events, RECORD, DELTA).pld == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("noise", [0.25, 1.0, 3.3, 17.0])
def test_laplace_alone(noise: float) -> None:
    """Pure at delta 0; at others 1 - exp((epsilon - 1/noise) / 2) = delta."""
    assert epsilon([laplace(noise)], RECORD, 0).epsilon == pytest.approx(1 / noise, abs=1e-9)
    for delta in (1e-5, 0.01):
        got = epsilon([laplace(noise)], RECORD, delta).pld
        assert got == pytest.approx(max(0, 1 / noise + 2 * math.log1p(-delta)), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "k", "count"),
    [(1.0, 10, 1), (1.0, 10, 100), (0.3441, 10, 100), (2.5, 2, 7), (0.7, 3, 40)],
)
def test_randomised_response_is_the_sum_over_all_outcomes(loss: float, k: int, count: int) -> None:
    exact = solve(lambda e: response_delta(e, loss, k, count), DELTA, loss * count)
    spent = epsilon([response(loss, k, count)], CLIENT, DELTA)
    assert spent.pld == pytest.approx(exact, abs=1e-6)
    assert spent.rdp >= exact - 1e-9


def test_a_hundred_uses_of_randomised_response_cost_a_hundred() -> None:
    """dp-accounting's PLD accountant charges one of them; so the events must not go through it."""
    spent = epsilon([response(1.0, 10, 100)], CLIENT, DELTA)
    assert spent.pld == pytest.approx(37.206, abs=1e-3)
    assert spent.pld is not None
    one = 10 / (math.e + 9)
    loop = library.from_randomized_response(one, 10).self_compose(100)
    assert 0 <= loop.get_epsilon_for_delta(DELTA) - spent.pld < 1e-3  # it rounds losses up
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    accountant.compose(to_dp_event(response(1.0, 10, 100)))
    assert accountant.get_epsilon(DELTA) == pytest.approx(1.0, abs=1e-3)  # the fault, still there


@pytest.mark.parametrize("count", [1, 30])
def test_pure_is_charged_as_the_worst_mechanism_with_that_epsilon(count: int) -> None:
    exact = solve(lambda e: response_delta(e, 0.5, 2, count), DELTA, 0.5 * count)
    spent = epsilon([pure(0.5, count)], RECORD, DELTA)
    assert spent.pld == pytest.approx(exact, abs=1e-6)
    assert epsilon([laplace(2.0, count)], RECORD, DELTA).epsilon <= spent.epsilon
    assert epsilon([pure(0.5, count)], RECORD, 0).epsilon == pytest.approx(0.5 * count)


@pytest.mark.parametrize(("rate", "noise", "count"), [(0.01, 1.0, 500), (0.2, 2.0, 60)])
def test_sampled_gaussian_agrees_with_dp_accounting(rate: float, noise: float, count: int) -> None:
    event = step(rate, noise, count)
    spent = epsilon([event], RECORD, DELTA)
    by_pld, by_rdp = PLDAccountant(), RdpAccountant()
    by_pld.compose(to_dp_event(event))
    by_rdp.compose(to_dp_event(event))
    assert spent.pld == pytest.approx(by_pld.get_epsilon(DELTA), abs=1e-6)
    assert spent.rdp == pytest.approx(by_rdp.get_epsilon(DELTA), abs=1e-6)
    assert spent.epsilon == max(spent.pld or 0, spent.rdp)


def test_a_sample_of_everyone_is_the_plain_gaussian() -> None:
    sampled = epsilon([step(1.0, 3.0, 4)], RECORD, DELTA)
    assert sampled.pld == pytest.approx(epsilon([gaussian(3.0, 4)], RECORD, DELTA).pld, abs=1e-5)
    assert sampled.rdp == pytest.approx(epsilon([gaussian(3.0, 4)], RECORD, DELTA).rdp, abs=1e-9)


def test_kinds_compose_as_in_dp_accounting() -> None:
    events = [step(0.1, 1.5, 50), gaussian(4.0, 3), laplace(2.0, 2)]
    by_pld, by_rdp = PLDAccountant(), RdpAccountant()
    for event in events:
        by_pld.compose(to_dp_event(event))
        by_rdp.compose(to_dp_event(event))
    spent = epsilon(events, RECORD, DELTA)
    assert spent.pld == pytest.approx(by_pld.get_epsilon(DELTA), abs=1e-5)
    assert spent.rdp == pytest.approx(by_rdp.get_epsilon(DELTA), abs=1e-9)


def test_the_grid_errs_on_the_safe_side_only() -> None:
    """Losses off the grid of the first kind, against every outcome of both."""
    events = [pure(0.5, 3), pure(0.12345, 2)]
    lose, gain = 1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(0.12345))
    outcomes = [
        (
            0.5 * (3 - 2 * i) + 0.12345 * (2 - 2 * j),
            stats.binom.pmf(i, 3, lose) * stats.binom.pmf(j, 2, gain),
        )
        for i in range(4)
        for j in range(3)
    ]
    exact = solve(lambda e: sum(m * max(0, -math.expm1(e - x)) for x, m in outcomes), DELTA, 2)
    got = epsilon(events, RECORD, DELTA).pld
    assert got is not None
    assert exact - 1e-9 <= got <= exact + 3e-4


def test_nothing_costs_nothing() -> None:
    assert epsilon([], RECORD, DELTA).epsilon == epsilon([], RECORD, 0).epsilon == 0


def test_gaussian_noise_has_no_pure_epsilon() -> None:
    assert epsilon([gaussian(5.0)], RECORD, 0).epsilon == math.inf
    assert epsilon([gaussian(5.0), pure(1.0)], RECORD, 0).epsilon == math.inf


@pytest.mark.parametrize(
    ("events", "delta", "why"),
    [
        ([step(0.1, 1.0, 9)], 1e-14, "does not answer for delta below 1e-12"),
        ([step(0.1, 0.01, 9)], DELTA, "too coarse"),
        ([gaussian(0.001), pure(0.5)], DELTA, "too coarse"),
    ],
)
def test_where_pld_cannot_answer_rdp_does_and_says_so(
    events: list[Event], delta: float, why: str
) -> None:
    spent = epsilon(events, RECORD, delta)
    assert spent.pld is None
    assert why in spent.note
    assert why in str(spent)
    assert math.isfinite(spent.epsilon)
    assert spent.epsilon == spent.rdp > 0


def test_text_gives_delta_unit_relation_and_accountants() -> None:
    text = str(epsilon([gaussian(2.0)], RECORD, DELTA))
    for part in ("at delta 1e-05", "one record added or removed", "PLD 1.99", "RDP 2."):
        assert part in text


@pytest.mark.parametrize(
    "other",
    [
        Gaussian(unit="client", relation="add-remove", noise_multiplier=1),
        Gaussian(unit="record", relation="replace", noise_multiplier=1),
        response(1.0, 10),
    ],
)
def test_other_units_and_relations_do_not_add_up(other: Event) -> None:
    for ask in (epsilon, rdp_epsilon):
        with pytest.raises(FedkdError, match="do not add up"):
            ask([gaussian(1.0), other], RECORD, DELTA)


@pytest.mark.parametrize("delta", [-1e-9, 1.0, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(FedkdError, match="delta is no probability"):
        epsilon([], RECORD, delta)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gaussian", {"noise_multiplier": 0}),
        ("gaussian", {"noise_multiplier": math.inf}),
        ("gaussian", {"noise_multiplier": 1, "count": 0}),
        ("laplace", {"noise_multiplier": 1e-3}),
        ("pure", {"epsilon": -1}),
        ("randomised-response", {"epsilon": 1, "n_categories": 1, "relation": "replace"}),
        ("randomised-response", {"epsilon": 1, "n_categories": 3}),
        ("sampled-gaussian", {"rate": 0, "noise_multiplier": 1}),
        ("sampled-gaussian", {"rate": 0.1, "noise_multiplier": 1, "relation": "replace"}),
    ],
)
def test_an_event_that_is_not_proved_cannot_be_written(name: str, fields: dict[str, float]) -> None:
    """Neither without noise nor for a relation that its proof is not for."""
    with pytest.raises(ValidationError):
        EVENTS[name].model_validate({"unit": "record", "relation": "add-remove", **fields})


EVENT = st.one_of(
    st.builds(gaussian, st.floats(0.5, 50), st.integers(1, 50)),
    st.builds(laplace, st.floats(0.5, 50), st.integers(1, 50)),
    st.builds(pure, st.floats(0.01, 3), st.integers(1, 50)),
    st.builds(step, st.floats(0.01, 0.5), st.floats(0.7, 10), st.integers(1, 300)),
)


@given(EVENT | st.builds(response, st.floats(0.01, 3), st.integers(2, 100), st.integers(1, 50)))
@settings(deadline=None, max_examples=40)
def test_events_survive_json_and_dp_accounting(event: Event) -> None:
    row = TypeAdapter[Event](Event)
    assert row.validate_json(event.model_dump_json()) == event
    if isinstance(event, Pure):  # it knows this one as randomised response, proved for "replace"
        with pytest.raises(FedkdError, match="there is no proof of this for one record added"):
            from_dp_event(to_dp_event(event), event.protects)
        return
    (back,) = from_dp_event(to_dp_event(event), event.protects)
    assert back.count == event.count
    assert rdp_epsilon([back], event.protects, 1e-5) == pytest.approx(
        rdp_epsilon([event], event.protects, 1e-5), rel=1e-9
    )


def test_events_of_dp_accounting_are_flattened() -> None:
    inner = dp_accounting.GaussianDpEvent(2.0)
    sampled = dp_accounting.PoissonSampledDpEvent(0.1, inner)
    both = dp_accounting.ComposedDpEvent([inner, dp_accounting.SelfComposedDpEvent(sampled, 3)])
    nested = dp_accounting.SelfComposedDpEvent(both, 5)
    assert from_dp_event(nested, RECORD) == (gaussian(2.0, 5), step(0.1, 2.0, 15))
    assert from_dp_event(dp_accounting.NoOpDpEvent(), RECORD) == ()
    for unknown in (dp_accounting.NonPrivateDpEvent(), dp_accounting.ZCDpEvent(1.0)):
        with pytest.raises(FedkdError, match="no row for this privacy event"):
            from_dp_event(unknown, RECORD)


@given(st.lists(EVENT, max_size=5), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=8)
def test_order_and_grouping_do_not_matter(events: list[Event], random: object) -> None:
    split = [e.model_copy(update={"count": 1}) for e in events for _ in range(min(e.count, 3))]
    merged = [e.model_copy(update={"count": min(e.count, 3)}) for e in events]
    random.shuffle(split)  # type: ignore[attr-defined]
    assert epsilon(split, RECORD, DELTA) == epsilon(merged, RECORD, DELTA)


@given(EVENT, st.sampled_from([1e-9, 1e-5, 1e-2]))
@settings(deadline=None, max_examples=15)
def test_more_uses_and_smaller_delta_cost_more(event: Event, delta: float) -> None:
    more = event.model_copy(update={"count": event.count + 1})
    here, there = (epsilon([e], RECORD, delta) for e in (event, more))
    smaller = epsilon([event], RECORD, delta / 10)
    for other in (there, smaller):
        assert here.rdp <= other.rdp + 1e-9
        assert here.pld is not None
        assert other.pld is not None
        assert here.pld <= other.pld + 1e-6


@given(st.floats(0.7, 5), st.floats(1.01, 2), st.integers(1, 100))
@settings(deadline=None, max_examples=6)
def test_more_noise_costs_less(noise: float, factor: float, count: int) -> None:
    for one, other in (
        (gaussian(noise, count), gaussian(noise * factor, count)),
        (laplace(noise, count), laplace(noise * factor, count)),
        (step(0.1, noise, count), step(0.1, noise * factor, count)),
    ):
        less, more = (epsilon([e], RECORD, DELTA) for e in (other, one))
        assert less.rdp <= more.rdp + 1e-9
        assert (less.pld or 0) <= (more.pld or 0) + 1e-6


def test_asking_again_after_each_round_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The divergence of one step is computed once, however many rounds are asked about."""
    accounting._rdp.cache_clear()
    calls, make = [], RdpAccountant
    monkeypatch.setattr(accounting, "RdpAccountant", lambda **k: (calls.append(k), make(**k))[1])
    spent = [rdp_epsilon([step(0.05, 1.234)] * (20 * r), RECORD, DELTA) for r in range(1, 60)]
    assert spent == sorted(spent)
    assert len(calls) == 1

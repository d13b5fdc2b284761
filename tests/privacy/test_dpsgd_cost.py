"""The cost of DP-SGD against Opacus' accountants and closed forms of the Gaussian mechanism."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from dp_accounting import DpEvent, PrivacyAccountant
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from scipy.optimize import brentq
from scipy.stats import norm

from fedkd.config_sections import Phase
from fedkd.errors import FedkdError
from fedkd.protection import DpSgd
from fedkd.training import batches
from privacy.dpsgd_cost import (
    LOST_ROUNDS,
    TOLERANCE,
    Schedule,
    coarse_losses,
    error_feedback_event,
    noise_multiplier,
    paid_rounds,
    round_event,
    schedule,
)

DELTA = 1e-5
RUNS = [
    (Schedule(0.01, 1000), 1.0),
    (Schedule(1 / 12, 240), 1.3),
    (Schedule(0.25, 60), 2.5),
]


def epsilon(*events: DpEvent, accountant: PrivacyAccountant | None = None) -> float:
    accountant = accountant or PLDAccountant()
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(DELTA))


def gaussian_epsilon(mu: float) -> float:
    """Of a Gaussian whose means are mu deviations apart (Balle, Wang 2018, theorem 8)."""

    def delta(eps: float) -> float:
        tail = math.exp(eps + norm.logcdf(-mu / 2 - eps / mu))
        return float(norm.cdf(mu / 2 - eps / mu) - tail)

    return float(brentq(lambda eps: delta(eps) - DELTA, 0, 700))


def opacus(kind: Any, *history: tuple[float, float, int]) -> float:
    theirs = kind()
    theirs.history = list(history)
    return float(theirs.get_epsilon(DELTA))


@pytest.mark.parametrize(("run", "noise"), RUNS)
def test_the_epsilon_of_a_run_is_that_of_opacus(run: Schedule, noise: float) -> None:
    """PRV is an upper estimate with an error of 0.01 on each side; RDP has its own orders."""
    history = (noise, run.rate, run.steps)
    event = round_event(run, noise)
    assert 0 <= opacus(PRVAccountant, history) - epsilon(event) < 0.02
    theirs = opacus(RDPAccountant, history)
    assert epsilon(event, accountant=RdpAccountant()) == pytest.approx(theirs, rel=2e-3)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 10), (5.0, 40)])
def test_without_sampling_it_is_the_gaussian_in_closed_form(noise: float, steps: int) -> None:
    expected = gaussian_epsilon(math.sqrt(steps) / noise)
    assert epsilon(round_event(Schedule(1.0, steps), noise)) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("kind", [PLDAccountant, RdpAccountant])
def test_two_rounds_cost_one_of_twice_the_steps_and_not_one_of_them(kind: Any) -> None:
    one, both = (round_event(Schedule(0.05, steps), 1.1) for steps in (100, 200))
    twice = epsilon(one, one, accountant=kind())
    assert twice == pytest.approx(epsilon(both, accountant=kind()), rel=1e-6)
    assert twice > 1.25 * epsilon(one, accountant=kind())


def multiplier(n: int, phase: Phase, rounds: int = 5, budget: float = 4.0, **more: Any) -> float:
    run: dict[str, Any] = {"rounds": rounds, "participation": 1.0, "epsilon": budget}
    return noise_multiplier(n, phase, **{**run, "delta": DELTA, **more})


@pytest.mark.parametrize(("n", "rounds", "budget"), [(600, 5, 1.0), (600, 5, 4.0), (6000, 20, 1.0)])
def test_the_noise_is_the_least_that_keeps_all_rounds_within_the_budget(
    n: int, rounds: int, budget: float
) -> None:
    phase = Phase(batch_size=100, epochs=2)
    noise = multiplier(n, phase, rounds, budget)
    plan = schedule(n, phase)
    spent = epsilon(*[round_event(plan, noise)] * rounds)
    assert budget * 0.99 < spent <= budget
    less = noise - 2 * TOLERANCE
    assert epsilon(*[round_event(plan, less)] * rounds, accountant=coarse_losses()) > budget


@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")
@pytest.mark.parametrize(
    ("kind", "theirs", "rel"), [(coarse_losses, "prv", 1e-2), (RdpAccountant, "rdp", 5e-3)]
)
def test_the_noise_is_that_of_opacus(kind: Any, theirs: str, rel: float) -> None:
    phase = Phase(batch_size=50)
    plan = schedule(1000, phase)
    expected = get_noise_multiplier(
        target_epsilon=4.0,
        target_delta=DELTA,
        sample_rate=plan.rate,
        steps=5 * plan.steps,
        accountant=theirs,
        epsilon_tolerance=0.002,
    )
    assert multiplier(1000, phase, accountant=kind) == pytest.approx(expected, rel=rel)


def test_rounds_are_calibrated_together() -> None:
    """Ten rounds of one epoch need the noise of one round of ten, and more than one of one."""
    phase = Phase(batch_size=50)
    ten = multiplier(1000, phase, rounds=10)
    assert ten == multiplier(1000, phase.model_copy(update={"epochs": 10}), rounds=1)
    assert ten > 1.2 * multiplier(1000, phase, rounds=1)
    assert multiplier(1000, phase, rounds=20, participation=0.5) < multiplier(1000, phase, 20)


@pytest.mark.parametrize(
    "budget", [{"epsilon": 0.0}, {"epsilon": math.inf}, {"delta": 0.0}, {"delta": 1.0}]
)
def test_what_is_no_budget_is_refused(budget: dict[str, float]) -> None:
    with pytest.raises(FedkdError, match=r"no budget.*delta between 0 and 1"):
        multiplier(1000, Phase(), **{"budget": budget.pop("epsilon", 4.0), **budget})


@given(n=st.integers(1, 500), size=st.integers(1, 600), epochs=st.floats(0.01, 5))
@settings(deadline=None)
def test_a_round_has_the_steps_of_plain_learning(n: int, size: int, epochs: float) -> None:
    phase = Phase(batch_size=size, epochs=epochs)
    plan = schedule(n, phase)
    assert plan.steps == len(list(batches(n, phase, np.random.default_rng(1))))
    assert 0 < plan.rate <= 1
    assert min(n, size) / 2 <= plan.rate * n <= size
    one_pass = schedule(n, Phase(batch_size=size, epochs=1))
    assert one_pass.rate * one_pass.steps == pytest.approx(1)


@given(rounds=st.integers(1, 60), share=st.floats(0.01, 1.0))
@settings(deadline=None)
def test_few_clients_are_drawn_more_often_than_is_paid_for(rounds: int, share: float) -> None:
    def drawn_more_than(k: int) -> float:
        ways = (math.comb(rounds, i) * share**i * (1 - share) ** (rounds - i) for i in range(k + 1))
        return 1 - sum(ways)

    paid = paid_rounds(rounds, share)
    assert 1 <= paid <= rounds
    assert drawn_more_than(paid) <= LOST_ROUNDS + 1e-9
    assert paid == 1 or drawn_more_than(paid - 1) >= LOST_ROUNDS - 1e-9


def test_full_participation_pays_for_every_round() -> None:
    assert [paid_rounds(rounds, 1.0) for rounds in range(1, 300)] == list(range(1, 300))


@pytest.mark.parametrize("error_clip", [0.001, 0.1])
def test_error_feedback_costs_a_gaussian_without_sampling(error_clip: float) -> None:
    """In closed form, with a step's largest difference in the deviations of its noise."""
    how = DpSgd(clip=0.5, noise_multiplier=20.0, error_clip=error_clip)
    plan = schedule(1000, Phase(batch_size=100))
    step = (0.5 + 2 * error_clip * 100) / (20.0 * math.sqrt(0.25 + error_clip))
    spent = epsilon(error_feedback_event(1000, plan, how))
    assert spent == pytest.approx(gaussian_epsilon(step * math.sqrt(10)), rel=1e-3)
    assert spent > 2 * epsilon(round_event(plan, 20.0))  # which would only be claimed

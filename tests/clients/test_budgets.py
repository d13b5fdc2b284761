"""Budgets, and noise that was made for so many rounds: who has spent them falls silent."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scipy.stats import binom

from clients import guard
from clients.guard import Guard
from clients.store import MemoryStore
from fedkd import protection
from privacy import accounting, asked
from privacy.asked import CLIENT, RECORD
from privacy.totals import total, totals
from protected_runs import (
    OPEN,
    PROTECTIONS,
    PUBLIC,
    ROUNDS,
    TWO,
    abstained,
    cell,
    client_of,
    entries,
    protected,
)
from scenarios.simulate import simulate
from server.job import Job
from server.rounds import participants
from small_runs import facts, small


def rounds_within(budget: float, noise: float, steps_each: int, rate: float) -> int:
    """By hand: how many rounds of DP-SGD the RDP accountant of dp-accounting lets pass."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    for rounds in range(1, 100):
        accountant = RdpAccountant()
        with accounting.quiet():
            accountant.compose(event, rounds * steps_each)
            if accountant.get_epsilon(1e-5) > budget:
                return rounds - 1
    raise AssertionError("the budget is never spent")


def test_a_budget_stops_a_client_and_the_run_goes_on(tmp_path: Path) -> None:
    scenario = small(
        **{**TWO, **OPEN},
        training={"rounds": 5, "local": {"batch_size": 128}},
        privacy={"training": {"name": "dp-sgd", "noise_multiplier": 1.5}, "budget": 4.0},
    )
    client = client_of(scenario)
    per_epoch = math.ceil(client.n_records / 128)
    last = rounds_within(4.0, 1.5, per_epoch, 1 / per_epoch)
    assert 1 <= last < 5
    result = simulate(scenario, folder=tmp_path)
    events = result.cells[0].events
    assert abstained(events) == [(r, c) for r in range(last + 1, 6) for c in range(2)]
    assert [e["n_abstained"] for e in result.cells[0].of("round")] == [0] * last + [2] * (5 - last)
    assert not result.cells[0].of("refused")
    for event in result.cells[0].of("client"):
        assert (event["bytes_up"] > 0) == (event["round"] <= last)
    for c in range(2):
        kept = entries(cell(tmp_path, scenario), c)
        assert [e.what for e in kept].count("training") == last
        (spent,) = [t for t in totals(kept, 1e-5) if t.spent.protects == RECORD]
        assert spent.bare == ()
        assert 0 < spent.epsilon <= 4.0
    again = simulate(scenario, folder=tmp_path / "again")
    assert facts(again) == facts(result)


def test_a_client_s_budget_stops_its_answers(tmp_path: Path) -> None:
    """Each of four rounds costs mu^2 / 4 of what the noise was made for; the budget is of two."""
    release = protection.GaussianRelease(epsilon=8.0)
    whole = accounting.least_gaussian(8.0, CLIENT, 1e-5)
    each = whole.model_copy(update={"noise_multiplier": 2 * whole.noise_multiplier})
    budget = accounting.rdp_epsilon([each] * 2, CLIENT, 1e-5) + 0.01
    scenario = small(
        **{**TWO, **OPEN, **PUBLIC},
        training={**ROUNDS, "rounds": 4},
        privacy={"release": release.model_dump(), "unit": "client", "budget": budget},
    )
    result = simulate(scenario, folder=tmp_path)
    assert abstained(result.cells[0].events) == [(r, c) for r in (3, 4) for c in range(2)]
    assert [e["kept"] for e in result.cells[0].of("round")] == [1.0, 1.0, 0.0, 0.0]
    for c in range(2):
        spent = total(entries(cell(tmp_path, scenario), c), CLIENT, 1e-5)
        assert 0.9 * budget < spent.epsilon <= budget


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_a_budget_equal_to_the_epsilon_of_a_release_lasts_for_the_run(name: str) -> None:
    scenario = small(
        **{**TWO, **OPEN, **PUBLIC},
        training={**ROUNDS, "rounds": 3},
        privacy={"release": {"name": name, "epsilon": 4.0}, "unit": "client", "budget": 4.0},
    )
    assert abstained(simulate(scenario).cells[0].events) == []


def test_who_cannot_pay_for_its_mask_abstains(tmp_path: Path) -> None:
    """Training is within the budget, and the mask beside it is not: no failure, no answer."""
    scenario = protected(
        "noise",
        privacy={
            "training": {"name": "dp-sgd", "epsilon": 2.0},
            "filter": {"name": "dp-kmeans", "epsilon": 2.0},
            "budget": 2.1,
        },
    )
    result = simulate(scenario, folder=tmp_path)
    assert not result.cells[0].of("refused")
    assert abstained(result.cells[0].events) == [(r, c) for r in (1, 2) for c in range(2)]
    assert [e["kept"] for e in result.cells[0].of("round")] == [0.0, 0.0]
    for c in range(2):
        kept = entries(cell(tmp_path), c)
        assert {e.what for e in kept} == {"raw samples", "training"}
        assert total(kept, RECORD, 1e-5).epsilon <= 2.0


def test_noise_for_so_many_rounds_stops_who_is_drawn_for_more() -> None:
    """Without any budget: the epsilon of a row is of the whole run."""
    training = {"rounds": 20, "participation": 0.2, "local": {"batch_size": 512}}
    five = {"partition": {"name": "iid", "clients": 5}}
    scenario = small(**five, training=training, privacy=PROTECTIONS["arg-max"])
    store = MemoryStore()
    paid = int(binom.ppf(0.95, 20, 0.2))
    may = [guard.may_train(Guard(store, client_of(scenario, 0, r))) for r in range(1, 11)]
    assert may == [True] * paid + [False] * (10 - paid)
    assert guard.may_train(Guard(store, client_of(scenario, 0, 2)))  # a repeated message
    assert guard.may_train(Guard(store, client_of(scenario, 1, 9)))
    assert len(store.ledger(0).entries()) == paid
    spent = total(store.ledger(0).entries(), RECORD, 1e-5).epsilon
    assert 7.5 < spent <= 8.0


def test_few_are_drawn_for_more_rounds_than_their_noise_is_for() -> None:
    """Of ten clients a hundredth: one takes part, ten times as many as the setting says."""
    scenario = small(
        partition={"name": "iid", "clients": 10}, training={"rounds": 20, "participation": 0.01}
    )
    most = asked.most_rounds(scenario.training, 10)
    roster: Any = SimpleNamespace(clients=range(10))
    n_over = 0
    for seed in range(100):
        job = Job(scenario=scenario, seed=seed, state_folder="")
        drawn = [c for r in range(1, 21) for c in participants(job, roster, r)]
        n_over += sum(drawn.count(client) > most for client in range(10))
    assert 10 < n_over <= 0.05 * 1000  # P(Binomial(20, 1 / 10) > 4) is 4.3 %


def test_a_release_for_so_many_rounds_stops_too(tmp_path: Path) -> None:
    scenario = small(
        **{**OPEN, **PUBLIC},
        partition={"name": "iid", "clients": 4},
        training={**ROUNDS, "rounds": 8, "participation": 0.25},
        privacy={"release": {"name": "laplace", "epsilon": 2.0}},
    )
    cells = [simulate(scenario.model_copy(update={"seeds": (s,)})).cells[0] for s in range(12)]
    paid = int(binom.ppf(0.95, 8, 0.25))
    stopped = 0
    for found in cells:
        for client in range(4):
            mine = [e for e in found.of("client") if e["client"] == client]
            assert [("abstained" in e) for e in mine] == [i >= paid for i in range(len(mine))]
            stopped += len(mine) > paid
    assert stopped > 0

"""Clients under privacy settings, in real runs: the same bits again, nothing charged twice, and
what is claimed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import guard, steps
from clients.app import make_app
from clients.store import MemoryStore
from fedkd import protection
from fedkd.config import Scenario
from fedkd.rng import torch_stream
from privacy.asked import RECORD
from privacy.totals import total
from protected_runs import (
    OPEN,
    PROTECTIONS,
    PUBLIC,
    ROUNDS,
    TWO,
    cell,
    client_of,
    entries,
    protected,
    told,
)
from scenarios.grids import inline
from scenarios.simulate import resume, simulate
from server.app import make_app as make_server
from server.events import Event
from small_runs import consensus, facts, ledgers, small


def same(ours: Path, theirs: Path) -> None:
    """Equal ledgers, and equal consensus to the bit."""
    assert ledgers(ours) == ledgers(theirs)
    one, other = consensus(ours), consensus(theirs)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_every_row_is_tried() -> None:
    parts = ("training", "filter", "release")
    tables = (protection.TRAININGS, protection.FILTERS, protection.PROTECTED_RELEASES)
    for part, table in zip(parts, tables, strict=True):
        tried = {row.get(part, {"name": "plain"})["name"] for row in PROTECTIONS.values()}
        assert tried | {"plain"} == set(table)


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_protected_run_gives_the_same_bits_and_ledgers_again(tmp_path: Path, name: str) -> None:
    class Stop(Exception):
        pass

    def stop(row: str, seed: int, event: Event) -> None:
        if event["event"] == "round":
            raise Stop

    scenario = protected(name)
    whole = simulate(scenario, folder=tmp_path / "whole")
    assert not whole.cells[0].of("refused")
    assert facts(simulate(scenario)) == facts(whole)
    with pytest.raises(Stop):
        simulate(scenario, folder=tmp_path / "broken", listener=stop)
    assert facts(resume(tmp_path / "broken")) == facts(whole)
    same(cell(tmp_path / "broken"), cell(tmp_path / "whole"))
    for lines in ledgers(cell(tmp_path / "whole")).values():
        assert len(lines) == len(set(lines)) == expected_entries(scenario)


def expected_entries(scenario: Scenario) -> int:
    """One of raw samples, one of the mask, two of answers and, if it is not plain, of training; one
    of a summary that answers come from."""
    training = scenario.privacy.training.name != "plain"
    summary = scenario.privacy.release.name == "summary"
    return 1 + 1 + 2 + 2 * training + summary


@pytest.mark.slow  # tests/e2e/test_grids.py does it for one of them by default
@pytest.mark.parametrize("name", PROTECTIONS)
def test_worker_processes_keep_the_same_ledgers(tmp_path: Path, name: str) -> None:
    inline_run = simulate(protected(name), folder=tmp_path / "inline")
    grid = {"name": "workers", "workers": 2}
    assert facts(simulate(protected(name, grid=grid), folder=tmp_path / "workers")) == facts(
        inline_run
    )
    same(cell(tmp_path / "workers"), cell(tmp_path / "inline"))


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_repeated_message_is_answered_again_and_charged_once(name: str) -> None:
    store = MemoryStore()
    honest = make_app(lambda config: store)
    n_answers = 0

    def twice(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        nonlocal n_answers
        client = int(context.node_config["partition-id"])
        first = call_next(message, context)
        kept = store.ledger(client).entries()
        again = call_next(message, context)
        assert store.ledger(client).entries() == kept
        assert ("payload" in first.content) == ("payload" in again.content)
        if "payload" in first.content:
            one, other = (
                reply.content.array_records["payload"]["bytes"].data for reply in (first, again)
            )
            assert np.array_equal(one, other)
            n_answers += 1
        return again

    app = ClientApp(mods=[twice])
    for route in (app.query("hello"), app.query("pool"), app.train(), app.evaluate()):
        route(lambda message, context: honest(message, context))
    inline.run(make_server(protected(name), 1, None), app, 2)
    assert n_answers == 2 + 4  # two hellos, and two clients' answers in two rounds


# --- what is claimed ---


@pytest.mark.parametrize(
    ("release", "guarantee", "derived"),
    [
        ({"name": "plain"}, "proved", True),
        ({"name": "top-1"}, "proved", True),
        ({"name": "gaussian"}, "proved", True),
        ({"name": "swing", "degree": "classes", "private_classes": [2]}, "proved", True),
        ({"name": "swing", "degree": "density"}, "empirical", False),
        ({"name": "swing", "degree": "density", "noise": "gaussian"}, "proved", False),
    ],
)
def test_dp_sgd_carries_over_to_what_reads_no_record(
    release: dict[str, Any], guarantee: str, derived: bool
) -> None:
    training = {"name": "dp-sgd"}
    _, claim = told(small(**OPEN, **PUBLIC, privacy={"training": training, "release": release}))
    assert claim.guarantee == guarantee
    assert claim.derived_from == (("training",) if derived else ())


@pytest.mark.parametrize("release", ["plain", "top-1", "gaussian"])
def test_dp_sgd_without_noise_proves_nothing(tmp_path: Path, release: str) -> None:
    training = {"name": "dp-sgd", "noise_multiplier": 0.0}
    scenario = small(
        **{**TWO, **OPEN, "training": ROUNDS},
        privacy={"training": training, "release": {"name": release}},
    )
    simulate(scenario, folder=tmp_path)
    kept = entries(cell(tmp_path, scenario), 0)
    assert not [e for e in kept if e.derived_from or any(v.protects == RECORD for v in e.events)]
    assert math.isinf(total(kept, RECORD, 1e-5).epsilon)


def test_a_run_costs_what_its_parts_are_set_to(tmp_path: Path) -> None:
    """Training to 2, the filter to 1: a record is charged less than their sum, more than one."""
    scenario = protected(
        "noise",
        privacy={
            "training": {"name": "dp-sgd", "epsilon": 2.0},
            "filter": {"name": "dp-kmeans", "epsilon": 1.0},
        },
    )
    simulate(scenario, folder=tmp_path)
    for client in range(2):
        found = total(entries(cell(tmp_path), client), RECORD, 1e-5)
        assert found.bare == ()
        assert 2.0 < found.epsilon <= 3.0


def test_nothing_of_the_private_loss_is_reported() -> None:
    for name in ("noise", "part"):
        for event in simulate(protected(name)).cells[0].of("client"):
            assert "train_loss" not in event
            assert event["train_samples"] > 0
    assert "train_loss" in simulate(protected("answers")).cells[0].of("client")[0]


def test_nfdp_learns_from_its_part_alone() -> None:
    scenario = protected("part", privacy={"training": {"name": "nfdp", "fraction": 0.25}})
    client = client_of(scenario)
    x, y = client.world.client(0)
    model, twin = client.model(None), client.model(None)
    assert guard.learn(client, model, x, y) == round(0.25 * len(x))
    once = torch_stream(1, "client", 0, 0, "nfdp")
    kept = torch.randperm(len(x), generator=once)[: round(0.25 * len(x))]
    outside = torch.ones(len(x), dtype=torch.bool)
    outside[kept] = False
    changed = x.clone()
    changed[outside] = 255 - changed[outside]
    guard.learn(client, twin, changed, y)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_text_is_learnt_under_dp_sgd() -> None:
    scenario = small(
        data={"name": "pydoc", "length": 16},
        partition={"name": "iid", "clients": 40},
        model={"names": ["gru"]},
        privacy={"training": {"name": "dp-sgd", "noise_multiplier": 0.01, "clip": 10.0}},
        training={"local": {"epochs": 0.2, "batch_size": 16, "learning_rate": 0.01}},
    )
    client = client_of(scenario)
    x, y = client.world.client(0)
    model = client.model(None)
    before = steps.training.grades(model, x, y).nats.sum()
    guard.learn(client, model, x, y)
    assert steps.training.grades(model, x, y).nats.sum() < 0.95 * before


# --- a private mask ---


@pytest.mark.parametrize(
    ("score", "by_model"),
    [({"space": "pixels"}, False), ({"space": "features"}, True), ({"name": "energy"}, True)],
)
def test_a_private_mask_is_paid_for_once(
    tmp_path: Path, score: dict[str, str], by_model: bool
) -> None:
    method = {"name": "edgefd", "score": score}
    for name, times in (("plain", 2 if by_model else 1), ("dp-kmeans", 1)):
        scenario = small(**TWO, method=method, privacy={"filter": {"name": name}})
        simulate(scenario, folder=tmp_path / name)
        for client in range(2):
            kept = entries(cell(tmp_path / name), client)
            assert [e.what for e in kept].count("accept mask") == times


def test_who_answers_nothing_has_told_nothing(tmp_path: Path) -> None:
    """A gate that is shut, and a public pool: no rows leave, and no epsilon gets infinite."""
    scenario = small(
        **{**TWO, **PUBLIC, "training": ROUNDS},
        method={"name": "edgefd", "gate": {"name": "constant", "value": -1e9}},
        privacy={"training": {"name": "dp-sgd"}, "filter": {"name": "dp-kmeans"}, "budget": 50.0},
    )
    result = simulate(scenario, folder=tmp_path)
    assert [event["n_abstained"] for event in result.cells[0].of("round")] == [0, 0]
    kept = entries(cell(tmp_path), 0)
    assert [e.rows for e in kept if e.what == "soft labels"] == [0, 0]
    assert total(kept, RECORD, 1e-5).epsilon < 50

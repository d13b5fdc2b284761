"""Clients of a deployment come, leave and answer late; a round is never counted twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.app import app as client_app
from fedkd import config
from fedkd.errors import FedkdError
from scenarios.grids.inline import InlineGrid
from scenarios.report import page
from scenarios.report.facts import notes
from scenarios.simulate import load_result, simulate
from server import attendance
from server.events import Event, EventLog
from server.job import Job, Roster
from small_runs import consensus, facts, small
from wandering import FIRST, Wandering, deployed, owned, play

UNLIKE = ("seconds", "bytes_pool")
"""Times; and a client that was silent gets the pool again."""


def rounds(events: list[Event]) -> list[dict[str, Any]]:
    """What the rounds and clients said, without times, what only a simulation knows, and what
    counts test samples, of which the simulation has each file's."""
    only = ("accepted_by_class", "precision", "recall", "consensus_accuracy", "accepted")
    only += ("class_hits", "class_seen", "ece_low", "ece_high")
    return [
        {k: v for k, v in event.items() if not k.endswith("_s") and k not in (*UNLIKE, *only)}
        for event in events
        if event["event"] in ("client", "round")
    ]


def of_kind(events: list[Event], kind: str) -> list[tuple[int, int]]:
    return [(e["round"], e["client"]) for e in events if e["event"] == kind]


def test_clients_with_their_own_data_equal_their_simulation(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    result = simulate(simulation, folder=tmp_path / "simulated")
    grid = Wandering(configs)
    events = play(grid, deployed(simulation), tmp_path / "deployed")
    told = [event for event in facts(result) if event["event"] in ("client", "round")]
    for event in told:
        del event["cell"]
    assert rounds(events) == rounds(told)
    here, there = (
        consensus(tmp_path / "deployed"),
        consensus(tmp_path / "simulated/edgefd/seed-1"),
    )
    assert all(np.array_equal(here[key], there[key]) for key in there)


def test_a_client_leaves_and_comes_back(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    grid = Wandering(configs)

    def after(event: Event) -> None:
        if event["event"] == "round":
            grid.here = {FIRST, FIRST + 2} if event["round"] == 1 else {FIRST, FIRST + 1, FIRST + 2}

    attendance = {"quorum": 0.5, "gather_s": 0.1}
    events = play(grid, deployed(simulation, attendance=attendance), tmp_path / "run", after)
    assert of_kind(events, "left") == [(2, 1)]
    assert of_kind(events, "joined") == [(3, 1)]
    assert [e["n_clients"] for e in events if e["event"] == "round"] == [3, 2, 3]


def test_a_run_begins_with_a_quorum_and_takes_whoever_comes_later(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    grid = Wandering(configs)
    grid.here = {FIRST, FIRST + 2}

    def after(event: Event) -> None:
        if event["event"] == "round":
            grid.here = {FIRST, FIRST + 1, FIRST + 2}

    attendance = {"quorum": 0.6, "gather_s": 0.1}
    events = play(grid, deployed(simulation, attendance=attendance), tmp_path / "run", after)
    assert of_kind(events, "joined") == [(2, 1)]
    (pool,) = [event for event in events if event["event"] == "pool"]
    given = [e["contributed"] for e in events if e["event"] == "hello"]
    assert pool["n_contributed"] == sum(given)
    assert len(given) == 2  # what comes later is not in the pool
    last = [e for e in events if e["event"] == "client" and e["round"] == 3]
    assert [e["client"] for e in last] == [0, 1, 2]


def test_too_few_clients_to_begin(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    grid = Wandering(configs)
    grid.here = {FIRST}
    with pytest.raises(FedkdError, match=r"too few clients are there to begin; got '1 of 3"):
        play(grid, deployed(simulation, attendance={"gather_s": 0.05}), None)


def test_who_is_lost_while_saying_hello_is_asked_again(tmp_path: Path) -> None:
    """As by a SuperLink that was killed and has not yet heard its clients' hearts again."""
    configs, simulation = owned(tmp_path / "a")
    calm = play(Wandering(configs), deployed(simulation), tmp_path / "calm")
    configs, simulation = owned(tmp_path / "b")
    grid = Wandering(configs)
    grid.unseen = {FIRST + 1}
    events = play(grid, deployed(simulation), tmp_path / "run")
    (told,) = [event for event in events if event["event"] == "refused"]
    assert (told["client"], told["step"]) == (1, "hello")
    assert "Node Unavailable" in told["reason"]
    assert rounds(events) == rounds(calm)


def test_who_answers_wrongly_is_not_asked_again(tmp_path: Path) -> None:
    """A client whose data cannot be read says so at once; nobody waits for it."""
    configs, simulation = owned(tmp_path)
    (tmp_path / "data/1.npz").write_bytes(b"broken")
    grid = Wandering(configs)
    with pytest.raises(
        FedkdError, match=r"too few clients .* the first that was refused: no hello"
    ):
        play(grid, deployed(simulation, attendance={"gather_s": 3600}), None)
    assert len(grid.delivered) == 3


def test_who_holds_other_samples_than_most_is_left_out(tmp_path: Path) -> None:
    """One client cannot end a run by what it says that it holds."""
    configs, simulation = owned(tmp_path)
    other = np.zeros((20, 1, 5, 5), np.uint8)
    np.savez(tmp_path / "data/0.npz", x=other, y=np.arange(20) % 10)
    attendance = {"quorum": 0.5, "gather_s": 0.05}
    scenario = deployed(simulation, attendance=attendance)
    events = play(Wandering(configs), scenario, tmp_path / "run")
    (told,) = [event for event in events if event["event"] == "refused" and event["round"] == 0]
    assert told["client"] == 0
    assert "holds other samples: uint8 of (1, 5, 5)" in told["reason"]
    assert {e["client"] for e in events if e["event"] == "client"} == {1, 2}


def test_who_gives_too_much_to_the_pool_is_left_out(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    given = [
        event["contributed"]
        for event in play(Wandering(configs), deployed(simulation), None)
        if event["event"] == "hello"
    ]
    most = max(given)
    assert min(given) < most
    again = tmp_path / "again"
    configs, simulation = owned(again)
    scenario = deployed(
        simulation,
        attendance={"quorum": 0.3, "gather_s": 0.05},
        limits={"contributed": most - 1},
    )
    events = play(Wandering(configs), scenario, again / "run")
    (pool,) = [event for event in events if event["event"] == "pool"]
    assert pool["n_contributed"] == sum(one for one in given if one < most)
    refused = {e["client"] for e in events if e["event"] == "refused" and e["round"] == 0}
    assert refused == {i for i, one in enumerate(given) if one == most}


def test_a_round_without_quorum_is_repeated_and_not_counted_twice(tmp_path: Path) -> None:
    """A client is silent in round 2: the repeat equals a round without a fault."""
    configs, simulation = owned(tmp_path / "a")
    calm = play(Wandering(configs), deployed(simulation), tmp_path / "calm")
    configs, simulation = owned(tmp_path / "b")
    grid = Wandering(configs)
    training = {"rounds": 3, "distill": {"epochs": 2}, "timeout_s": 0.3}
    attendance = {"quorum": 1.0, "gather_s": 0.05}

    def after(event: Event) -> None:
        if event["event"] == "round":
            grid.late = {(FIRST + 1, 2)} if event["round"] == 1 else set()
        if event["event"] == "repeated":
            grid.late = set()

    scenario = deployed(simulation, attendance=attendance, training=training)
    events = play(grid, scenario, tmp_path / "run", after)
    (again,) = [event for event in events if event["event"] == "repeated"]
    assert again["round"] == 2
    assert "2 of 3 clients got through round 2" in again["reason"]
    assert rounds(events) == rounds(calm)
    ledgers = sorted((tmp_path / "b").rglob("ledger.jsonl"))
    assert len(ledgers) == 3
    for ledger in ledgers:
        lines = ledger.read_text().splitlines()
        assert len(lines) == len(set(lines))
        assert sum('"soft labels"' in line for line in lines) == 3


def test_a_run_without_quorum_stops_and_goes_on_where_it_was(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path / "a")
    calm = play(Wandering(configs), deployed(simulation), tmp_path / "calm")
    configs, simulation = owned(tmp_path / "b")
    grid = Wandering(configs)

    def after(event: Event) -> None:
        if event["event"] == "round" and event["round"] == 2:
            grid.here = {FIRST}

    attendance = {"quorum": 1.0, "gather_s": 0.05, "repeats": 1}
    scenario = deployed(simulation, attendance=attendance)
    with pytest.raises(FedkdError, match="only 1 clients are there"):
        play(grid, scenario, tmp_path / "run", after)
    grid.here = {FIRST, FIRST + 1, FIRST + 2}
    events = play(grid, scenario, tmp_path / "run")
    assert rounds(events) == rounds(calm)


@pytest.mark.parametrize("policy", ["use", "drop"])
def test_a_late_answer_is_used_or_dropped(tmp_path: Path, policy: str) -> None:
    """Client 1 answers round 2 late, and is away in round 3."""
    configs, simulation = owned(tmp_path)
    grid = Wandering(configs)
    training = {"rounds": 3, "distill": {"epochs": 2}, "timeout_s": 0.3}
    attendance = {"quorum": 0.5, "gather_s": 0.05, "late": policy}
    kept: dict[int, float] = {}

    def after(event: Event) -> None:
        if event["event"] == "round":
            kept[event["round"]] = event["kept"]
            grid.late = {(FIRST + 1, 2)}
            if event["round"] == 2:
                grid.here = {FIRST, FIRST + 2}

    scenario = deployed(simulation, attendance=attendance, training=training)
    events = play(grid, scenario, tmp_path / "run", after)
    late = [(e["round"], e["client"], e["used"]) for e in events if e["event"] == "late"]
    assert late == ([(3, 1, True)] if policy == "use" else [])
    assert kept[2] < kept[1]
    assert kept[3] == (kept[1] if policy == "use" else kept[2])


def test_a_node_cannot_speak_for_another_seat(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    grid = Wandering(configs)
    grid._configs[FIRST + 1] = configs[1] | {"seat": 0}
    honest = {FIRST: 0, FIRST + 1: 1, FIRST + 2: 2}
    attendance = {"quorum": 0.5, "gather_s": 0.05}
    scenario = deployed(simulation, attendance=attendance)
    events: list[Event] = []
    from scenarios.grids.local import serve
    from server.app import make_app

    serve(make_app(scenario, 1, tmp_path / "run", events.append, None, honest), grid)
    refused = [e for e in events if e["event"] == "refused"]
    assert {(e["client"], e["step"]) for e in refused} == {(1, "hello")}
    assert "speaks for a client that is not its own" in refused[0]["reason"]
    assert {e["client"] for e in events if e["event"] == "client"} == {0, 2}


def test_where_no_node_can_leave_nobody_looks(tmp_path: Path) -> None:
    """Our own grids: a look a round at each of a population would cost more than the round."""
    roster = Roster(
        nodes={0: -1},
        n_classes=10,
        shape=(1, 8, 8),
        dtype=torch.float32,
        pool=None,
        truth=None,
        packed=None,
        digest="",
        holders=set(),
    )
    job = Job(scenario=small(), seed=1, state_folder=str(tmp_path))
    attendance.look(InlineGrid(client_app, 3), job, roster, EventLog(None), 2)
    assert roster.nodes == {0: -1}, "a node that is not listed is not looked for"


def test_the_report_of_clients_with_their_own_data(tmp_path: Path) -> None:
    """Nobody knows who holds what, so that plot is left out; the rest of the page is there."""
    configs, simulation = owned(tmp_path)
    scenario = deployed(simulation, references=[])
    play(Wandering(configs), scenario, tmp_path / "run/edgefd/seed-1")
    (tmp_path / "run/scenario.toml").write_text(config.dump(scenario))
    text = page.write(load_result(tmp_path / "run"), tmp_path / "run").read_text()
    assert "Who holds which samples" not in text
    assert "The ledgers of this run lie with its clients" in text
    assert "the simulation also tells" not in text
    assert "<svg" in text or "<img" in text


def test_the_report_says_who_left_came_back_and_was_late(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    grid = Wandering(configs)

    def after(event: Event) -> None:
        if event["event"] == "round" and event["round"] == 1:
            grid.here = {FIRST, FIRST + 2}
            grid.late = {(FIRST + 2, 2)}
        if event["event"] == "round" and event["round"] == 2:
            grid.here = {FIRST, FIRST + 1}

    attendance = {"quorum": 0.3, "gather_s": 0.05, "late": "use"}
    training = {"rounds": 3, "distill": {"epochs": 2}, "timeout_s": 0.5}
    scenario = deployed(simulation, attendance=attendance, training=training)
    play(grid, scenario, tmp_path / "run/edgefd/seed-1", after)
    (tmp_path / "run/scenario.toml").write_text(config.dump(scenario))
    where = "edgefd, seed 1"
    said = notes(load_result(tmp_path / "run"))
    assert f"{where}: client 1 to 2 left (round 2 to 3)" in said
    assert f"{where}: client 1 came, or came back (round 3)" in said
    late = "answered after the deadline of the round before"
    assert f"{where}: client 2 {late} (round 3)" in said

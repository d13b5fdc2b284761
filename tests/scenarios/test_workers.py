"""Worker processes: equal bits for any number of them, and deaths that cost nothing but time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fedkd.config import Grid
from scenarios.grids import workers
from scenarios.simulate import simulate
from server.app import make_app
from server.events import Event
from small_runs import facts, small


def children() -> list[int]:
    """The worker processes that this process has."""
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [
        pid
        for pid in map(int, path.read_text().split())
        if b"scenarios.grids.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.parametrize("n_workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bits(n_workers: int) -> None:
    scenario = small(method={"name": "fedavg"}, partition={"name": "iid", "clients": 7})
    grid = {"name": "workers", "workers": n_workers}
    spread = simulate(scenario.on(small(grid=grid).grid))
    assert facts(spread) == facts(simulate(scenario))
    assert children() == []


def test_a_worker_that_is_killed_is_replaced_and_the_bits_are_the_same(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(row: str, seed: int, event: Event) -> None:
        if event["event"] == "pool" or (event["event"] == "round" and event["round"] == 1):
            killed.append(children()[0])
            os.kill(killed[-1], signal.SIGKILL)

    training = {"rounds": 3, "distill": {"epochs": 2}}
    scenario = small(training=training, grid={"name": "workers", "workers": 2})
    result = simulate(scenario, folder=tmp_path, listener=kill)
    assert len(set(killed)) == 2
    assert facts(result) == facts(simulate(small(training=training)))


def test_a_client_that_kills_its_process_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    events: list[Event] = []
    server = make_app(small(), 1, tmp_path, events.append)
    grid = Grid(name="workers", workers=1)
    workers.run(server, "deadly:app", 3, tmp_path, grid, threads=1)
    refused = [event for event in events if event["event"] == "refused"]
    assert [(event["round"], event["client"]) for event in refused] == [(1, 1), (2, 1)]
    assert all("died 3 times" in event["reason"] for event in refused)
    rounds = [event for event in events if event["event"] == "round"]
    assert len(rounds) == 2
    measured = [e["client"] for e in events if e["event"] == "client" and "accuracy" in e]
    assert measured == [0, 1, 2, 0, 1, 2]

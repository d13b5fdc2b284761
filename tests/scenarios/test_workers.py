"""Worker processes: equal bits for any number of them, and deaths that cost nothing but time."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedkd import config
from fedkd.config_sections import Grid
from fedkd.errors import FedkdError
from scenarios.grids import dealer, pool, workers
from scenarios.grids.carrier import Answer, Carrier, Greeting
from scenarios.grids.dealer import Block
from scenarios.grids.pool import Worker, run_on
from scenarios.grids.workers import Link, WorkersGrid
from scenarios.simulate import simulate
from server import condense
from server.app import make_app
from server.events import Event
from small_runs import consensus, facts, small


def children() -> list[int]:
    """The worker processes that this process has."""
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [
        pid
        for pid in map(int, path.read_text().split())
        if b"scenarios.grids.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def marked(mark: str) -> list[int]:
    """The processes with this setting in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


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


@pytest.mark.parametrize(
    "block",
    [pytest.param(1, id="alone"), pytest.param(3, id="in a block", marks=pytest.mark.slow)],
)
def test_a_client_that_kills_its_process_is_left_out_and_the_others_go_on(
    tmp_path: Path, block: int
) -> None:
    events: list[Event] = []
    grid = {"name": "workers", "workers": 1, "block": block}
    scenario = small(training={"rounds": 1, "distill": {"epochs": 2}}, grid=grid)
    server = make_app(scenario, 1, tmp_path, events.append)
    workers.run(server, "deadly:app", 3, tmp_path, scenario)
    refused = [event for event in events if event["event"] == "refused"]
    assert [(event["round"], event["client"]) for event in refused] == [(1, 1)]
    assert "died 3 times" in refused[0]["reason"]
    measured = [e["client"] for e in events if e["event"] == "client" and "accuracy" in e]
    assert measured == [0, 1, 2]


@pytest.mark.slow
def test_small_clients_travel_in_blocks_and_the_bits_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    send = WorkersGrid._send

    def counted(
        grid: WorkersGrid, worker: Worker[Link], block: Block, *, new_content: bool
    ) -> None:
        sizes.append(len(block))
        send(grid, worker, block, new_content=new_content)

    monkeypatch.setattr(WorkersGrid, "_send", counted)
    scenario = small(partition={"name": "iid", "clients": 60})
    spread = simulate(scenario.on(Grid(name="workers", workers=2)))
    assert facts(spread) == facts(simulate(scenario))
    n_steps = 2 + 2 * 2
    assert sum(sizes) == n_steps * 60
    assert max(sizes) > 1


class Watch:
    """Counts condensed replies as they come, and kills the worker that gets the first big block."""

    def __init__(self, patch: pytest.MonkeyPatch, *, kill: bool) -> None:
        self.n_condensed = 0
        self.killed: list[int] = []
        receive, send = WorkersGrid._receive, WorkersGrid._send

        def counted(grid: WorkersGrid, worker: Worker[Link]) -> Answer:
            answer = receive(grid, worker)
            contents = [reply.content for reply in answer.replies if reply.has_content()]
            self.n_condensed += sum(condense.HEARD in content for content in contents)
            return answer

        def deadly(
            grid: WorkersGrid, worker: Worker[Link], block: Block, *, new_content: bool
        ) -> None:
            send(grid, worker, block, new_content=new_content)
            big = len(block) >= 3 and block[0].metadata.message_type == "train"
            if kill and big and not self.killed:
                self.killed.append(worker.link.process.pid)
                os.kill(worker.link.process.pid, signal.SIGKILL)

        patch.setattr(WorkersGrid, "_receive", counted)
        patch.setattr(WorkersGrid, "_send", deadly)


@pytest.mark.parametrize(
    ("n_workers", "block", "kill"),
    [
        pytest.param(1, 1, False, id="one worker"),
        pytest.param(2, 4, True, id="two, one killed"),
        pytest.param(3, 4, False, id="three", marks=pytest.mark.slow),
        pytest.param(1, 1, True, id="one, killed", marks=pytest.mark.slow),
    ],
)
def test_workers_add_up_what_their_clients_answer_and_the_bits_are_the_same(
    n_workers: int, block: int, kill: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events, bytes and consensus; a block that dies with its worker is lost and counted once."""
    monkeypatch.setattr(condense, "SAVING", 1)  # so that small answers are worth it, too
    monkeypatch.setattr(dealer, "BLOCK_S", 60.0)  # so that blocks are big on a slow machine, too
    scenario = small(
        partition={"name": "iid", "clients": 12},
        method={"name": "no-filter"},
        proxy={"name": "public", "size": 80},
    )
    alone = Grid(name="inline" if block == 1 else "cohort", block=block)
    expected = simulate(scenario.on(alone), folder=tmp_path / "alone")
    watch = Watch(monkeypatch, kill=kill)
    grid = Grid(name="workers", workers=n_workers, block=block)
    spread = simulate(scenario.on(grid), folder=tmp_path / "spread")
    assert len(watch.killed) == kill
    assert watch.n_condensed == 2 * 12 if block == 4 else watch.n_condensed >= 3
    assert facts(spread) == facts(expected)
    ours, theirs = (consensus(tmp_path / n / "no-filter" / "seed-1") for n in ("alone", "spread"))
    assert len(ours["ids"]) == 80
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_cohorts_inside_workers_are_the_cohorts_of_one_process() -> None:
    """To the bit: who learns together owes nothing to how many workers there are."""
    scenario = small(
        partition={"name": "dirichlet", "clients": 7, "alpha": 0.5},
        training={"rounds": 2, "participation": 0.8},
    )
    alone = simulate(scenario.on(Grid(name="cohort", block=3)))
    spread = simulate(scenario.on(Grid(name="workers", workers=2, block=3)))
    assert facts(spread) == facts(alone)
    assert facts(spread) != facts(simulate(scenario)), "nothing learnt together"


@pytest.mark.slow
def test_a_block_for_workers_can_be_calibrated_and_is_kept(tmp_path: Path) -> None:
    scenario = small(training={"rounds": 1}, grid={"name": "workers", "workers": 1, "block": 0})
    result = simulate(scenario, folder=tmp_path)
    assert result.scenario.grid.block == (1,), "one worker gets two blocks of three clients or more"
    one_by_one = simulate(scenario.on(Grid(block=0)))
    assert set(one_by_one.scenario.blocks.values()) == {1}, "one at a time, whatever is fastest"
    assert facts(one_by_one) == facts(result)


def test_a_folder_that_workers_do_not_see_is_one_error(tmp_path: Path) -> None:
    """A folder by its number in this process's table of open files, which no other process has."""
    held = os.open(tmp_path, os.O_DIRECTORY)
    try:
        grid = WorkersGrid("clients.app:app", 3, 1, tmp_path, 1, 1)
        unseen = Path(f"/proc/self/fd/{held}")
        grid._greeting = dataclasses.replace(grid._greeting, folder=unseen)
        with pytest.raises(FedkdError, match=r"does not see the run folder.*fix: .*--out"):
            run_on(grid, make_app(small(), 1, tmp_path))
    finally:
        os.close(held)
    assert children() == []
    assert list(tmp_path.glob(".workers-*")) == []


def test_a_worker_that_cannot_start_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stillborn.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    server = make_app(small(), 1, tmp_path / "run")
    scenario = small(grid={"name": "workers", "workers": 1})
    with pytest.raises(FedkdError, match="die before they can work"):
        workers.run(server, "stillborn:app", 3, tmp_path / "run", scenario)
    with pytest.raises(FedkdError, match=r"cannot start: ModuleNotFoundError.*no_such_app"):
        workers.run(server, "no_such_app:app", 3, tmp_path / "run", scenario)
    assert children() == []


def test_workers_that_never_get_ready_are_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(pool, "START_S", 1.0)
    server = make_app(small(), 1, tmp_path / "run")
    scenario = small(grid={"name": "workers", "workers": 2})
    with pytest.raises(FedkdError, match=r"no worker got ready within 1 s; got '2 asked for'"):
        workers.run(server, "sleeper:app", 3, tmp_path / "run", scenario)
    assert children() == []


def test_a_machine_with_other_versions_is_one_error(tmp_path: Path) -> None:
    greeting = Greeting(app="clients.app:app", n_clients=1, folder=tmp_path, token="t")
    greeting.asked.write_text("t")
    Carrier(greeting)
    assert greeting.answered.read_text() == "t"
    other = dataclasses.replace(greeting, versions={**greeting.versions, "torch": "0.1"})
    with pytest.raises(FedkdError, match=r"another version of torch; got '.*allowed: 0\.1"):
        Carrier(other)


@pytest.mark.slow
def test_ctrl_c_leaves_no_worker(tmp_path: Path) -> None:
    """As a terminal does it: the signal goes to the whole process group."""
    scenario = tmp_path / "scenario.toml"
    training = {"rounds": 500, "distill": {"epochs": 2}}
    scenario.write_text(config.dump(small(training=training)))
    folder = tmp_path / "run"
    mark = f"FEDKD_TEST={tmp_path}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "scenarios.cli", "run", str(scenario)),
            *("--out", str(folder), "--workers", "2"),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FEDKD_TEST": str(tmp_path)},
        process_group=0,
    )
    log = folder / "edgefd" / "seed-1" / "events.jsonl"
    while not log.exists() or '"round"' not in log.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    assert len(marked(mark)) == 3
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == f"stopped; go on with: fedkd resume {folder}"
    assert marked(mark) == []
    assert list(log.parent.glob(".workers-*")) == []

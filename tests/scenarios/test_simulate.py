"""One seed, one result: across stores, folders, interruptions and participation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fedkd
from fedkd import config
from fedkd.errors import FedkdError
from scenarios.simulate import load_result, resume, simulate
from server.events import Event
from small_runs import consensus, facts, small

HOME = Path(__file__).parents[2]


class Stop(Exception):
    """Stands for whatever ends a process."""


def test_the_same_seed_gives_the_same_bits_in_memory_and_in_a_folder(tmp_path: Path) -> None:
    in_memory = simulate(small())
    in_folder = simulate(small(), folder=tmp_path / "run")
    assert facts(in_memory) == facts(in_folder)
    other = simulate(small(seeds=[2]))
    assert facts(other) != facts(in_memory)


@pytest.mark.parametrize("method", ["edgefd", "fedavg", "proxy-labels", "local-only"])
@pytest.mark.parametrize("after", [1, 6, 9, 15])
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(
    tmp_path: Path, method: str, after: int
) -> None:
    scenario = small(method={"name": method}, training={"rounds": 3, "participation": 0.7})
    whole = simulate(scenario, folder=tmp_path / "whole")
    seen = 0

    def stop(row: str, seed: int, event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise Stop

    broken = tmp_path / "broken"
    if after < len(whole.cells[0].events):
        with pytest.raises(Stop):
            simulate(scenario, folder=broken, listener=stop)
    assert facts(resume(broken) if broken.exists() else simulate(scenario)) == facts(whole)
    if broken.exists():
        cell = Path(method) / "seed-1"
        ours, theirs = consensus(broken / cell), consensus(tmp_path / "whole" / cell)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "n_events",
    [pytest.param(6, marks=pytest.mark.slow), 30, pytest.param(70, marks=pytest.mark.slow)],
)
def test_kill_9_and_resume_gives_the_same_bits(tmp_path: Path, n_events: int) -> None:
    """A real process, killed for good soon after an event: 52 in each of its two cells."""
    scenario = tmp_path / "scenario.toml"
    what = small(training={"rounds": 12, "distill": {"epochs": 5}}, references=["no-filter"])
    scenario.write_text(config.dump(what))
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "scenarios.cli", "run", str(scenario), "--out", str(folder)],
        cwd=HOME,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while (
            sum(log.read_text().count("\n") for log in folder.glob("*/*/events.jsonl")) < n_events
        ):
            time.sleep(0.005)
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "no-filter" / "seed-1" / "done").exists(), "it was too late to kill it"
    assert facts(resume(folder)) == facts(simulate(what))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    simulate(small(), folder=folder)
    log = folder / "edgefd" / "seed-1" / "events.jsonl"
    before = log.stat().st_mtime_ns
    told: list[Event] = []
    result = simulate(small(), folder=folder, listener=lambda row, seed, event: told.append(event))
    assert told == []
    assert log.stat().st_mtime_ns == before
    assert result.table() == load_result(folder).table()


def test_a_folder_is_not_shared_between_scenarios_or_processes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    simulate(small(), folder=folder)
    with pytest.raises(FedkdError, match="another scenario"):
        simulate(small(seeds=[5]), folder=folder)

    def intrude(row: str, seed: int, event: Event) -> None:
        with pytest.raises(FedkdError, match="another process"):
            simulate(small(seeds=[6]), folder=tmp_path / "busy")
        raise Stop

    with pytest.raises(Stop):
        simulate(small(seeds=[6]), folder=tmp_path / "busy", listener=intrude)


def test_no_process_reads_another_kind_of_folder(tmp_path: Path) -> None:
    with pytest.raises(FedkdError, match="not a run folder"):
        resume(tmp_path)


def test_participants_change_by_round_and_only_they_are_asked() -> None:
    scenario = small(
        partition={"name": "iid", "clients": 10},
        training={"rounds": 6, "participation": 0.3},
    )
    cell = simulate(scenario).cells[0]
    by_round = [
        tuple(e["client"] for e in cell.of("client") if e["round"] == round_)
        for round_ in range(1, 7)
    ]
    assert all(len(clients) == 3 and list(clients) == sorted(clients) for clients in by_round)
    assert len(set(by_round)) > 1


def test_bytes_are_counted_as_sent() -> None:
    """The answers' closed form: 4 bytes an id and a value, plus a header of bounded size."""
    scenario = small(method={"name": "no-filter"}, proxy={"name": "public", "size": 40})
    cell = simulate(scenario).cells[0]
    pool = cell.of("pool")[0]
    assert pool["bytes_up"] == 0
    for event in cell.of("round"):
        rows = 3 * 40
        assert 0 < event["bytes_up"] - rows * 4 * (10 + 1) < 3 * 512
        assert 0 < event["bytes_down"] - rows * 4 * (10 + 1) < 3 * 512
    assert cell.of("client")[0]["accepted"] == 1.0


def test_the_door_for_notebooks(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(config.dump(small()))
    result = fedkd.simulate(path, rounds=1)
    assert result.scenario.training.rounds == 1
    assert [line["row"] for line in result.table()] == ["edgefd"]
    assert result.folder is None
    with pytest.raises(FedkdError, match=r"unknown key 'training\.round'.*did you mean 'rounds'"):
        fedkd.simulate(path, round=1)


def test_the_ledger_says_what_left_each_client(tmp_path: Path) -> None:
    scenario = small(proxy={"name": "contributed", "fraction": 0.1})
    result = simulate(scenario, folder=tmp_path)
    given = {event["client"]: event["contributed"] for event in result.cells[0].of("hello")}
    for client, rows in given.items():
        path = tmp_path / "edgefd" / "seed-1" / "clients" / f"{client:06d}" / "ledger.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(e["what"], e["round"]) for e in entries] == [
            ("raw samples", 0),
            ("accept mask", 1),
            ("soft labels", 1),
            ("soft labels", 2),
        ]
        assert entries[0]["rows"] == rows > 0
        assert entries[0]["seen_by"] == "server and all clients"


def test_models_may_differ_between_clients() -> None:
    result = simulate(small(model={"names": ["mlp", "cnn"]}))
    assert result.cells[0].last["accuracy"] > 0.15
    with pytest.raises(FedkdError, match="fedavg needs one model"):
        simulate(small(model={"names": ["mlp", "cnn"]}, method={"name": "fedavg"}))


def test_a_canary_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The sentence is longer than a record, in a scenario that would only meet it when training."""
    scenario = small(
        data={"name": "pydoc", "owners": 3, "length": 16},
        partition={"name": "natural"},
        proxy={"name": "public", "size": 20},
        canaries={"repetitions": [0, 1]},
        model={"names": ["gru"]},
        method={"name": "no-filter"},
    )
    with pytest.raises(FedkdError, match=r"does not fit into one record.*fix: raise data.length"):
        simulate(scenario, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_broken_checkpoint_can_be_deleted_and_the_run_goes_on_from_the_one_before(
    tmp_path: Path,
) -> None:
    scenario = small(training={"rounds": 4})
    whole = facts(simulate(scenario, folder=tmp_path))
    cell = tmp_path / "edgefd" / "seed-1"
    (cell / "done").unlink()
    newest = max((cell / "checkpoints").glob("round-*"))
    (newest / "arrays.safetensors").write_bytes(b"torn")
    with pytest.raises(FedkdError, match=r"cannot read the checkpoint.*delete that folder"):
        resume(tmp_path)
    shutil.rmtree(newest)
    assert facts(resume(tmp_path)) == whole


def test_clients_are_measured_every_so_often_and_at_the_end() -> None:
    often = simulate(small(training={"rounds": 5})).cells[0]
    cell = simulate(small(training={"rounds": 5, "evaluate_every": 2})).cells[0]
    assert [event["round"] for event in cell.measured] == [2, 4, 5]
    assert len(cell.of("round")) == 5
    for event in cell.measured:  # measuring changes nothing
        assert event["accuracy"] == often.of("round")[event["round"] - 1]["accuracy"]

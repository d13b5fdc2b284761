"""Comparisons end to end: real cells in real processes, by the command itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedkd import config
from fedkd.errors import FedkdError
from fedkd.files import locked
from scenarios import cli
from scenarios.compare import command
from scenarios.compare.plan import load
from scenarios.compare.run import Job, carry_out, jobs
from scenarios.simulate import load_result, scenario_of, simulate
from server.events import Event
from small_runs import facts, small

HOME = Path(__file__).parents[3]
ASKED = """
[compare]
methods = ["edgefd", "fedmd"]
splits = ["iid", "strong"]
seeds = [1, 2]
references = ["local-only"]
"""
N_CELLS = 3 * 2 * 2
BASE: dict[str, Any] = {"partition": {"name": "iid", "clients": 10}}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    path.write_text(config.dump(small(**BASE)) + ASKED, encoding="utf-8")
    return path


def compare(plan: Path, folder: Path, *more: str) -> Result:
    return CliRunner().invoke(cli.app, ["compare", str(plan), "--out", str(folder), *more])


def done(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Logs of the cells that are over, and when they were written last."""
    return {
        str(path.relative_to(folder)): (
            (path.parent / "events.jsonl").read_bytes(),
            (path.parent / "events.jsonl").stat().st_mtime_ns,
        )
        for path in folder.rglob("done")
    }


def bits(folder: Path) -> list[Any]:
    return [
        (str(path.parent.relative_to(folder)), facts(load_result(path.parent)))
        for path in sorted(folder.glob("*/*/scenario.toml"))
    ]


def children() -> list[int]:
    me = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]


@pytest.fixture(scope="module")
def folder(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed by kill -9 after its first cell, while others went on, and called again."""
    where = tmp_path_factory.mktemp("compare")
    words = ["compare", str(plan), "--out", str(where), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scenarios.cli", *words],
        cwd=HOME,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not done(where):
            time.sleep(0.005)
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    while True:  # its workers end with it, a moment later
        try:
            with locked(where):
                break
        except FedkdError:
            time.sleep(0.05)
    time.sleep(0.5)
    before = done(where)
    assert 0 < len(before) < N_CELLS
    again = compare(plan, where, "--workers", "2")
    assert again.exit_code == 0, again.output
    assert f"{len(before)} of {N_CELLS} cells are done already" in again.output
    after = done(where)
    assert len(after) == N_CELLS
    assert {name: after[name] for name in before} == before
    return where


def test_each_row_on_each_split_is_an_ordinary_run_folder(plan: Path, folder: Path) -> None:
    runs = load(plan).runs
    assert [run.folder(folder).relative_to(folder).as_posix() for run in runs] == [
        f"{split}/{method}"
        for split in ("iid", "strong")
        for method in ("edgefd", "fedmd", "local-only")
    ]
    for run in runs:
        assert scenario_of(run.folder(folder)) == run.scenario
        assert [cell.seed for cell in load_result(run.folder(folder)).cells] == [1, 2]
    report = CliRunner().invoke(cli.app, ["report", str(runs[0].folder(folder))])
    assert report.exit_code == 0, report.output


def test_bits_are_those_of_a_run_and_of_any_number_of_workers(
    plan: Path, folder: Path, tmp_path: Path
) -> None:
    alone = compare(plan, tmp_path / "alone", "--splits", "strong", "--methods", "edgefd")
    assert alone.exit_code == 0, alone.output
    several = {name: found for name, found in bits(folder) if name.startswith("strong")}
    assert len(several) == 3
    for name, found in bits(tmp_path / "alone"):
        assert found == several[name]
    run = load(plan).runs[3]
    assert (run.split, run.method) == ("strong", "edgefd")
    assert several["strong/edgefd"] == facts(simulate(run.scenario))


def test_tables_and_page_say_what_the_runs_say(plan: Path, folder: Path) -> None:
    told = json.loads(compare(plan, folder, "--json").stdout)
    assert (told["folder"], told["remarks"]) == (str(folder), [])
    for line, run in zip(told["table"], load(plan).runs, strict=True):
        (found,) = load_result(run.folder(folder)).table()
        assert line["accuracy"] == found["accuracy"]
        assert line["class_recall"] == found["class_recall"]
        assert line["privacy"] == found["privacy"]
        assert (line["up"] + line["down"]) * 10 == pytest.approx(found["bytes"], abs=1)
    assert (folder / "comparison.html").stat().st_size > 100_000
    assert "not done yet" not in (folder / "comparison.md").read_text()


def test_more_seeds_and_methods_come_to_those_that_are_there(plan: Path, folder: Path) -> None:
    before = done(folder)
    more = ("--seeds", "2,3", "--splits", "iid", "--methods", "edgefd,no-filter")
    grown = compare(plan, folder, *more)
    assert grown.exit_code == 0, grown.output
    after = done(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        f"iid/{name}/{name}/seed-{seed}/done"
        for name, seeds in (("edgefd", [3]), ("no-filter", [2, 3]), ("local-only", [3]))
        for seed in seeds
    }
    assert scenario_of(folder / "iid/edgefd").seeds == (1, 2, 3)
    assert compare(plan, folder).exit_code == 0  # the first two seeds again
    assert done(folder) == after


def test_another_scenario_or_process_is_kept_out(plan: Path, folder: Path) -> None:
    before = done(folder)
    other = compare(plan, folder, "--set", "training.rounds=3")
    assert isinstance(other.exception, FedkdError)
    assert "another scenario" in str(other.exception)
    for busy in (folder, folder / "iid/edgefd"):
        with locked(busy):
            second = compare(plan, folder)
        assert "another process" in str(second.exception)
    assert done(folder) == before


def test_a_failed_cell_keeps_its_reason_and_the_others_go_on(plan: Path, tmp_path: Path) -> None:
    """Digits name no owners, so one split is impossible."""
    words = ("--splits", "natural,iid", "--methods", "edgefd", "--seeds", "1", "--workers", "2")
    found = compare(plan, tmp_path, *words)
    assert found.exit_code == 1, found.output
    reason = "partition natural needs data that name each sample's owner"
    assert found.output.count(f"failed: {reason}") == 4  # as it happens, and below the table
    assert len(done(tmp_path)) == 2
    assert reason in (tmp_path / "natural/edgefd/edgefd/seed-1/failed").read_text()
    for name in ("comparison.md", "comparison.html", "cells.csv"):
        assert "partition natural needs data" in (tmp_path / name).read_text()


def test_a_process_that_dies_fails_its_cell_alone_and_is_tried_again(
    plan: Path, tmp_path: Path
) -> None:
    what = load(plan, (), {"methods": ["edgefd"], "splits": ["iid"], "references": ["local-only"]})
    told: list[tuple[str, Event | None]] = []

    def kill_the_first(job: Job, event: Event | None) -> None:
        if not told:
            (worker,) = children()
            os.kill(worker, signal.SIGKILL)
        told.append((str(job), event))

    carry_out(what, tmp_path, 1, kill_the_first)
    first, *others = jobs(what, tmp_path)
    assert "its process died (signal 9)" in first.failed
    assert all(job.done and not job.failed for job in others)
    assert [name for name, event in told if event is None] == [
        str(job) for job in jobs(what, tmp_path)
    ]
    carry_out(what, tmp_path, 1, lambda job, event: told.append((str(job), event)))
    assert first.done
    assert not first.failed
    assert facts(load_result(tmp_path / "iid/edgefd")) == facts(simulate(what.runs[0].scenario))
    assert children() == []


def test_ctrl_c_writes_what_there_is_and_says_how_to_go_on(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, job: Job) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command._Telling, "_over", stop)
    words = ("--splits", "iid", "--methods", "edgefd", "--seeds", "1", "--set", "training.rounds=1")
    stopped = compare(plan, tmp_path, *words)
    assert stopped.exit_code == cli.INTERRUPTED
    assert "1 of 2 cells are not done yet" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.html").exists()
    assert children() == []
    again = stopped.output.partition("go on with: ")[2].strip()
    assert again == (
        f"fedkd compare {plan} --methods edgefd --splits iid --seeds 1 --set training.rounds=1 "
        f"--out {tmp_path}"
    )
    monkeypatch.undo()
    ended = CliRunner().invoke(cli.app, again.split()[1:])
    assert ended.exit_code == 0, ended.output
    assert len(done(tmp_path)) == 2

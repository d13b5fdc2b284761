"""Following a log that another process writes, cuts and writes again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from rich.console import Console

from deployments import rehearsal
from fedkd.errors import FedkdError
from scenarios.deploy import init
from scenarios.deploy.runs import submit
from scenarios.follow import follow
from scenarios.simulate import simulate
from scenarios.watch import watch
from server.app import FAILED
from server.events import EventLog
from small_runs import small


def test_a_log_that_is_cut_and_written_again_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log, over = EventLog(path), threading.Event()
    told = follow(path, over.is_set)
    log.emit("pool", n_samples=3)
    log.emit("client", round=1, client=0)
    log.emit("round", round=1, accuracy=0.5)
    size = log.size()
    log.emit("client", round=2, client=0)
    assert [next(told)["event"] for _ in range(4)] == ["pool", "client", "round", "client"]
    log.cut(size)
    with path.open("a") as file:
        file.write('{"event": "client", "round": 2')  # torn: it is not told yet
    log.cut(size)
    log.emit("client", round=2, client=0)
    log.emit("round", round=2, accuracy=0.6)
    over.set()
    rest = [(event["event"], event["round"]) for event in told]
    assert rest.count(("round", 2)) == 1
    assert ("round", 1) not in rest


def test_a_log_written_again_beyond_where_it_was_read(tmp_path: Path) -> None:
    """Cut, and longer again before the next look: what is read begins in the middle of a line."""
    path = tmp_path / "events.jsonl"
    log, over = EventLog(path), threading.Event()
    told = follow(path, over.is_set)
    log.emit("pool", n_samples=3)
    log.emit("round", round=1, seconds=1.5)
    size = log.size()
    log.emit("client", round=2, client=0, train_s=0.25)
    seen = [next(told) for _ in range(3)]
    log.cut(size)
    log.emit("client", round=2, client=0, train_s=0.123456789)
    log.emit("round", round=2, seconds=0.5)
    over.set()
    seen += list(told)
    assert [e["round"] for e in seen if e["event"] == "round"] == [1, 2]
    assert sum(e["event"] == "pool" for e in seen) == 1


def test_a_deployed_run_is_told_as_one_and_its_end_is_said(tmp_path: Path) -> None:
    """Also by its own folder: it is not to be resumed here."""
    init.init(tmp_path / "lab", ["localhost"], 8100, ["a", "b"])
    run = submit(tmp_path / "lab/server", rehearsal(2))
    (run.folder / FAILED).write_text("no quorum")
    for folder in (run.folder, tmp_path / "lab/server"):
        with pytest.raises(FedkdError, match=r"the run stopped: no quorum; .*deploy submit"):
            watch(folder, Console(quiet=True))


def test_watching_a_run_that_is_over_tells_its_rounds(tmp_path: Path) -> None:
    scenario = small(training={"rounds": 2})
    simulate(scenario, folder=tmp_path / "run")
    with (tmp_path / "said").open("w") as file:
        watch(tmp_path / "run", Console(file=file, width=200))
    said = (tmp_path / "said").read_text()
    assert "round 1/2" in said
    assert said.count("round 2/2") == 1

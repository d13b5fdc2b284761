"""`fedkd bench` and what it is made of: real processes, real works, on scikit-learn's digits."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fedkd import config
from fedkd.data.dataset import as_input
from fedkd.errors import FedkdError
from fedkd.models import zoo
from fedkd.rng import stream
from fedkd.training import cross_entropy, fit
from scenarios import cli
from scenarios.bench import engine, loops, machine, messages, runs, suite, work
from scenarios.bench.clock import Clock
from scenarios.bench.runs import Engine, Outcome, Run

HOME = Path(__file__).parents[2]
SMALL = work.Work(model="mlp", clients=3, samples=150, proxy=200, rounds=2)
CNN = replace(SMALL, model="cnn", proxy=0)
FAST = "import json, time; print(json.dumps({'n': 6, 'began': time.time(), 'seconds': [9, 2, 3]}))"


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Works on digits, on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "fashion", lambda: False)
        work.images.cache_clear()
        parent = tmp_path_factory.mktemp("works")
        yield {
            name: work.prepare(what, parent / name) for name, what in (("mlp", SMALL), ("cnn", CNN))
        }
    work.images.cache_clear()


@pytest.fixture(scope="module")
def rivals() -> ModuleType:
    """`benchmarks/rivals/work.py`, which is in no package."""
    path = HOME / "benchmarks" / "rivals" / "work.py"
    spec = importlib.util.spec_from_file_location("rivals_work", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_arrays_are_what_the_scenario_deals(folders: dict[str, Path]) -> None:
    for name, what in (("mlp", SMALL), ("cnn", CNN)):
        assert work.read(folders[name]) == what
        scenario = config.load(folders[name] / "scenario.toml")
        world = scenario.world(what.seed)
        with np.load(folders[name] / "parts.npz") as arrays:
            assert arrays["x"].shape == (what.clients, what.samples, 1, 8, 8)
            assert len(arrays["pool"]) == what.proxy
            for client in range(what.clients):
                x, y = world.client(client)
                assert np.array_equal(arrays["x"][client], x)
                assert np.array_equal(arrays["y"][client], y)
    with pytest.raises(FedkdError, match=r"too few images.*at most 9"):
        work.prepare(replace(SMALL, clients=10), folders["mlp"])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_bare_loop_learns_what_a_client_learns(folders: dict[str, Path], name: str) -> None:
    what, parts = work.read(folders[name]), loops.load(folders[name])
    phase = config.load(folders[name] / "scenario.toml").training.local
    start = {key: w.numpy() for key, w in loops.new_model(what, parts).state_dict().items()}
    models = []
    for client in range(2):
        model = loops.new_model(what, parts)
        draws = stream(what.seed, "bench", 1, client, "batches")
        fit(model, parts.x[client], parts.y[client], cross_entropy, phase, draws)
        models.append(model)
    said = loops.play(what, parts, range(2), 1, start)
    if what.average:
        for key, total in said.items():
            wanted = sum(model.state_dict()[key] for model in models)
            assert total == pytest.approx(np.asarray(wanted), abs=1e-6)
        moved = [np.abs(total - 2 * start[key]).max() for key, total in said.items()]
        assert max(moved) > 1e-3
    else:
        with torch.no_grad():
            labels = [torch.softmax(model(parts.pool), dim=1) for model in models]
        assert said["answers"] == pytest.approx(np.asarray(sum(labels)), abs=1e-5)


def test_two_processes_do_the_same_work(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in loops.memory.VARIABLES:
        monkeypatch.setenv(variable, "0")  # so that it is put back
    what, parts = CNN, loops.load(folders["cnn"])
    start = {key: w.numpy() for key, w in loops.new_model(what, parts).state_dict().items()}
    whole = loops.play(what, parts, range(3), 1, start)
    shares = [loops.play(what, parts, range(3)[share::2], 1, start) for share in range(2)]
    for key, total in whole.items():
        assert shares[0][key] + shares[1][key] == pytest.approx(total, abs=1e-4)
    told = loops.bare(folders["cnn"], 2)
    assert told["n"] == 3
    assert len(told["seconds"]) == what.rounds


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_rivals_have_our_models_and_data(
    folders: dict[str, Path], rivals: ModuleType, name: str
) -> None:
    x, y, pool = rivals.parts(str(folders[name]))
    parts = loops.load(folders[name])
    assert torch.equal(x, as_input(parts.x))
    assert torch.equal(y, parts.y)
    assert torch.equal(pool, parts.pool)
    ours = zoo.build(name, (1, 8, 8), 10, torch.Generator())
    theirs = rivals.network(name, (1, 8, 8))
    weights = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(weights))
    with torch.no_grad():
        assert torch.allclose(theirs(x[0]), ours(x[0]), atol=1e-6)


def test_an_engine_is_measured_from_outside(folders: dict[str, Path]) -> None:
    run = runs.carry_out(Engine("inline", runs.ours("engine", "work", folders["mlp"], "inline")))
    assert (run.n, len(run.seconds)) == (SMALL.clients, SMALL.rounds - 1)
    assert 0.2 < run.start_s < 60
    assert len(run.more["resident_bytes"]) == SMALL.rounds
    assert run.peak_bytes >= run.more["resident_bytes"][-1] > 50e6
    assert engine.grid_of("cohort").block == (0,)  # calibrated


def test_runs_alternate_and_a_failed_engine_rests(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    note = f"open({str(diary)!r}, 'a').write({{!r}});"
    engines = [
        Engine("a", script(note.format("a") + FAST)),
        Engine("broken", script(note.format("!") + "raise SystemExit('no such luck')")),
        Engine("b", script(note.format("b") + FAST)),
    ]
    told: list[str] = []
    found = runs.alternate(engines, 2, told.append)
    assert diary.read_text() == "a!bab"
    assert [len(outcome.runs) for outcome in found.values()] == [2, 0, 2]
    assert found["broken"].failure == "no such luck"
    assert told[0] == "1/2 a: 2.4 a second"
    assert found["a"].runs[0].first_s == 9
    assert "| broken | not run: no such luck |" in runs.table(found)


def test_an_engine_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    text = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(runs.EngineFailed, match="too long"):
        runs.carry_out(Engine("slow", script(text)), timeout_s=5)
    child = int(pid_file.read_text())
    deadline = time.monotonic() + 10
    while machine.resident_bytes(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert machine.resident_bytes(child) == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_that_of_the_whole_tree() -> None:
    hold = "import sys; x = bytearray(80_000_000); print(flush=True); sys.stdin.read()"
    text = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    process = subprocess.Popen(script(text), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        alone, tree = machine.resident_bytes(process.pid), machine.tree_bytes(process.pid)
    finally:
        process.communicate()
    assert alone < 80e6 < tree - alone < 120e6
    assert machine.resident_bytes(process.pid) == 0  # it is gone


def run_of(n: int, *seconds: float) -> Run:
    return Run(n=n, start_s=1.5, first_s=4, seconds=list(seconds), peak_bytes=12_000_000)


def test_ratios_are_medians_of_neighbours() -> None:
    found = {
        "a": Outcome([run_of(10, 1), run_of(10, 2), run_of(10, 5)]),  # 10, 5, 2 a second
        "b": Outcome([run_of(10, 2), run_of(10, 1), run_of(10, 2)]),  # 5, 10, 5: 0.5, 2, 2.5
        "c": Outcome(failure="no Ray"),
    }
    assert runs.table(found).splitlines()[2:] == [
        "| a | 5.0 (2.0 to 10.0) | 1.00 | 1.5 | 4.00 | 12 |",
        "| b | 5.0 (5.0 to 10.0) | 2.00 | 1.5 | 4.00 | 12 |",
        "| c | not run: no Ray | | | | |",
    ]
    assert run_of(8, 1, 4, 2).rate == 4


def test_a_clock_tells_rounds_by_ticks_and_by_their_length() -> None:
    ticking, told = Clock(), Clock()
    before = time.time()
    ticking.tick()
    time.sleep(0.05)
    ticking.tick()
    told.took(5.0)
    told.took(6.0)
    report: dict[str, Any] = ticking.report(3)
    assert 0.05 <= report["seconds"][0] < 2
    assert before <= report["began"] <= time.time()
    assert told.report(3)["seconds"] == [5.0, 6.0]
    assert told.report(3)["began"] == pytest.approx(before - 5, abs=2)


@pytest.mark.parametrize("path", messages.PATHS)
def test_messages_are_counted_by_the_client(path: str) -> None:
    told = messages.carry("inline", path, 5, 3)
    assert told["n"] == 5
    assert len(told["seconds"]) == 3
    assert messages.VALUES.nbytes == 1_000_000


def test_the_server_does_check_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "VALUES", 2 * messages.VALUES)
    with pytest.raises(RuntimeError, match="not a distribution"):
        messages.carry("inline", "server", 2, 1)


def test_the_filter_is_fitted_and_scored_apart(folders: dict[str, Path]) -> None:
    told = engine.fit_filter(10, 400, 3)
    parts = zip(told["fit_s"], told["score_s"], strict=True)
    assert [fit + score for fit, score in parts] == pytest.approx(told["seconds"][1:])
    assert min(told["fit_s"]) > min(told["score_s"]) > 0


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("fashion", [False, True])
def test_there_are_enough_images_for_the_suite(
    monkeypatch: pytest.MonkeyPatch, quick: bool, fashion: bool
) -> None:
    monkeypatch.setattr(suite, "fashion", lambda: fashion)
    n_images = 70_000 if fashion else 1_797
    for title, what in suite.works(quick).items():
        assert what.clients * what.samples + what.proxy + work.N_TEST <= n_images
        assert ("Fashion-MNIST" in title) == fashion


def test_the_stamp_says_where_and_when() -> None:
    stamp = machine.stamp(seed=7)
    cores = f"{len(os.sched_getaffinity(0))} cores"
    assert all(word in stamp for word in (cores, "torch 2", "load", "seed 7", "UTC", "memory"))


def test_a_page_that_cannot_be_written_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "none" / "page.md"
    monkeypatch.setattr("sys.argv", ["fedkd", "bench", "--out", str(out)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("fedkd: no such folder")


@pytest.mark.slow
def test_the_whole_suite_and_a_table_of_rivals(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "scenarios.cli", "bench", "--quick", "--out", str(page)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout == page.read_text()
    assert done.stdout.count("\n## ") == 4
    assert "not run" not in done.stdout
    engines = ["inline", "plain-loop", "plain-flower", "blazefl"]
    command = [
        sys.executable,
        str(HOME / "benchmarks" / "rounds.py"),
        "--quick",
        "--work",
        "W1-fedavg",
    ]
    done = subprocess.run(
        [*command, "--engines", *engines],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line[:2] == "| "]
    assert rows == ["engine", *engines]
    assert done.stdout.count("not run") == 1

"""The contract of the grids: whatever carries the messages, the result is that of `inline`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import config
from fedkd.config_sections import Grid
from scenarios.simulate import Result, load_result, simulate
from small_runs import consensus, facts, ledgers, small

HOME = Path(__file__).parents[2]


def carry_out(scenario: config.Scenario, folder: Path) -> Result:
    """Run in a process of its own, as a user would: Ray leaves threads and warnings behind."""
    path = folder.with_suffix(".toml")
    path.write_text(config.dump(scenario))
    command = [sys.executable, "-m", "scenarios.cli", "run", str(path), "--out", str(folder)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_result(folder)


CLASSES: dict[str, dict[str, Any]] = {
    "edgefd": {"training": {"rounds": 2, "participation": 0.7}},
    "no-filter": {"method": {"name": "no-filter"}},
    "local-only": {"method": {"name": "local-only"}},
    "fedavg": {"method": {"name": "fedavg"}},
    "proxy-labels": {"method": {"name": "proxy-labels"}},
    "features and mixed models": {
        "method": {"name": "edgefd", "score": {"space": "features", "per_class": True}},
        "model": {"names": ["mlp", "cnn"]},
        "proxy": {"name": "public", "size": 100},
    },
    "population": {
        "partition": {"name": "virtual", "clients": 1000, "samples": 60},
        "proxy": {"name": "public", "size": 100},
        "training": {"rounds": 3, "participation": 0.003},
    },
    "text": {
        "data": {"name": "pydoc", "owners": 3, "length": 48, "test_fraction": 0.1},
        "partition": {"name": "natural"},
        "proxy": {"name": "public", "size": 30},
        "canaries": {"repetitions": [0, 2], "in_proxy": True},
        "model": {"names": ["gru"]},
        "method": {"name": "no-filter"},
        "training": {"rounds": 2, "local": {"epochs": 0.1}, "evaluate_every": 2},
        "privacy": {"release": {"name": "swing", "noise": "gaussian", "scale": 0.01}},
    },
    "weights, a draw and the server's model": {
        "method": {"name": "fedaux", "select": {"name": "entropy", "share": 0.3}},
    },
    "fd": {"method": {"name": "fd"}},
    "secure sums": {"privacy": {"server": {"name": "secure-aggregation"}}},
    "protected": {
        "training": {"rounds": 2, "local": {"batch_size": 256}},
        "privacy": {
            "training": {"name": "dp-sgd", "noise_multiplier": 1.0},
            "filter": {"name": "dp-kmeans"},
            "release": {"name": "gaussian"},
        },
    },
}
"""One scenario of every kind that runs by other code than the rest."""


def cell_of(scenario: config.Scenario, folder: Path) -> Path:
    return folder / scenario.method.name / "seed-1"


def left(cell: Path) -> dict[str, list[str]]:
    """Each client's ledger, without the entry of a contribution of nothing.

    Flower's nodes are greeted one by one, ours only where clients have something to contribute.
    """
    nothing = '"what":"raw samples","rows":0,'
    kept = {
        client: [line for line in lines if nothing not in line]
        for client, lines in ledgers(cell).items()
    }
    return {client: lines for client, lines in kept.items() if lines}


BY_DEFAULT = ("population", "protected")
"""On `workers`: between them, all that clients do. Starting processes takes seconds."""


@pytest.mark.parametrize(
    ("grid", "name"),
    [
        pytest.param(
            grid,
            name,
            marks=[] if grid == "workers" and name in BY_DEFAULT else pytest.mark.slow,
        )
        for grid in ("workers", "ray", "flower")
        for name in CLASSES
    ],
)
def test_every_grid_equals_inline_to_the_bit(tmp_path: Path, grid: str, name: str) -> None:
    """Events, the last consensus or weights, and what every client's ledger says."""
    scenario = small(**CLASSES[name])
    inline = simulate(scenario, folder=tmp_path / "inline")
    assert not [event for event in inline.cells[0].events if event["event"] == "refused"]
    elsewhere = scenario.on(Grid(name=grid, workers=2))  # type: ignore[arg-type]
    if grid == "workers":
        other = simulate(elsewhere, folder=tmp_path / grid)
    else:
        other = carry_out(elsewhere, tmp_path / grid)
    assert facts(inline) == facts(other)
    ours, theirs = (cell_of(scenario, tmp_path / of) for of in ("inline", grid))
    assert left(ours) == left(theirs)
    mine, found = consensus(ours), consensus(theirs)
    assert mine.keys() == found.keys()
    assert all(np.array_equal(mine[key], found[key]) for key in mine)


TOLERANCES = {"local-only": (0.02, 0.0), "fedavg": (0.02, 1e-3), "proxy-labels": (0.02, 0.0)}
"""Of the accuracies, and of consensus values or weights; else `USUAL`."""
USUAL = (0.02, 0.02)


@pytest.mark.parametrize("name", CLASSES)
def test_a_cohort_is_close_to_inline(tmp_path: Path, name: str) -> None:
    """Clients that are advanced together round otherwise, and training carries that on."""
    scenario = small(**CLASSES[name])
    inline = simulate(scenario, folder=tmp_path / "inline")
    together = scenario.on(Grid(name="cohort", block=(4,)))
    cohort = simulate(together, folder=tmp_path / "cohort")
    of_accuracy, of_values = TOLERANCES.get(name, USUAL)
    for one, other in zip(facts(inline), facts(cohort), strict=True):
        assert one.keys() == other.keys()
        for key in one:
            if "accuracy" in key:
                assert other[key] == pytest.approx(one[key], abs=of_accuracy), key
    ours, theirs = (cell_of(scenario, tmp_path / of) for of in ("inline", "cohort"))
    assert ledgers(ours) == ledgers(theirs)
    mine, found = consensus(ours), consensus(theirs)
    assert mine.keys() == found.keys()
    for key in mine:
        np.testing.assert_allclose(found[key], mine[key], rtol=0, atol=of_values)


COUNTED = """
import sys
from fedkd import config
from scenarios.grids.actors import ActorsGrid
from scenarios.simulate import simulate
from server import condense

receive, n_condensed = ActorsGrid._receive, 0

def counted(grid, worker):
    global n_condensed
    answer = receive(grid, worker)
    n_condensed += sum(condense.HEARD in reply.content for reply in answer.replies)
    return answer

ActorsGrid._receive = counted
condense.SAVING = 1
simulate(config.load(sys.argv[1]), folder=sys.argv[2])
print(n_condensed)
"""


@pytest.mark.slow
def test_ray_actors_add_up_what_their_clients_answer(tmp_path: Path) -> None:
    """Two blocks of four in each of two rounds, each condensed, to the bits of a cohort."""
    scenario = small(
        partition={"name": "iid", "clients": 8},
        method={"name": "no-filter"},
        proxy={"name": "public", "size": 80},
    )
    alone = simulate(scenario.on(Grid(name="cohort", block=4)), folder=tmp_path / "alone")
    path, folder = tmp_path / "ray.toml", tmp_path / "ray"
    path.write_text(config.dump(scenario.on(Grid(name="ray", workers=2, block=4))))
    command = [sys.executable, "-c", COUNTED, str(path), str(folder)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] == "16"
    assert facts(load_result(folder)) == facts(alone)
    ours, theirs = (consensus(run / "no-filter" / "seed-1") for run in (tmp_path / "alone", folder))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_flwr_run_runs_the_same_apps(tmp_path: Path) -> None:
    """`flwr run .` on a local SuperLink of its own port and home, ended by its id afterwards."""
    folder = tmp_path / "runs"
    home = tmp_path / "flwr"
    port = "39177"
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *("flwr", "run", ".", "--stream"),
        *("--federation-config", "num-supernodes=3 client-resources-num-cpus=1"),
        *(
            "--run-config",
            f"folder='{folder}' set='partition.name=iid partition.clients=3 training.rounds=1'",
        ),
    ]
    done = subprocess.run(
        command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=300
    )
    try:
        log = folder / "edgefd-digits-seed1" / "events.jsonl"
        assert log.exists(), done.stdout + done.stderr
        assert '"event": "round"' in log.read_text()
    finally:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes()
            except OSError:
                continue
            if mine:
                os.kill(int(process.name), 15)

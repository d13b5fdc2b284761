"""The same apps on Flower's simulation engine give the same bits as in process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedkd import config
from scenarios.simulate import Result, load_result, simulate
from small_runs import consensus, facts, small

HOME = Path(__file__).parents[2]


def carry_out(scenario: config.Scenario, folder: Path) -> Result:
    """Run in a process of its own, as a user would: Ray leaves threads and warnings behind."""
    path = folder.with_suffix(".toml")
    path.write_text(config.dump(scenario))
    command = [sys.executable, "-m", "scenarios.cli", "run", str(path), "--out", str(folder)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_result(folder)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"training": {"rounds": 2, "participation": 0.7}}, id="edgefd"),
        pytest.param(
            {
                "method": {"name": "edgefd", "score": {"space": "features", "per_class": True}},
                "model": {"names": ["mlp", "cnn"]},
                "training": {"rounds": 2},
                "proxy": {"name": "public", "size": 100},
            },
            id="features and mixed models",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("grid", ["workers", pytest.param("ray", marks=pytest.mark.slow), "flower"])
def test_every_grid_equals_inline_to_the_bit(
    tmp_path: Path, grid: str, changes: dict[str, object]
) -> None:
    inline = simulate(small(**changes), folder=tmp_path / "inline")
    other = carry_out(small(**changes, grid={"name": grid}), tmp_path / grid)
    assert facts(inline) == facts(other)
    ours = consensus(tmp_path / "inline" / "edgefd" / "seed-1")
    theirs = consensus(tmp_path / grid / "edgefd" / "seed-1")
    assert len(ours["ids"]) > 0
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


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
    alone = simulate(scenario.on(config.Grid(name="cohort", block=4)), folder=tmp_path / "alone")
    path, folder = tmp_path / "ray.toml", tmp_path / "ray"
    path.write_text(config.dump(scenario.on(config.Grid(name="ray", workers=2, block=4))))
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

"""Ray in earnest: machines that die, that have no room, that are not there, and Ctrl-C."""

from __future__ import annotations

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
from ray_cluster import Node, cluster, command_line
from scenarios.simulate import load_result, simulate
from small_runs import consensus, facts, small

HOME = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(scenario: config.Scenario, folder: Path, *options: str) -> subprocess.Popen[str]:
    """`fedkd run` in a process of its own, as a user would: Ray leaves threads behind."""
    path = folder.with_suffix(".toml")
    path.write_text(config.dump(scenario))
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "scenarios.cli", "run", str(path)),
            *("--out", str(folder), *options),
        ],
        cwd=HOME,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FEDKD_TEST": str(folder)},
        process_group=0,
    )


def reached(process: subprocess.Popen[str], folder: Path, what: str) -> None:
    """Wait until the event log says something."""
    log = folder / "edgefd" / "seed-1" / "events.jsonl"
    while not log.exists() or what not in log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def marked(folder: Path) -> list[int]:
    """The processes that a run started, by their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FEDKD_TEST={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def actors(node: Node) -> list[int]:
    """The processes of our actors on a node."""
    return [pid for pid in node.processes() if command_line(pid).startswith(b"ray::Actor")]


def environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def equal_runs(one: Path, other: Path) -> bool:
    """Whether events and consensus of two runs are the same to the bit."""
    ours, theirs = (consensus(folder / "edgefd" / "seed-1") for folder in (one, other))
    same = all(np.array_equal(ours[key], theirs[key]) for key in ours)
    return same and facts(load_result(one)) == facts(load_result(other))


def test_a_node_that_dies_in_a_round_costs_time_and_no_bits(tmp_path: Path) -> None:
    """Two machines without our code; one loses power, and the cluster has no room for another."""
    scenario = small(
        partition={"name": "iid", "clients": 6},
        training={"rounds": 4, "local": {"epochs": 20}, "distill": {"epochs": 2}},
    )
    folder = tmp_path / "run"
    with cluster(2) as made:
        process = start(scenario, folder, "--ray-address", made.address)
        reached(process, folder, '"round": 1, "n_clients"')
        assert [len(actors(node)) for node in made.nodes] == [1, 1]
        (victim,) = actors(made.nodes[1])
        variables = environment(victim)
        assert variables["OMP_NUM_THREADS"] == "1"
        assert "MALLOC_TRIM_THRESHOLD_" in variables
        assert "py_modules_files" in variables["PYTHONPATH"]
        made.nodes[1].kill()
        assert not (folder / "edgefd" / "seed-1" / "done").exists(), "it was too late to kill it"
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, out + error
    simulate(scenario, folder=tmp_path / "inline")
    assert equal_runs(folder, tmp_path / "inline")


def test_an_actor_that_dies_is_replaced_and_gpus_are_shared_in_fractions(tmp_path: Path) -> None:
    scenario = small(
        partition={"name": "iid", "clients": 4},
        training={"rounds": 4, "local": {"epochs": 20}, "distill": {"epochs": 2}},
        grid={"name": "inline", "client_gpus": 0.5},
    )
    folder = tmp_path / "run"
    with cluster(1, "--num-cpus=3", "--num-gpus=1") as made:
        (head,) = made.nodes
        process = start(scenario, folder, "--ray-address", made.address)
        reached(process, folder, '"round": 1, "n_clients"')
        before = actors(head)
        assert len(before) == 2, "half a GPU each, though there are three CPUs"
        os.kill(before[0], signal.SIGKILL)
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, out + error

        greedy = scenario.on(Grid(client_gpus=2))
        process = start(greedy, tmp_path / "greedy", "--ray-address", made.address)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2
        assert error.startswith("fedkd: no machine of the Ray cluster has room for a worker")
        assert "3 CPUs and 1 GPUs" in error
        assert error.count("\n") == 1
    simulate(scenario, folder=tmp_path / "inline")
    assert equal_runs(folder, tmp_path / "inline")


def test_a_cluster_of_another_version_is_one_error(tmp_path: Path) -> None:
    with cluster(1, ray_version="2.9.0") as made:
        process = start(small(), tmp_path / "run", "--ray-address", made.address)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert error.startswith("fedkd: the Ray cluster runs another version of Python or Ray")
    assert "2.9.0" in error
    assert error.count("\n") == 1


def test_ctrl_c_leaves_no_ray(tmp_path: Path) -> None:
    """As a terminal does it: the signal goes to the whole process group."""
    folder = tmp_path / "run"
    scenario = small(training={"rounds": 500, "distill": {"epochs": 2}})
    process = start(scenario, folder, "--ray")
    reached(process, folder, '"round": 1, "n_clients"')
    assert any(command_line(pid).startswith(b"ray::Actor") for pid in marked(folder))
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.strip() == f"stopped; go on with: fedkd resume {folder}"
    deadline = time.monotonic() + 20  # Ray's processes are told to end, not waited for
    while marked(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(folder) == []

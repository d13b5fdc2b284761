"""A population of a million: what a round costs is up to those who take part in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from small_runs import small

HOME = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from fedkd import config
from scenarios.simulate import simulate

def resident_kb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

def note(row, seed, event):
    if event["event"] == "round":
        print(json.dumps([event["n_clients"], resident_kb()]), flush=True)

simulate(config.from_json(sys.argv[1]), folder=sys.argv[2], listener=note)
"""


@pytest.mark.slow
def test_memory_is_flat_over_200_rounds(tmp_path: Path) -> None:
    """4,000 clients of a million pass through; each keeps a model, on disk."""
    scenario = small(
        partition={"name": "virtual", "clients": 10**6, "samples": 30},
        proxy={"name": "public", "size": 200},
        method={"name": "no-filter"},
        training={"rounds": 200, "participation": 20e-6, "evaluate_every": 200},
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, scenario.model_dump_json(), str(tmp_path / "run")],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=300,
    )
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert [n_clients for n_clients, _ in rounds] == [20] * 200, done.stderr
    early, late = rounds[40][1], rounds[-2][1]  # the last round is measured on the test set
    assert late - early < 20_000, [kb for _, kb in rounds[::20]]

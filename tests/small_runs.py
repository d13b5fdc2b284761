"""Small real runs that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedkd import config
from fedkd.config import Scenario
from scenarios.results import Result
from scenarios.simulate import resume, simulate

TIMES = "_s"


def small(**changes: Any) -> Scenario:
    """Three clients on digits, two rounds: about a second. `changes` replace whole sections."""
    table: dict[str, Any] = {
        "name": "small",
        "data": {"name": "digits"},
        "partition": {"name": "dirichlet", "clients": 3, "alpha": 0.5},
        "training": {"rounds": 2, "distill": {"epochs": 2}},
    }
    return config.parse({**table, **changes})


TEXTS: dict[str, Any] = {
    "data": {"name": "pydoc", "length": 32},
    "partition": {"name": "iid", "clients": 2},
    "model": {"names": ["gru"]},
    "proxy": {"name": "public", "size": 20},
}
"""Changes of `small` to short texts."""


class Stop(Exception):
    """What `stopped_and_resumed` stops a run by."""


def stopped_and_resumed(scenario: Scenario, folder: Path, round_: int) -> Result:
    """The result of a run that was stopped at the first client's event of a round, and went on."""

    def stop(row: str, seed: int, event: dict[str, Any]) -> None:
        if event["event"] == "client" and event["round"] == round_:
            raise Stop

    with pytest.raises(Stop):
        simulate(scenario, folder=folder, listener=stop)
    return resume(folder)


def facts(result: Result) -> list[dict[str, Any]]:
    """The events of a result without what may differ between equal runs: times."""
    return [
        {
            "cell": (cell.row, cell.seed),
            **{k: v for k, v in event.items() if k != "seconds" and not k.endswith(TIMES)},
        }
        for cell in result.cells
        for event in cell.events
    ]


def consensus(cell_folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a cell's last checkpoint."""
    newest = max((cell_folder / "checkpoints").glob("round-*"))
    return load_file(newest / "arrays.safetensors")


def ledgers(cell_folder: Path) -> dict[str, list[str]]:
    """The lines of each client's ledger, by the name of its folder."""
    files = sorted((cell_folder / "clients").glob("*/ledger.jsonl"))
    return {file.parent.name: file.read_text().splitlines() for file in files}

"""The stages that most methods leave out, where each client brings its own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.simulate import simulate
from small_runs import consensus
from wandering import Wandering, deployed, owned, play


@pytest.mark.parametrize(
    "method",
    [
        {"name": "fedaux", "select": {"name": "entropy", "share": 0.5}},
        {"name": "cfd"},
        {"name": "fd"},
    ],
    ids=lambda method: method["name"],
)
def test_what_is_deployed_is_what_is_simulated(tmp_path: Path, method: dict[str, Any]) -> None:
    """What was told, the server's model and what the draw remembers: to the bit."""
    configs, simulation = owned(tmp_path)
    for each in configs:
        each["consent"] = json.dumps({"exchanges": ["soft-labels", "label-means"]})
    scenario = simulation.model_copy(update={"method": deployed(simulation, method=method).method})
    simulate(scenario, folder=tmp_path / "simulated")
    events = play(Wandering(configs), deployed(scenario), tmp_path / "deployed")
    assert not [event for event in events if event["event"] == "refused"]
    ours = consensus(tmp_path / "simulated" / method["name"] / "seed-1")
    theirs = consensus(tmp_path / "deployed")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)

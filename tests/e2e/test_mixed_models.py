"""Ten clients of five architectures learn together: each better than alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd import config
from scenarios.simulate import simulate

SCENARIO = Path(__file__).parents[2] / "scenarios" / "mixed-digits.toml"


@pytest.mark.slow
def test_every_client_of_five_architectures_is_better_than_alone() -> None:
    """On all ten classes, of which each client holds two: alone, 20 % is the most."""
    scenario = config.load(SCENARIO, ["seeds=[1]", "references=['local-only']"])
    assert len(set(scenario.model.names)) == 5
    found = {
        cell.row: {e["client"]: e["accuracy"] for e in cell.of("client") if e["round"] == 10}
        for cell in simulate(scenario).cells
    }
    together, alone = found["edgefd"], found["local-only"]
    assert together.keys() == alone.keys() == set(range(10))
    for client in range(10):
        assert together[client] > 0.85 > 0.25 > alone[client], scenario.model.names[client % 5]

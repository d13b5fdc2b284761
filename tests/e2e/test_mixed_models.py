"""Ten clients of five architectures learn together: each better than alone."""

from __future__ import annotations

import pytest

from fedkd import config
from scenarios.simulate import simulate

FIVE = ["mlp", "small-cnn", "resnet8", "mobile", "vit"]


@pytest.mark.slow
def test_every_client_of_five_architectures_is_better_than_alone() -> None:
    """Full digits, two classes a client; accuracy on all ten classes in the last round."""
    scenario = config.parse(
        {
            "partition": {"name": "pathological", "clients": 10, "classes_per_client": 2},
            "model": {"names": FIVE},
            "references": ["local-only"],
            "training": {"rounds": 10, "distill": {"epochs": 5}},
        }
    )
    result = simulate(scenario)
    found = {
        cell.row: {e["client"]: e["accuracy"] for e in cell.of("client") if e["round"] == 10}
        for cell in result.cells
    }
    together, alone = found["edgefd"], found["local-only"]
    assert together.keys() == alone.keys() == set(range(10))
    for client in range(10):
        assert together[client] > alone[client] + 0.3, FIVE[client % 5]

"""FedAvg with a CNN, whose weights lie in channels-last memory."""

from __future__ import annotations

from scenarios.simulate import simulate
from small_runs import small


def test_convolutional_weights_are_averaged() -> None:
    """Torch's own parameters_to_vector refuses such weights, so the server made no first round."""
    result = simulate(
        small(
            method={"name": "fedavg"},
            model={"names": ["cnn"]},
            partition={"name": "iid", "clients": 2},
            training={"rounds": 2, "local": {"epochs": 3}},
        )
    )
    rounds = result.cells[0].measured
    assert rounds[-1]["accuracy"] > 0.8
    assert rounds[-1]["accuracy_sd"] == 0  # all have the same average

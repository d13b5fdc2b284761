"""The block that a calibration chooses: what is fastest of what fits in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedkd import calibration
from fedkd.calibration import bytes_a_client, calibrate
from fedkd.config_sections import Phase
from fedkd.models.zoo import Classifier, build
from fedkd.rng import torch_stream

ROOMY = 10**10


def mlp(side: int) -> Classifier:
    return build("mlp", (1, side, side), 5, torch_stream(1, "m"))


def batch(n: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, 1, side, side), torch.zeros(n, dtype=torch.int64)


def found(most: int = 200, budget: int = ROOMY) -> int:
    x, y = batch(16, 8)
    return calibrate(
        mlp(8), x, y, Phase(), n_steps=5, n_predicted=100, most=most, budget_bytes=budget
    )


def test_the_fastest_candidate_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of made-up times a client, each time another candidate's is the least."""
    for best in calibration.CANDIDATES:
        monkeypatch.setattr(
            calibration, "_seconds_a_client", lambda *given, best=best: abs(given[4] - best)
        )
        assert found() == best


@pytest.mark.parametrize(("most", "allowed"), [(1, {1}), (10, {1, 8}), (40, {1, 8, 32})])
def test_no_block_is_larger_than_the_population(most: int, allowed: set[int]) -> None:
    assert found(most) in allowed


def test_no_block_is_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_seconds_a_client", lambda *given: 1 / given[4])
    x, y = batch(16, 8)
    need = bytes_a_client(mlp(8), x, y, Phase())
    assert found(budget=32 * need) == 32
    assert found(budget=32 * need - 1) == 8
    assert found(budget=0) == 1


@pytest.mark.parametrize(
    ("phase", "copies"),
    [(Phase(), 5), (Phase(optimizer="sgd", momentum=0.9), 4), (Phase(optimizer="sgd"), 3)],
    ids=["adam", "momentum", "sgd"],
)
def test_the_memory_of_a_client_is_that_of_its_tensors(phase: Phase, copies: int) -> None:
    """An MLP keeps its input, what comes out of each dense layer, and the softmax of its logits."""
    n, side = 300, 20  # more records than a block of predictions has: the step decides
    x, y = batch(n, side)
    inputs, hidden, classes = side * side, 128, 5
    weights = 4 * copies * (inputs * hidden + hidden + hidden * classes + classes)
    kept = 4 * n * (inputs + 2 * hidden + classes) + 8 * n
    got = bytes_a_client(mlp(side), x, y, phase)
    assert got == pytest.approx(weights + 2 * kept, rel=0.02)


def test_calibration_leaves_the_model_alone() -> None:
    net = mlp(8)
    before = {key: weight.clone() for key, weight in net.state_dict().items()}
    x, y = batch(16, 8)
    calibrate(net, x, y, Phase(), n_steps=5, n_predicted=100, most=8, budget_bytes=ROOMY)
    assert all(torch.equal(weight, before[key]) for key, weight in net.state_dict().items())

"""Clients trained together learn what each learns alone, up to rounding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import cohort, training
from fedkd.config import Phase
from fedkd.exchange.distill import KL
from fedkd.models.zoo import Classifier, build
from fedkd.rng import stream, torch_stream

SIZES = (40, 7, 23, 40)
C = 5


def clients(name: str) -> tuple[list[Classifier], list[Tensor], list[Tensor]]:
    models = [build(name, (1, 8, 8), C, torch_stream(1, "model", client=i)) for i in range(4)]
    xs = [torch.rand(n, 1, 8, 8, generator=torch_stream(1, "x", client=n)) for n in SIZES]
    ys = [torch.randint(C, (n,), generator=torch_stream(1, "y", client=n)) for n in SIZES]
    return models, xs, ys


@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
@pytest.mark.parametrize(
    "phase",
    [
        Phase(epochs=2, batch_size=16, learning_rate=0.01),
        Phase(epochs=1.4, batch_size=8, optimizer="sgd", learning_rate=0.1, momentum=0.9),
        Phase(epochs=0.1, batch_size=100),
    ],
    ids=["adam", "sgd", "less than a pass"],
)
def test_together_is_alone(name: str, phase: Phase) -> None:
    """Within 1e-4 of each weight: rounding, grown over up to ten steps."""
    models, xs, ys = clients(name)
    alone = copy.deepcopy(models)
    losses = [
        training.fit(m, x, y, training.cross_entropy, phase, stream(1, "test", client=i))
        for i, (m, x, y) in enumerate(zip(alone, xs, ys, strict=True))
    ]
    draws = [stream(1, "test", client=i) for i in range(4)]
    got = cohort.Cohort(models).fit(xs, ys, training.cross_entropy, phase, draws)
    np.testing.assert_allclose(got, losses, rtol=1e-4)
    for mine, theirs in zip(models, alone, strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_soft_targets_and_prediction() -> None:
    models, xs, _ = clients("mlp")
    pool = torch.rand(30, 1, 8, 8, generator=torch_stream(1, "pool"))
    target = torch.softmax(torch.rand(30, C, generator=torch_stream(1, "t")), dim=1)
    phase = Phase(batch_size=16, learning_rate=0.01)
    alone = copy.deepcopy(models)
    for i, model in enumerate(alone):
        training.fit(model, pool, target, KL().loss, phase, stream(1, "test", client=i))
    together = cohort.Cohort(models)
    draws = [stream(1, "test", client=i) for i in range(4)]
    together.fit([pool] * 4, [target] * 4, KL().loss, phase, draws)
    logits = together.predict(xs[0])
    assert logits.shape == (4, SIZES[0], C)
    for i, model in enumerate(alone):
        torch.testing.assert_close(logits[i], training.predict(model, xs[0]), rtol=0, atol=1e-4)


def test_blocks_hold_one_architecture_each_and_similar_sizes() -> None:
    models: list[Classifier] = [
        build("small-cnn" if i % 3 == 0 else "mlp", (1, 8, 8), C, torch_stream(1, "m"))
        for i in range(10)
    ]
    sizes = [10 * i for i in range(10)]
    cut = cohort.blocks(models, sizes, at_most=3)
    assert sorted(client for block in cut for client in block) == list(range(10))
    assert cut == [[9, 6, 3], [0], [8, 7, 5], [4, 2, 1]]


def test_a_model_with_batch_statistics_is_refused() -> None:
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="buffers"):
        cohort.Cohort([Classifier(body, 4, 2)] * 2)


def test_calibration_chooses_a_candidate() -> None:
    models = [build("mlp", (1, 8, 8), C, torch_stream(1, "m"))]
    assert cohort.calibrate(models, (1, 8, 8), Phase(), most=10) in (1, 8)
    assert cohort.calibrate(models, (1, 8, 8), Phase(), most=1) == 1

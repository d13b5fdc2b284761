"""Clients trained together learn what each learns alone, up to rounding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import cohort, training
from fedkd.config_sections import Phase
from fedkd.data.dataset import NO_LABEL
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
    kinds = ["cnn" if i % 3 == 0 else "mlp" for i in range(10)]
    cut = cohort.blocks(kinds, [10 * i for i in range(10)], {"cnn": 3, "mlp": 4})
    assert cut == [[9, 6, 3], [0], [8, 7, 5, 4], [2, 1]]


def texts(name: str) -> tuple[list[Classifier], Tensor, Tensor]:
    """Three models, records of tokens and next tokens, some of them missing."""
    models = [
        build(name, (1, 1, 6), C, torch_stream(1, "model", client=i), torch.int16) for i in range(3)
    ]
    tokens = torch.randint(C, (40, 7), generator=torch_stream(1, "tokens"))
    targets = tokens[:, 1:].clone()
    targets[torch.rand(40, 6, generator=torch_stream(1, "gone")) < 0.3] = NO_LABEL
    return models, tokens[:, :6].to(torch.int16).view(40, 1, 1, 6), targets


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_texts_together_are_texts_alone(name: str) -> None:
    """Each client on records of its own, of which it has another number."""
    models, x, y = texts(name)
    sizes = (40, 11, 23)
    alone = copy.deepcopy(models)
    phase = Phase(epochs=2, batch_size=8, learning_rate=0.01)
    losses = [
        training.fit(
            model, x[:n], y[:n], training.cross_entropy, phase, stream(1, "test", client=i)
        )
        for i, (model, n) in enumerate(zip(alone, sizes, strict=True))
    ]
    draws = [stream(1, "test", client=i) for i in range(3)]
    together = cohort.Cohort(models)
    got = together.fit(
        [x[:n] for n in sizes], [y[:n] for n in sizes], training.cross_entropy, phase, draws
    )
    np.testing.assert_allclose(got, losses, rtol=1e-4)
    graded = cohort.Cohort(models).grades(x, y)
    for i, model in enumerate(alone):
        torch.testing.assert_close(
            cohort.Cohort(models).predict(x)[i], training.predict(model, x), rtol=0, atol=1e-3
        )
        nats, positions = graded[i].nats, graded[i].positions
        torch.testing.assert_close(nats, training.grades(model, x, y).nats, rtol=0, atol=1e-2)
        assert torch.equal(positions, (y != NO_LABEL).sum(dim=1))


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_weighted_part_of_a_pool_is_learnt_as_alone(kind: str) -> None:
    rows = torch.tensor([3, 17, 4, 22, 9])
    if kind == "texts":
        models, x, _ = texts("gru")
        target = torch.softmax(torch.rand(5, 6, C, generator=torch_stream(1, "t")), dim=2)
        weight = (torch.rand(5, 6, generator=torch_stream(1, "w")) < 0.5).float()
    else:
        models, xs, _ = clients("mlp")
        x = xs[0]
        target = torch.softmax(torch.rand(5, C, generator=torch_stream(1, "t")), dim=1)
        weight = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0])
    phase = Phase(epochs=3, batch_size=2, learning_rate=0.01)
    alone = copy.deepcopy(models)
    losses = [
        training.fit(
            model,
            x,
            target,
            KL().loss,
            phase,
            stream(1, "test", client=i),
            rows=rows,
            weight=weight,
        )
        for i, model in enumerate(alone)
    ]
    n = len(models)
    draws = [stream(1, "test", client=i) for i in range(n)]
    got = cohort.Cohort(models).fit(
        [x] * n, [target] * n, KL().loss, phase, draws, rows=rows, weight=weight
    )
    np.testing.assert_allclose(got, losses, rtol=1e-4)
    for mine, theirs in zip(models, alone, strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "gru"])
def test_rows_of_each_client_s_own_are_predicted_as_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 16 records: clients are done with their rows after none, one, two and three."""
    monkeypatch.setattr(cohort, "evaluation_batch", lambda model, x: 16)
    if name == "gru":
        models, x, _ = texts(name)
    else:
        models, xs, _ = clients(name)
        x = xs[0]
    draws = stream(1, "rows")
    rows = [torch.from_numpy(draws.permutation(40)[:n]) for n in (40, 0, 17, 5)[: len(models)]]
    found = cohort.Cohort(models).predict_rows(x, rows)
    for model, mine, logits in zip(models, rows, found, strict=True):
        torch.testing.assert_close(logits, training.predict(model, x[mine]), rtol=0, atol=1e-5)


def test_grades_together_are_grades_alone() -> None:
    models, xs, _ = clients("small-cnn")
    x, y = xs[0].repeat(8, 1, 1, 1), torch.arange(320) % C
    for model, graded in zip(models, cohort.Cohort(models).grades(x, y), strict=True):
        alone = training.grades(model, x, y)
        assert torch.equal(graded.hits, alone.hits)
        assert torch.equal(graded.positions, alone.positions)
        torch.testing.assert_close(graded.nats, alone.nats, rtol=1e-4, atol=1e-5)


def test_a_model_with_batch_statistics_is_refused() -> None:
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="buffers"):
        cohort.Cohort([Classifier(body, 4, 2)] * 2)

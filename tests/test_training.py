"""Local learning against closed forms, hand-written optimisers and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from fedkd import training
from fedkd.config_sections import Phase
from fedkd.data.dataset import NO_LABEL
from fedkd.exchange.distill import KL
from fedkd.models.zoo import Classifier, build
from fedkd.rng import stream, torch_stream
from fedkd.training import (
    batches,
    cross_entropy,
    features,
    fit,
    grades,
    inputs,
    n_learnt,
    n_steps,
    predict,
)

Doubles = NDArray[np.float64]
N, D, C, L = 23, 6, 4, 9


def linear() -> Classifier:
    """softmax regression in float64, from weights that are not zero."""
    net = Classifier(nn.Flatten(), D, C).double()
    with torch.no_grad():
        for key, weight in net.named_parameters():
            weight.copy_(torch.from_numpy(stream(1, key).normal(size=tuple(weight.shape))))
    return net


def problem() -> tuple[Tensor, Tensor]:
    draws = stream(2, "test")
    return torch.from_numpy(draws.normal(size=(N, 1, 1, D))), torch.from_numpy(
        draws.integers(C, size=N)
    )


def weights(net: nn.Module) -> Doubles:
    """[classes, inputs + 1], the bias last."""
    head = net.get_submodule("head")
    joined = torch.cat([head.weight, head.bias[:, None]], dim=1)  # type: ignore[list-item, index]
    return joined.detach().numpy().copy()


def gradient(w: Doubles, x: Doubles, y: NDArray[np.int64]) -> Doubles:
    """Of the mean cross-entropy of softmax regression: (softmax - onehot)ᵀ x / n."""
    x = np.hstack([x, np.ones((len(x), 1))])
    return (softmax(x @ w.T, axis=1) - np.eye(C)[y]).T @ x / len(x)


def by_hand(w: Doubles, phase: Phase, draws: np.random.Generator, epochs: int) -> Doubles:
    """Whole epochs of SGD with momentum or Adam, as their papers write them."""
    x, y = (
        tensor.flatten(1).numpy() if tensor.ndim > 1 else tensor.numpy() for tensor in problem()
    )
    first, second, step = np.zeros_like(w), np.zeros_like(w), 0
    for _ in range(epochs):
        order = draws.permutation(N)
        for start in range(0, N, phase.batch_size):
            batch = order[start : start + phase.batch_size]
            g, step = gradient(w, x[batch], y[batch]), step + 1
            if phase.optimizer == "sgd":
                first = phase.momentum * first + g
                w = w - phase.learning_rate * first
            else:
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
                unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
                w = w - phase.learning_rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return w


def test_one_step_of_sgd_is_the_closed_form() -> None:
    net, (x, y) = linear(), problem()
    before = weights(net)
    loss = fit(
        net,
        x,
        y,
        cross_entropy,
        Phase(optimizer="sgd", learning_rate=0.5, momentum=0, batch_size=N),
        stream(3, "test"),
    )
    flat = x.flatten(1).numpy()
    np.testing.assert_allclose(weights(net), before - 0.5 * gradient(before, flat, y.numpy()))
    logits = np.hstack([flat, np.ones((N, 1))]) @ before.T
    assert loss == pytest.approx(-log_softmax(logits, axis=1)[np.arange(N), y].mean())


@pytest.mark.parametrize("batch_size", [1, 5, N, 100])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "adam"},
    ],
)
def test_fit_is_the_optimiser_by_hand(settings: dict[str, Any], batch_size: int) -> None:
    phase = Phase(epochs=3, batch_size=batch_size, learning_rate=0.1, **settings)
    net, (x, y) = linear(), problem()
    expected = by_hand(weights(net), phase, stream(3, "test"), epochs=3)
    fit(net, x, y, cross_entropy, phase, stream(3, "test"))
    np.testing.assert_allclose(weights(net), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adam"}])
def test_no_moments_are_carried_from_one_phase_to_the_next(settings: dict[str, Any]) -> None:
    phase = Phase(batch_size=N, learning_rate=0.1, **settings)
    net, (x, y) = linear(), problem()
    expected = weights(net)
    for seed in (3, 4):
        fit(net, x, y, cross_entropy, phase, stream(seed, "test"))
        expected = by_hand(expected, phase, stream(seed, "test"), epochs=1)
    np.testing.assert_allclose(weights(net), expected, rtol=1e-9, atol=1e-12)


def positions(n: int, epochs: float, batch_size: int) -> list[list[int]]:
    """The batches that a loss is asked for."""
    seen: list[list[int]] = []

    def loss(logits: Tensor, batch: Tensor) -> Tensor:
        seen.append(batch.tolist())
        return logits.sum(dim=1)

    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    phase = Phase(epochs=epochs, batch_size=batch_size)
    fit(net, torch.zeros(n, 1, 1, 1), torch.arange(n), loss, phase, rng())
    return seen


def rng() -> np.random.Generator:
    return stream(5, "test")


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [(0.001, 1), (0.2, 1), (0.4, 2), (0.58, 3), (1, 5), (1.6, 8), (2, 10), (7, 35)],
)
def test_a_share_of_a_pass_is_that_share_of_its_batches(epochs: float, steps: int) -> None:
    assert len(positions(50, epochs, batch_size=10)) == steps
    assert len(positions(41, epochs, batch_size=10)) == steps  # the fifth batch holds one sample


@given(n=st.integers(1, 40), epochs=st.integers(1, 4), batch_size=st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_every_sample_is_seen_once_an_epoch(n: int, epochs: int, batch_size: int) -> None:
    found = positions(n, epochs, batch_size)
    sizes = [len(batch) for batch in found]
    assert sizes == ([batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)) * (
        epochs
    )
    flat = [position for batch in found for position in batch]
    passes = [flat[start : start + n] for start in range(0, n * epochs, n)]
    assert all(sorted(one) == list(range(n)) for one in passes)


@given(n=st.integers(1, 40), epochs=st.floats(0.01, 4), batch_size=st.integers(1, 50))
@settings(deadline=None, max_examples=200)
def test_the_number_of_samples_learnt_is_that_of_the_batches(
    n: int, epochs: float, batch_size: int
) -> None:
    phase = Phase(epochs=epochs, batch_size=batch_size)
    assert n_learnt(n, phase) == sum(len(batch) for batch in batches(n, phase, rng()))


def test_each_epoch_has_an_order_of_its_own() -> None:
    first, second = (positions(50, 2, batch_size=50)[i] for i in (0, 1))
    assert first != second != sorted(second)


def test_the_loss_is_the_mean_over_samples_not_over_batches() -> None:
    value = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return 0 * logits.sum(dim=1) + target

    for batch_size in (1, 2, 3, 5):
        phase = Phase(epochs=2, batch_size=batch_size)
        got = fit(net, torch.zeros(5, 1, 1, 1), value, loss, phase, rng())
        assert got == pytest.approx(31 / 5)


def test_nothing_to_learn_changes_nothing() -> None:
    net, (x, y) = linear(), problem()
    before = weights(net)
    assert math.isnan(fit(net, x[:0], y[:0], cross_entropy, Phase(epochs=9), rng()))
    assert np.array_equal(weights(net), before)


@pytest.mark.parametrize("name", ["mlp", "cnn", "small-cnn"])
def test_the_same_draws_give_the_same_bits(name: str) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        net = build(name, (1, 8, 8), C, torch_stream(1, "test"))
        x = torch.rand(N, 1, 8, 8, generator=torch_stream(1, "x"))
        fit(net, x, problem()[1], cross_entropy, Phase(batch_size=5), stream(seed, "test"))
        return net.state_dict()

    one, same, other = run(1), run(1), run(2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
def test_pixels_are_their_255th_parts(name: str) -> None:
    pixels = torch.randint(256, (N, 1, 8, 8), generator=torch_stream(1, "x")).to(torch.uint8)
    floats = pixels.float() / 255
    nets = [build(name, (1, 8, 8), C, torch_stream(1, "test")) for _ in range(2)]
    for net, x in zip(nets, (pixels, floats), strict=True):
        fit(net, x, problem()[1], cross_entropy, Phase(batch_size=5), rng())
    assert torch.equal(predict(nets[0], pixels), predict(nets[1], floats))
    assert torch.equal(features(nets[0], pixels), features(nets[1], floats))


@pytest.mark.parametrize("n", [0, 1, training.EVALUATION_BATCH, 2 * training.EVALUATION_BATCH + 3])
@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
def test_predictions_in_blocks_are_those_of_the_model(name: str, n: int) -> None:
    net = build(name, (1, 8, 8), C, torch_stream(1, "test"))
    x = torch.rand(n, 1, 8, 8, generator=torch_stream(1, "x"))
    cases: list[tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = [
        (predict, net),
        (features, net.features),
    ]
    for ours, whole in cases:
        got = ours(net, x)
        torch.testing.assert_close(got, whole(x).detach(), rtol=1e-5, atol=1e-6)
        assert not got.requires_grad
    assert all(weight.grad is None for weight in net.parameters())


class Oracle(Classifier):
    """Says the class that each position of its input holds; unsure of itself while in training."""

    def forward(self, x: Tensor) -> Tensor:
        said = x.flatten(1).long()
        logits = nn.functional.one_hot(said, C).float()
        logits = -logits if self.training else logits
        return logits[:, 0] if x.dtype == torch.float32 else logits


@given(st.lists(st.tuples(st.integers(0, C - 1), st.integers(0, C - 1)), min_size=1, max_size=600))
@settings(deadline=None, max_examples=60)
def test_grades_of_images_are_the_recall_of_the_confusion_matrix(
    pairs: list[tuple[int, int]],
) -> None:
    y, said = (torch.tensor(column) for column in zip(*pairs, strict=True))
    net = Oracle(nn.Identity(), 1, C).train()
    got = grades(net, said.float().reshape(-1, 1, 1, 1), y)
    matrix = confusion_matrix(y, said, labels=range(C))
    right = torch.bincount(y, weights=got.hits.double(), minlength=C)
    np.testing.assert_array_equal(right, matrix.diagonal())
    assert torch.equal(got.positions, torch.ones(len(y), dtype=torch.int64))
    # The logits are one-hot, so a hit costs log(e + 3) - 1 nats and a miss log(e + 3).
    nats = math.log(math.e + C - 1) - (y == said).double()
    torch.testing.assert_close(got.nats.double(), nats)


@pytest.mark.parametrize("n", [0, 1, training.EVALUATION_BATCH + 1])
def test_grades_of_texts_count_the_positions_with_a_label(n: int) -> None:
    draws = stream(4, "test")
    y = torch.from_numpy(draws.integers(C, size=(n, L)))
    y[torch.from_numpy(draws.random((n, L)) < 0.4)] = NO_LABEL
    said = torch.from_numpy(draws.integers(C, size=(n, L)))
    got = grades(Oracle(nn.Identity(), 1, C), said.to(torch.int16).view(n, 1, 1, L), y)
    known = (y != NO_LABEL).numpy()
    hits = (y == said).numpy()
    log_p = np.where(hits, 1.0, 0.0) - math.log(math.e + C - 1)
    np.testing.assert_array_equal(got.positions, known.sum(axis=1))
    np.testing.assert_array_equal(got.hits, (hits & known).sum(axis=1))
    np.testing.assert_allclose(got.nats, -(log_p * known).sum(axis=1), rtol=1e-5)


class TinyText(Classifier):
    """An embedding, one GRU layer and a head, in float64."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(C, 3), 5, C)
        self.gru = nn.GRU(3, 5, batch_first=True)
        self.double()
        with torch.no_grad():
            for key, weight in self.named_parameters():
                weight.copy_(torch.from_numpy(stream(1, key).normal(size=tuple(weight.shape))))

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.gru(self.body(x.flatten(1)))[0]
        return out


def text() -> tuple[Tensor, Tensor]:
    """Tokens [n, 1, 1, L] and next tokens, of which some are missing; of the last record, all."""
    tokens = torch.from_numpy(stream(2, "text").integers(C, size=(N, L + 1)))
    targets = tokens[:, 1:].clone()
    targets[torch.from_numpy(stream(3, "text").random((N, L)) < 0.3)] = NO_LABEL
    targets[-1] = NO_LABEL
    return tokens[:, :-1].to(torch.int16).view(N, 1, 1, L), targets


def text_loss(net: Classifier, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The mean over records of the mean over positions that count, one position at a time."""
    log_p = net(x.long()).log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for record in range(len(x)):
        there = [i for i in range(L) if y[record, i] != NO_LABEL and weight[record, i] > 0]
        parts = [-weight[record, i] * log_p[record, i, y[record, i]] for i in there]
        total = total + (sum(parts) / len(parts) if parts else 0.0)
    return total / len(x)


@pytest.mark.parametrize("weigh", ["nothing", "records", "positions"])
def test_a_step_on_texts_is_that_of_the_mean_over_positions_then_records(weigh: str) -> None:
    x, y = text()
    weight = {
        "nothing": None,
        "records": torch.from_numpy(stream(5, "w").random(N)),
        "positions": torch.from_numpy(stream(5, "w").integers(3, size=(N, L)) / 2.0),
    }[weigh]
    net, other = TinyText(), TinyText()
    by_position = torch.ones(N, L).double() if weight is None else weight.view(N, -1).expand(N, L)
    expected = text_loss(other, x, y, by_position)
    expected.backward()  # type: ignore[no-untyped-call]
    phase = Phase(optimizer="sgd", learning_rate=0.5, batch_size=N)
    loss = fit(net, x, y, cross_entropy, phase, rng(), weight=weight)
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(mine, theirs - 0.5 * theirs.grad, rtol=1e-9, atol=1e-12)


def test_soft_targets_of_texts_are_hard_ones_where_they_are_one_hot() -> None:
    """Where a target is missing, its weight is 0. KL from a one-hot target is cross-entropy."""
    x, y = text()
    known = (y != NO_LABEL).double()
    soft = nn.functional.one_hot(y.clamp_min(0), C).double()
    hard_net, soft_net = TinyText(), TinyText()
    phase = Phase(epochs=2, batch_size=7, learning_rate=0.01)
    hard = fit(hard_net, x, y, cross_entropy, phase, rng())
    assert fit(soft_net, x, soft, KL().loss, phase, rng(), weight=known) == pytest.approx(hard)
    for mine, theirs in zip(hard_net.parameters(), soft_net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_weights_scale_the_loss_of_an_image() -> None:
    x, y = problem()
    weight = torch.from_numpy(stream(5, "w").integers(3, size=N) / 2.0)
    net, twin = linear(), linear()
    alone = (weight * nn.functional.cross_entropy(twin(x), y, reduction="none")).mean()
    alone.backward()  # type: ignore[no-untyped-call]
    phase = Phase(optimizer="sgd", learning_rate=0.5, batch_size=N)
    assert fit(net, x, y, cross_entropy, phase, rng(), weight=weight) == pytest.approx(alone.item())
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(mine, theirs - 0.5 * theirs.grad, rtol=1e-9, atol=1e-12)


def test_rows_learn_a_part_of_the_records() -> None:
    x, y = problem()
    rows = torch.tensor([5, 2, 19, 7, 7])
    net, copied = linear(), linear()
    phase = Phase(epochs=2, batch_size=2, learning_rate=0.1)
    loss = fit(net, x, y[rows], cross_entropy, phase, rng(), rows=rows)
    assert loss == fit(copied, x[rows], y[rows], cross_entropy, phase, rng())
    assert np.array_equal(weights(net), weights(copied))


@given(st.integers(1, 40), st.floats(0.01, 4), st.integers(1, 50))
@settings(deadline=None, max_examples=100)
def test_the_number_of_steps_is_that_of_the_batches(n: int, epochs: float, size: int) -> None:
    phase = Phase(epochs=epochs, batch_size=size)
    assert n_steps(n, phase) == len(list(batches(n, phase, rng())))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_records_are_prepared_once(dtype: torch.dtype) -> None:
    x = torch.randint(100, (4, 3, 5, 6), generator=torch_stream(1, "x")).to(dtype)
    ready = inputs(x)
    assert ready.is_contiguous(memory_format=torch.channels_last)
    assert inputs(ready) is ready
    assert inputs(ready[torch.tensor([3, 1])]).stride() == ready.stride()

"""Paired-logits inversion: planted classes that are found, uniform answers that tell nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax

from fedkd.config_sections import Phase
from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit import paired_logits
from privacy.audit.images import class_means
from privacy.audit.paired_logits import (
    FLOOR,
    TEMPERATURE,
    Inverter,
    invert,
    optimal_pairs,
    private_classes,
    scores,
    tempered,
    without,
)
from privacy.audit.uploads import Answer

Ints = NDArray[np.int64]
N_CLASSES = 5
EVERY = np.arange(N_CLASSES)
SHORT = Phase(epochs=20, batch_size=16, learning_rate=3e-3)


def planted(seed: int = 1, n: int = 300) -> tuple[torch.Tensor, Ints]:
    """Images of one brightness a class, 0.1 to 0.9, and their labels."""
    labels = stream(seed, "test", purpose="labels").integers(N_CLASSES, size=n)
    level = 0.1 + 0.8 * torch.from_numpy(labels) / (N_CLASSES - 1)
    return level.float()[:, None, None, None].expand(-1, 1, 8, 8).contiguous(), labels


def said(labels: Ints, sure: float, seed: int = 1) -> Answer:
    """Soft labels of a model whose logit of the right class is `sure`, with noise of 0.3."""
    noise = stream(seed, "test", purpose="logits").normal(0, 0.3, (len(labels), N_CLASSES))
    rows = softmax(sure * np.eye(N_CLASSES)[labels] + noise, axis=1)
    return np.arange(len(labels), dtype=np.int32), rows.astype(np.float32)


def uniform(n: int) -> Answer:
    return np.arange(n, dtype=np.int32), np.full((n, N_CLASSES), 1 / N_CLASSES, np.float32)


# --- pairs ---


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.floats(0.2, 20))
def test_pairs_are_the_papers_row_by_row(classes: list[int], flatness: float) -> None:
    """Each row is about its own class: the released code fills in every class of the batch."""
    client, server = optimal_pairs(np.array(classes), 7, flatness)
    high = np.exp(1 / flatness)
    for row, j in enumerate(classes):
        for i in range(7):
            assert client[row, i] == (i == j)
            expected = (high if i == j else 1) / (6 + high)
            assert server[row, i] == pytest.approx(expected)
    buggy = np.full_like(server, 1 / (6 + high))
    buggy[:, classes] = high / (6 + high)
    assert np.allclose(buggy, server) == (len(set(classes)) == 1)


@pytest.mark.parametrize("flatness", [0.5, 5.0])
def test_the_servers_part_is_the_entropy_regularised_maximiser(flatness: float) -> None:
    _, server = optimal_pairs(np.array([2]), 4, flatness)
    best = minimize(
        lambda p: -p[2] + flatness * np.sum(p * np.log(p)),
        np.full(4, 0.25),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(server[0], best.x, atol=1e-4)


def test_a_soft_label_is_tempered_as_its_logits_are() -> None:
    logits = stream(1, "test").normal(0, 2, (20, 6))
    expected = softmax(logits / TEMPERATURE, axis=1)
    np.testing.assert_allclose(tempered(softmax(logits, axis=1)), expected, atol=1e-9)
    cut = tempered(np.array([[1.1, -0.1]]))
    assert cut[0, 1] == pytest.approx(1 / (1 + (1.1 / FLOOR) ** (1 / TEMPERATURE)))


def test_private_classes_have_one_holder_and_can_be_left_out() -> None:
    counts = np.array([[5, 0, 2, 0], [1, 7, 0, 0], [0, 0, 0, 0]])
    assert private_classes(counts) == {1: 1, 2: 0}
    answer = np.array([4, 0, 2], np.int32), np.eye(3, dtype=np.float32)
    ids, values = without(answer, np.array([1, 0, 3, 0, 2]), np.array([1, 2]))
    assert ids.tolist() == [2]
    assert values.tolist() == [[0, 0, 1]]


# --- the net ---


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 14), (1, 3, 5)])
def test_the_net_makes_images_of_every_size(shape: tuple[int, int, int]) -> None:
    made = Inverter(4, shape)(torch.rand(2, 8, 1, 1))
    assert made.shape == (2, int(np.prod(shape)))
    assert 0 <= made.min() <= made.max() <= 1


# --- the attack ---


@pytest.mark.parametrize("name", ["paired", "no-prior", "client-only"])
def test_planted_classes_are_all_found(name: str) -> None:
    x, y = planted()
    found = invert(name, x, y, said(y, 12), said(y, 1, seed=2), EVERY, 1, learning=SHORT)
    result = scores(found, EVERY, class_means(x, y, N_CLASSES))
    assert result.success.all()
    assert result.ssim.min() > 0.9
    assert result.mse.max() < 0.02


@pytest.mark.parametrize("name", ["client-only", "server-only", "paired"])
def test_a_client_that_says_nothing_gives_chance(name: str) -> None:
    """Uniform answers of the client, and of the server: one of five classes is right by chance."""
    x, y = planted()
    rates = []
    for seed in range(3):
        found = invert(name, x, y, uniform(300), uniform(300), EVERY, seed, learning=SHORT)
        rates.append(scores(found, EVERY, class_means(x, y, N_CLASSES)).success.mean())
    assert np.mean(rates) <= 0.4, rates


def test_the_server_alone_is_not_helped_by_the_client() -> None:
    """`server-only` is a null: the client's answers do not change a bit of it."""
    x, y = planted(n=60)
    server = said(y, 3)
    one, two = (
        invert("server-only", x, y, client, server, EVERY, 1, learning=SHORT)
        for client in (said(y, 12), uniform(60))
    )
    assert torch.equal(one, two)


def test_every_labels_probability_in_every_row_would_spoil_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the released code does finds one image for all classes, where the server is read."""
    x, y = planted()

    def attack() -> float:
        found = invert("server-only", x, y, uniform(300), said(y, 0.5), EVERY, 1, learning=SHORT)
        return float(scores(found, EVERY, class_means(x, y, N_CLASSES)).success.mean())

    right = attack()

    def buggy(classes, n_classes):  # type: ignore[no-untyped-def]
        client, server = optimal_pairs(classes, n_classes)
        server[:, classes] = server[np.arange(len(classes)), classes][:, None]
        return client, server

    monkeypatch.setattr(paired_logits, "optimal_pairs", buggy)
    assert attack() <= 1 / N_CLASSES < right


def test_the_prior_pulls_to_the_class_mean_as_a_second_loss_does() -> None:
    """MSE(x, G) + gamma MSE(prior, G) has the minimum of MSE to their blend: so G is at it."""
    x, y = torch.rand(6), torch.full((6,), 0.4)
    aim = (x + paired_logits.PRIOR * y) / (1 + paired_logits.PRIOR)
    made = torch.rand(6).requires_grad_()
    both = (x - made).square().mean() + paired_logits.PRIOR * (y - made).square().mean()
    blended = (1 + paired_logits.PRIOR) * (aim - made).square().mean()
    torch.testing.assert_close(*(torch.autograd.grad(loss, made)[0] for loss in (both, blended)))


def test_the_prior_is_in_use() -> None:
    x = torch.rand((60, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    y = planted(n=60)[1]
    args = (x, y, said(y, 12), said(y, 1), EVERY, 1)
    with_, without_ = (invert(name, *args, learning=SHORT) for name in ("paired", "no-prior"))
    assert not torch.equal(with_, without_)


def test_only_what_both_answered_is_learnt() -> None:
    x, y = planted(n=80)
    ids, values = said(y, 12)
    server = said(y, 1, seed=2)
    order = np.r_[40:80, 0:20]
    some = ids[order], values[order]
    half = server[0][20:], server[1][20:]
    spoilt = x.clone()
    spoilt[:40] = 1 - spoilt[:40]  # answered by one of them at most
    one, two = (
        invert("paired", images, y, some, half, EVERY, 1, learning=SHORT) for images in (x, spoilt)
    )
    assert torch.equal(one, two)
    with pytest.raises(FedkdError, match="both sides answered"):
        invert("paired", x, y, (ids[:20], values[:20]), half, EVERY, 1)


def test_the_seed_decides_the_bits() -> None:
    x, y = planted(n=60)
    args = ("paired", x, y, said(y, 12), said(y, 1), EVERY)
    state = torch.random.get_rng_state()
    found = [invert(*args, seed, learning=SHORT) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_class_without_a_mean_is_no_rival() -> None:
    means = torch.full((3, 1, 8, 8), 0.5)
    means[0], means[2] = 0.1, float("nan")
    result = scores(torch.full((2, 1, 8, 8), 0.45), np.array([1, 0]), means)
    assert result.success.tolist() == [True, False]
    assert result.mse.tolist() == pytest.approx([0.05**2, 0.35**2])

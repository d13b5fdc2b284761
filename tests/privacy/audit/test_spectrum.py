"""The spectrum of real language models' answers: the width, the head, and what hides them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedkd.config_sections import Phase
from fedkd.data.sources import load
from fedkd.data.text import Pydoc
from fedkd.models.zoo import build
from fedkd.rng import stream, torch_stream
from fedkd.training import cross_entropy, fit, predict
from privacy.audit.spectrum import (
    Spectrum,
    Values,
    head_angles,
    head_residual,
    logits,
    spectrum,
)

HIDDEN = {"gru": 128, "transformer": 64}
WIDTH = {"gru": 128, "transformer": 63}  # a LayerNorm before the head spends a dimension
EVERY = pytest.mark.parametrize("name", HIDDEN)


@cache
def real(name: str, seed: int = 1) -> tuple[Tensor, NDArray[np.float64]]:
    """Logits [1024, 256] of a language model of bytes, trained a little, and its head."""
    data = load(Pydoc(tokens="bytes")).train
    net = build(name, (1, 1, 64), 256, torch_stream(seed, "test"), torch.int16)
    phase = Phase(epochs=1, batch_size=16, learning_rate=3e-3)
    fit(net, data.x[:200], data.y[:200], cross_entropy, phase, stream(seed, "test"))
    net.eval()
    told = predict(net, data.x[600:616]).flatten(0, 1)
    return told, net.head.weight.detach().double().numpy()


def soft(z: Tensor, temperature: float = 1.0) -> NDArray[np.float32]:
    return np.asarray(torch.softmax(z / temperature, dim=1).numpy())


def read(name: str, values: Values) -> Spectrum:
    return spectrum(values, HIDDEN[name])


# --- what is recovered ---


@EVERY
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_soft_labels_show_the_width_and_the_head(name: str, temperature: float) -> None:
    z, head = real(name)
    for values in (z.numpy(), logits(soft(z, temperature))):
        found = read(name, values)
        assert (found.verdict, found.width) == ("read", WIDTH[name])
        assert found.gap > 50
        # A LayerNorm hides one direction of the head, which no hidden state ever points to.
        lost = 1 / HIDDEN[name] if name == "transformer" else 0
        assert head_residual(found.basis, head) == pytest.approx(lost, abs=max(1e-6, lost))
        angles = head_angles(found.basis, head)
        assert len(angles) == WIDTH[name]
        assert np.abs(angles).max() < 0.01


def test_a_bias_alone_would_count_as_one_more() -> None:
    """As Carlini et al. count, without centred columns: width + 1."""
    z, _ = real("gru")
    rows = z.double().numpy()
    singular = np.linalg.svd(rows - rows.mean(axis=1, keepdims=True), compute_uv=False)[:255]
    assert int((singular[:-1] / singular[1:]).argmax()) + 1 == HIDDEN["gru"] + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(12, 30))
def test_planted_heads_are_found_exactly(seed: int, hidden: int, n_classes: int) -> None:
    rng = stream(seed, "test")
    head = rng.normal(size=(n_classes, hidden))
    z = rng.normal(size=(100, hidden)) @ head.T + rng.normal(size=n_classes)
    z[3] = np.nan  # not answered
    found = spectrum(z, hidden)
    assert found.width == hidden
    assert head_residual(found.basis, head) < 1e-9
    assert found.basis.T @ found.basis == pytest.approx(np.eye(hidden))
    known = z[~np.isnan(z).any(axis=1)]
    known = known - known.mean(axis=1, keepdims=True)
    expected = np.linalg.svd(known - known.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(found.singular[:hidden], expected[:hidden])
    # Any basis of another space has a residual, and angles up to a right one.
    other = np.linalg.qr(rng.normal(size=(n_classes, hidden)))[0]
    assert head_residual(other, head) > 0.05


def test_random_spaces_miss_what_their_size_says() -> None:
    rng = stream(1, "test")
    head = rng.normal(size=(41, 5))
    bases = [rng.normal(size=(41, 10)) for _ in range(200)]
    bases = [np.linalg.qr(basis - basis.mean(axis=0))[0] for basis in bases]
    missed = np.mean([head_residual(basis, head) for basis in bases])
    assert missed == pytest.approx(1 - 10 / 40, abs=0.01)


# --- what hides it ---


@EVERY
def test_noise_hides_it(name: str) -> None:
    z, _ = real(name)
    draws = stream(1, "test")
    for sigma in (1e-4, 1e-2):
        noised = soft(z) + draws.normal(0, sigma, z.shape).astype(np.float32)
        # With noise as large as the rarest words' probabilities, a gap of theirs may be left.
        assert read(name, logits(noised)).width in {None, *range(240, 256)}


@EVERY
def test_one_byte_a_probability_hides_it(name: str) -> None:
    z, head = real(name)
    found = read(name, logits(np.rint(soft(z) * 255).astype(np.float32) / 255))
    assert found.width != WIDTH[name]
    assert found.width is None or head_residual(found.basis, head) > 0.2


@EVERY
@pytest.mark.parametrize("k", [1, 5, 50])
def test_top_k_hides_it(name: str, k: int) -> None:
    """The k largest soft labels, the rest spread evenly: a width may be seen, but not this one."""
    z, head = real(name)
    largest, at = torch.from_numpy(soft(z)).topk(k, dim=1)
    rest = (1 - largest.sum(dim=1, keepdim=True)) / (z.shape[1] - k)
    found = read(name, logits(rest.expand_as(z).scatter(1, at, largest).numpy()))
    assert found.width != WIDTH[name]
    assert found.width is None or head_residual(found.basis, head) > 0.2


@pytest.mark.parametrize(("name", "expected"), [("gru", None), ("transformer", 63)])
def test_eleven_bits_a_logit_may_or_may_not_be_enough(name: str, expected: int | None) -> None:
    z, _ = real(name)
    halved = z.numpy().astype(np.float16).astype(np.float32)
    assert read(name, halved).width == expected


def test_the_mean_of_two_clients_hides_both() -> None:
    told = [soft(real("transformer", seed)[0]) for seed in (1, 2)]
    assert read("transformer", logits(np.mean(told, axis=0, dtype=np.float32))).width is None
    # Means of *logits* do not: their widths add up.
    raw = np.mean([real("transformer", seed)[0].numpy() for seed in (1, 2)], axis=0)
    assert read("transformer", raw).width == 2 * WIDTH["transformer"]


# --- where there is nothing to find ---


def test_classification_is_vacuous() -> None:
    net = build("mlp", (1, 8, 8), 10, torch_stream(1, "test"))
    x = torch.rand(400, 1, 8, 8, generator=torch_stream(1, "test"))
    found = spectrum(predict(net, x).numpy(), hidden=128)
    assert (found.verdict, found.width) == ("vacuous", None)
    assert "10 classes span at most 9 dimensions" in found.reason


def test_too_few_positions_are_vacuous() -> None:
    z, _ = real("gru")
    found = spectrum(z[:100].numpy(), hidden=128)
    assert found.verdict == "vacuous"
    assert "100 positions" in found.reason
    assert spectrum(np.full((5, 256), np.nan), hidden=128).verdict == "vacuous"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(10, 60))
def test_noise_alone_has_no_width(seed: int, n_classes: int) -> None:
    noise = stream(seed, "test").normal(size=(2 * n_classes, n_classes))
    assert spectrum(noise, hidden=3).width is None


def test_constant_answers_have_no_width() -> None:
    assert spectrum(np.zeros((50, 20), np.float32), hidden=3).width is None

"""The zoo's image models: shapes, weights by generator, samples that never see each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fedkd.errors import FedkdError
from fedkd.models.zoo import IMAGE_MODELS, Shape, build
from fedkd.rng import torch_stream

SHAPES: list[Shape] = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
EVERY = pytest.mark.parametrize("name", IMAGE_MODELS)
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES)


def model(name: str, shape: Shape, seed: int = 1, n_classes: int = 7) -> nn.Module:
    return build(name, shape, n_classes, torch_stream(seed, "test"))


def batch(n: int, shape: Shape) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch_stream(0, "test"))


@EVERY
@EACH_SHAPE
def test_logits_are_the_head_of_the_features(name: str, shape: Shape) -> None:
    net = build(name, shape, 7, torch_stream(1, "test"))
    x = batch(5, shape)
    logits, features = net(x), net.features(x)
    assert logits.shape == (5, 7)
    assert features.shape == (5, net.head.in_features)
    torch.testing.assert_close(logits, features @ net.head.weight.T + net.head.bias)
    assert net(x[:0]).shape == (0, 7)


def convolutional(shape: Shape, n_classes: int, kernel: int, hidden: int) -> int:
    channels, height, width = shape
    return sum(
        n_out * (n_in + 1)
        for n_in, n_out in (
            (channels * kernel**2, 16),
            (16 * kernel**2, 32),
            (32 * (height // 4) * (width // 4), hidden),
            (hidden, n_classes),
        )
    )


@EACH_SHAPE
def test_the_number_of_weights_is_the_closed_form(shape: Shape) -> None:
    n_inputs = shape[0] * shape[1] * shape[2]
    expected = {
        "mlp": 128 * (n_inputs + 1) + 7 * 129,
        "cnn": convolutional(shape, 7, kernel=5, hidden=128),
        "small-cnn": convolutional(shape, 7, kernel=3, hidden=64),
    }
    counted = {
        name: sum(p.numel() for p in model(name, shape).parameters()) for name in IMAGE_MODELS
    }
    assert counted == expected


@EVERY
def test_the_same_generator_gives_the_same_weights(name: str) -> None:
    one, same, other = (model(name, (1, 8, 8), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)


@EVERY
@EACH_SHAPE
def test_samples_do_not_see_each_other(name: str, shape: Shape) -> None:
    """What a batch norm would break; also said of the modules themselves."""
    net = model(name, shape).train()
    assert not any(isinstance(module, _NormBase) for module in net.modules())
    assert not list(net.buffers())  # nowhere to keep running statistics
    x = batch(6, shape)
    together = net(x)
    alone = torch.cat([net(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@EVERY
def test_gradients_reach_every_weight(name: str) -> None:
    net = model(name, (3, 32, 32))
    net(batch(20, (3, 32, 32))).square().sum().backward()
    for key, weight in net.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.abs().max() > 0, key


@EVERY
def test_units_that_are_off_for_every_sample_still_learn(name: str) -> None:
    """A one-class client can push all of them below zero; a plain ReLU would never come back."""
    net = model(name, (3, 32, 32))
    with torch.no_grad():
        for key, weight in net.named_parameters():
            if key.endswith("bias"):
                weight.fill_(-100)
    net(batch(20, (3, 32, 32))).square().sum().backward()
    for key, weight in net.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["cnn", "small-cnn"])
@pytest.mark.parametrize("shape", [(1, 3, 28), (1, 28, 3), (1, 1, 64)])
def test_an_image_too_small_for_two_pools_is_refused(name: str, shape: Shape) -> None:
    with pytest.raises(FedkdError, match=f"got '{shape[1]}x{shape[2]}'.*mlp"):
        model(name, shape)
    assert model("mlp", shape)(batch(2, shape)).shape == (2, 7)
    assert model(name, (1, 4, 4))(batch(2, (1, 4, 4))).shape == (2, 7)  # the smallest that does

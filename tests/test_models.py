"""The zoo's image models: shapes, weights by generator, samples that never see each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fedkd.errors import FedkdError
from fedkd.models.text import Block
from fedkd.models.zoo import IMAGE_MODELS, Classifier, Shape, build
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


def residual(channels: int, widths: tuple[int, ...], blocks: int) -> int:
    """Weights of 3x3 convolutions without biases, two norms a block, and projections."""
    count, n_in = widths[0] * (9 * channels + 2), widths[0]
    for stage, n_out in enumerate(widths):
        for block in range(blocks):
            count += 9 * n_in * n_out + 9 * n_out**2 + 4 * n_out
            if stage and not block:
                count += n_in * n_out + 2 * n_out
            n_in = n_out
    return count + 7 * (n_in + 1)


@EACH_SHAPE
def test_the_number_of_weights_is_the_closed_form(shape: Shape) -> None:
    channels, height, width = shape
    n_inputs, n_patches = channels * height * width, (height // 4) * (width // 4)
    expected = {
        "mlp": 128 * (n_inputs + 1) + 7 * 129,
        "cnn": convolutional(shape, 7, kernel=5, hidden=128),
        "small-cnn": convolutional(shape, 7, kernel=3, hidden=64),
        "wide-mlp": 1024 * (n_inputs + 1) + 1024 * 1025 + 7 * 1025,
        "resnet8": residual(channels, (16, 32, 64), 1),
        "resnet18": residual(channels, (64, 128, 256, 512), 2),
        "mobile": 16 * (9 * channels + 2)
        + sum(9 * a + 2 * a + a * b + 2 * b for a, b in ((16, 32), (32, 64), (64, 128)))
        + 7 * 129,
        "vit": 64 * (16 * channels + 1)
        + 64 * n_patches
        + 2 * (2 * 128 + 12 * 64**2 + (3 + 1 + 4 + 1) * 64)
        + 128
        + 7 * 65,
    }
    counted = {
        name: sum(p.numel() for p in model(name, shape).parameters()) for name in IMAGE_MODELS
    }
    assert counted == expected


@EVERY
def test_the_same_generator_gives_the_same_weights(name: str) -> None:
    one, same, other = (model(name, (1, 8, 8), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    drawn = [key for key in one if len(one[key].unique()) > 1]  # a norm begins with 0 or 1
    assert len(drawn) > 2
    assert not any(torch.equal(one[key], other[key]) for key in drawn)


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


@pytest.mark.parametrize("name", [name for name in IMAGE_MODELS if name != "vit"])
def test_units_that_are_off_for_every_sample_still_learn(name: str) -> None:
    """A one-class client can push all of them below zero; a plain ReLU would never come back.

    Of `vit` the same cannot be asked: its units are GELU, as published.
    """
    net = model(name, (3, 32, 32))
    with torch.no_grad():
        for key, weight in net.named_parameters():
            if key.endswith("bias"):
                weight.fill_(-100)
    net(batch(20, (3, 32, 32))).square().sum().backward()
    for key, weight in net.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["cnn", "small-cnn", "vit"])
@pytest.mark.parametrize("shape", [(1, 3, 28), (1, 28, 3), (1, 1, 64)])
def test_an_image_too_small_for_two_pools_is_refused(name: str, shape: Shape) -> None:
    with pytest.raises(FedkdError, match=f"got '{shape[1]}x{shape[2]}'.*mlp"):
        model(name, shape)
    assert model("mlp", shape)(batch(2, shape)).shape == (2, 7)
    assert model(name, (1, 4, 4))(batch(2, (1, 4, 4))).shape == (2, 7)  # the smallest that does


def own_model(shape: Shape, n_classes: int) -> Classifier:
    """Of a user: features are the pixels."""
    n_inputs = shape[0] * shape[1] * shape[2]
    return Classifier(nn.Flatten(), n_inputs, n_classes)


def not_a_model(shape: Shape, n_classes: int) -> nn.Module:
    return nn.Linear(shape[1], n_classes)


def fails(shape: Shape, n_classes: int) -> Classifier:
    raise ZeroDivisionError("no time")


def test_a_model_of_a_user_s_own_is_built_by_its_name() -> None:
    net = model(f"{__name__}:own_model", (1, 8, 8))
    assert net(batch(3, (1, 8, 8))).shape == (3, 7)
    again = model(f"{__name__}:own_model", (1, 8, 8))
    assert torch.equal(net.head.weight, again.head.weight)  # drawn from the generator given


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_package:build", "not there.*No module.*PYTHONPATH"),
        (f"{__name__}:nobody", "not there.*nobody"),
        (f"{__name__}:not_a_model", "got 'Linear'.*Classifier"),
        (f"{__name__}:fails", "failed: ZeroDivisionError: no time"),
    ],
)
def test_what_is_no_model_of_a_user_s_own_is_refused(name: str, words: str) -> None:
    with pytest.raises(FedkdError, match=words):
        model(name, (1, 8, 8))


def test_a_causal_block_sees_nothing_later_and_another_does() -> None:
    """The same weights; by hand: a causal block's first row hangs on its first input alone."""
    torch.manual_seed(3)
    x = torch.randn(2, 5, 16)
    y = torch.cat([x[:, :1], torch.randn(2, 4, 16)], dim=1)
    blocks = [Block(16, 2), Block(16, 2, causal=False)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    (a, b), (c, d) = ((block(x, None)[0], block(y, None)[0]) for block in blocks)
    assert torch.equal(a[:, 0], b[:, 0])
    assert not torch.allclose(c[:, 0], d[:, 0])
    torch.testing.assert_close(a[:, -1], c[:, -1])  # the last sees all in both

"""The small model zoo. LayerNorm or GroupNorm where there is a norm, never BatchNorm.

Batch statistics mix samples: they break per-sample gradients (DP-SGD) and many-clients-at-once
training, and under non-IID data they are wrong anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fedkd.dotted import called
from fedkd.errors import FedkdError, did_you_mean
from fedkd.models.text import Gru, Transformer
from fedkd.models.vision import PATCH, SLOPE, VisionTransformer, resnet, separable


class Classifier(nn.Module):
    """A body that gives features and a linear head that gives logits."""

    def __init__(self, body: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(n_features, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate layer: [n, features] of images, [n, L, features] of tokens."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits: [n, classes] of images [n, c, h, w], [n, L, classes] of tokens [n, 1, 1, L]."""
        out: Tensor = self.head(self.features(x))
        return out


Shape = tuple[int, int, int]


def mlp(shape: Shape, n_classes: int) -> Classifier:
    """One hidden layer of 128: inputs-128-classes."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.LeakyReLU(SLOPE))
    return Classifier(body, 128, n_classes)


def wide_mlp(shape: Shape, n_classes: int) -> Classifier:
    """Two hidden layers of 1,024: that of the Weighted-FD replication on Fashion-MNIST."""
    wide = 1024
    body = nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), wide),
        nn.LeakyReLU(SLOPE),
        nn.Linear(wide, wide),
        nn.LeakyReLU(SLOPE),
    )
    return Classifier(body, wide, n_classes)


def cnn(shape: Shape, n_classes: int) -> Classifier:
    """Two 5x5 convolutions of 16 and 32 channels, each pooled, then 128 hidden units."""
    return _convolutional(shape, n_classes, kernel=5, hidden=128)


def small_cnn(shape: Shape, n_classes: int) -> Classifier:
    """Two 3x3 convolutions of 16 and 32 channels, each pooled, then 64 hidden units."""
    return _convolutional(shape, n_classes, kernel=3, hidden=64)


def _convolutional(shape: Shape, n_classes: int, *, kernel: int, hidden: int) -> Classifier:
    channels, height, width = shape
    _check_size(shape)
    n_pooled = 32 * (height // 4) * (width // 4)
    body = nn.Sequential(
        nn.Conv2d(channels, 16, kernel, padding=kernel // 2),
        nn.MaxPool2d(2),  # before the activation: the same function, on a quarter of the values
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(16, 32, kernel, padding=kernel // 2),
        nn.MaxPool2d(2),
        nn.LeakyReLU(SLOPE),
        nn.Flatten(),
        nn.Linear(n_pooled, hidden),
        nn.LeakyReLU(SLOPE),
    )
    return Classifier(body, hidden, n_classes)


def _check_size(shape: Shape) -> None:
    _, height, width = shape
    if min(height, width) < PATCH:
        raise FedkdError(
            "this model needs images of at least 4x4",
            value=f"{height}x{width}",
            fix='model.names = ["mlp"]',
        )


def resnet8(shape: Shape, n_classes: int) -> Classifier:
    """ResNet-8 with GroupNorm: three residual blocks of 16, 32 and 64 channels."""
    return Classifier(resnet(shape[0], (16, 32, 64), blocks=1), 64, n_classes)


def resnet18(shape: Shape, n_classes: int) -> Classifier:
    """ResNet-18 with GroupNorm: eight residual blocks of 64 to 512 channels; for a GPU."""
    return Classifier(resnet(shape[0], (64, 128, 256, 512), blocks=2), 512, n_classes)


def mobile(shape: Shape, n_classes: int) -> Classifier:
    """MobileNet-like: depthwise separable convolutions of 16, 32, 64 and 128 channels."""
    return Classifier(separable(shape[0], (16, 32, 64, 128)), 128, n_classes)


def vit(shape: Shape, n_classes: int) -> Classifier:
    """Tiny vision transformer: patches of 4x4, two blocks of width 64 with two heads."""
    _check_size(shape)
    return Classifier(VisionTransformer(shape, width=64, heads=2, blocks=2), 64, n_classes)


def gru(shape: Shape, n_classes: int) -> Classifier:
    """Text: an embedding of 64, one layer of 128 gated recurrent units."""
    return Classifier(Gru(n_classes, width=64, hidden=128), 128, n_classes)


def transformer(shape: Shape, n_classes: int) -> Classifier:
    """Text: two causal blocks of width 64 with two heads, learned positions."""
    body = Transformer(n_classes, longest=shape[2], width=64, heads=2, blocks=2)
    return Classifier(body, 64, n_classes)


Builder = Callable[[Shape, int], Classifier]
IMAGE_MODELS: dict[str, Builder] = {
    "mlp": mlp,
    "wide-mlp": wide_mlp,
    "cnn": cnn,
    "small-cnn": small_cnn,
    "resnet8": resnet8,
    "resnet18": resnet18,
    "mobile": mobile,
    "vit": vit,
}
TEXT_MODELS: dict[str, Builder] = {"gru": gru, "transformer": transformer}
MODELS = IMAGE_MODELS | TEXT_MODELS


def is_own(name: str) -> bool:
    """Whether a name is of a user's own builder, package.module:function."""
    return ":" in name


def check_names(names: Iterable[str], key: str) -> None:
    """Raises: FedkdError for a name that is neither in the zoo nor of a user's own builder."""
    for name in names:
        if name not in MODELS and not is_own(name):
            raise FedkdError(
                f"unknown model in {key}",
                value=name,
                allowed=f"{', '.join(MODELS)}, or package.module:function",
                fix=did_you_mean(name, MODELS),
            )


def _own(name: str, shape: Shape, n_classes: int) -> Classifier:
    """What a user's function returns for a shape and a number of classes, as `Builder` says.

    It is run, so a deployed client refuses such names from a server.
    """
    model = called(name, "the model's builder", shape, n_classes)
    if not isinstance(model, Classifier):
        raise FedkdError(
            "the model's builder returns something else",
            value=type(model).__name__,
            allowed="a fedkd.models.zoo.Classifier(body, n_features, n_classes)",
        )
    return model


def build(
    name: str,
    shape: Shape,
    n_classes: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.uint8,
) -> Classifier:
    """A new model with weights drawn from `generator`, in channels-last memory.

    `shape` and `dtype` are those of a sample in its `Dataset`: int16 says tokens, of shape
    (1, 1, L), and then `n_classes` is the vocabulary; anything else says images.
    Raises: FedkdError if the model cannot take such samples, or a user's own is not there.

    PyTorch's own initialisers read the global generator, so it is set and put back around them.
    """
    kind, fitting = ("text", TEXT_MODELS) if dtype == torch.int16 else ("images", IMAGE_MODELS)
    if name not in fitting and not is_own(name):
        raise FedkdError(
            f"a model in model.names cannot take {kind}", value=name, allowed=", ".join(fitting)
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        model = _own(name, shape, n_classes) if is_own(name) else fitting[name](shape, n_classes)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model

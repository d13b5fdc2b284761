"""The small model zoo. GroupNorm where there is a norm, never BatchNorm.

Batch statistics mix samples: they break per-sample gradients (DP-SGD) and many-clients-at-once
training, and under non-IID data they are wrong anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A body that gives features and a linear head that gives logits."""

    def __init__(self, body: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(n_features, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate layer [n, features] of inputs [n, c, h, w]."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of inputs [n, c, h, w]."""
        out: Tensor = self.head(self.features(x))
        return out


Shape = tuple[int, int, int]


def mlp(shape: Shape, n_classes: int) -> Classifier:
    """One hidden layer of 128: inputs-128-classes."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.ReLU())
    return Classifier(body, 128, n_classes)


def cnn(shape: Shape, n_classes: int) -> Classifier:
    """Two 5x5 convolutions of 16 and 32 channels, each pooled, then 128: for 28x28 and up."""
    channels, height, width = shape
    n_pooled = 32 * (height // 4) * (width // 4)
    body = nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(n_pooled, 128),
        nn.ReLU(),
    )
    return Classifier(body, 128, n_classes)


MODELS: dict[str, Callable[[Shape, int], Classifier]] = {"mlp": mlp, "cnn": cnn}


def build(name: str, shape: Shape, n_classes: int, generator: torch.Generator) -> Classifier:
    """A new model with weights drawn from `generator`, in channels-last memory.

    PyTorch's own initialisers read the global generator, so it is set and put back around them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        model = MODELS[name](shape, n_classes)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]



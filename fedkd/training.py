"""Local learning of one client: data lives as tensors, batches are slices of a permutation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkd.config import Phase
from fedkd.data.dataset import as_input
from fedkd.models.zoo import Classifier

EVALUATION_BATCH = 512


Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits [b, classes] and targets [b, …] to one value a sample [b]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss [b] in nats of labels int64 [b]."""
    return F.cross_entropy(logits, labels, reduction="none")


def fit(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    loss: Loss,
    phase: Phase,
    draws: np.random.Generator,
) -> float:
    """Train `model` in place on samples x [n, c, h, w] and their targets [n, …].

    Each batch's loss is the mean over its samples. At least one batch is learnt, however small a
    share of a pass the phase is.
    Returns: the mean loss over all samples seen, or NaN when there is nothing to learn.
    """
    if len(x) == 0:
        return math.nan
    model.train()
    step_with = optimizer(list(model.parameters()), phase)
    total, seen = 0.0, 0
    for batch in batches(len(x), phase, draws):
        ids = torch.from_numpy(batch)
        inputs = as_input(x[ids]).contiguous(memory_format=torch.channels_last)
        value = loss(model(inputs), targets[ids]).mean()
        step_with.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        step_with.step()
        total += value.item() * len(batch)
        seen += len(batch)
    return total / seen


def optimizer(weights: list[Tensor], phase: Phase) -> torch.optim.Optimizer:
    """A fresh optimiser; each works element by element (`fedkd.cohort` counts on it)."""
    if phase.optimizer == "adam":
        # One kernel a step: a small MLP trains 1.3 times as fast as with the loop over tensors.
        return torch.optim.Adam(weights, lr=phase.learning_rate, fused=True)
    return torch.optim.SGD(weights, lr=phase.learning_rate, momentum=phase.momentum)


def batches(n: int, phase: Phase, draws: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Ids of each batch: a new permutation an epoch; the last epoch may be cut short."""
    size = phase.batch_size
    per_epoch = math.ceil(n / size)
    left = max(1, round(phase.epochs * per_epoch))
    while left > 0:
        order = draws.permutation(n)
        for start in range(0, min(left, per_epoch) * size, size):
            yield order[start : start + size]
        left -= per_epoch


def n_learnt(n: int, phase: Phase) -> int:
    """How many samples `batches` gives out for `n`, repeated passes counted."""
    per_epoch = math.ceil(n / phase.batch_size)
    passes, rest = divmod(max(1, round(phase.epochs * per_epoch)), per_epoch)
    return passes * n + rest * phase.batch_size


@torch.no_grad()
def predict(model: Classifier, x: Tensor) -> Tensor:
    """Logits [n, classes] of x [n, c, h, w]."""
    return _mapped(model, x)


@torch.no_grad()
def features(model: Classifier, x: Tensor) -> Tensor:
    """Penultimate features [n, d] of x [n, c, h, w]."""
    return _mapped(model.features, x)


def _mapped(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    blocks = [
        function(as_input(block).contiguous(memory_format=torch.channels_last))
        for block in torch.split(x, EVALUATION_BATCH)
    ]
    return torch.cat(blocks)


def class_accuracy(model: Classifier, x: Tensor, y: Tensor, n_classes: int) -> NDArray[np.float64]:
    """Accuracy within each class [classes]; NaN for a class without samples."""
    model.eval()
    hit = predict(model, x).argmax(dim=1) == y
    right = torch.bincount(y[hit], minlength=n_classes).double()
    of = torch.bincount(y, minlength=n_classes).double()
    return (right / of).cpu().numpy()

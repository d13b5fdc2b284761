"""Local learning of one client: data lives as tensors, batches are slices of a permutation.

A record is an image or a text of L tokens; a position is an image or one token of a text. Targets
are hard, int64 [n] or [n, L], where a text's NO_LABEL marks a position without one; or soft,
[n, classes] or [n, L, classes]. Losses and predictions are by position; where there is no L, a
record is its only position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkd.config_sections import Phase
from fedkd.data.dataset import NO_LABEL, as_input
from fedkd.models.zoo import Classifier
from fedkd.quality import brier

EVALUATION_BATCH = 512
"""Records predicted at once, and fewer where `evaluation_batch` says so."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits [b, classes] and targets [b, …] to one value a position [b]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss [b] in nats of labels int64 [b]; 0 where there is no label."""
    return F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="none")


def inputs(x: Tensor) -> Tensor:
    """Records [n, c, h, w] in the dtype and memory layout of models; as they are if they have it.

    Whoever uses the same records again keeps the result.
    """
    return as_input(x).contiguous(memory_format=torch.channels_last)


def record_losses(
    loss: Loss, logits: Tensor, targets: Tensor, weight: Tensor | None = None
) -> Tensor:
    """The loss [b] of each record: the mean of weight x loss over the positions that count.

    A position counts if it has a target and its weight is not 0; a record without any has loss 0.
    Shapes: logits [b, classes] or [b, L, classes]; targets [b], [b, L] or as the logits; weight
    [b], one for all positions of a record, or [b, L]; None is 1 everywhere.
    """
    if logits.ndim == 2:
        each = loss(logits, targets)
        return each if weight is None else each * weight
    n, length, n_classes = logits.shape
    each = loss(logits.reshape(-1, n_classes), targets.flatten(0, 1)).view(n, length)
    counts = torch.ones_like(each) if targets.ndim == 3 else (targets != NO_LABEL).to(each.dtype)
    if weight is not None:
        weight = weight.view(n, -1).expand_as(each)
        counts = counts * (weight != 0)
        each = each * weight
    return (each * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1)


def fit(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    loss: Loss,
    phase: Phase,
    draws: np.random.Generator,
    *,
    rows: Tensor | None = None,
    weight: Tensor | None = None,
    pull: float = 0.0,
) -> float:
    """Train `model` in place on records and their targets [n, …].

    Target i belongs to record x[i], or to x[rows[i]] where `rows` int64 [n] is given, so that a
    part of x can be learnt without a copy of it. Each batch's loss is the mean of `record_losses`
    under `weight` [n] or [n, L]. At least one batch is learnt, however small a share of a pass the
    phase is. With `pull` above 0, pull / 2 times the squared distance of all weights from where
    they began is added to each batch's loss.
    Returns: the mean loss over all records seen, or NaN when there is nothing to learn; without
        what `pull` adds.
    """
    n = len(targets)
    if n == 0:
        return math.nan
    x = inputs(x)
    model.train()
    step_with = optimizer(list(model.parameters()), phase)
    origin = [weight.detach().clone() for weight in model.parameters()] if pull else []
    losses, sizes = [], []
    for batch in batches(n, phase, draws):
        ids = torch.from_numpy(batch).to(x.device)
        logits = model(x[ids if rows is None else rows[ids]])
        weighed = None if weight is None else weight[ids]
        value = record_losses(loss, logits, targets[ids], weighed).mean()
        whole = value + tether(model.parameters(), origin, pull) if pull else value
        step_with.zero_grad()
        whole.backward()  # type: ignore[no-untyped-call]
        step_with.step()
        losses.append(value.detach())  # stays on the device: to read it is to wait for it
        sizes.append(len(batch))
    return float(np.average(torch.stack(losses).double().cpu().numpy(), weights=sizes))


def tether(weights: Iterable[Tensor], origin: Iterable[Tensor], pull: float) -> Tensor:
    """pull / 2 times the squared distance of weights from their origin, over all of them."""
    gaps = [(weight - start).square().sum() for weight, start in zip(weights, origin, strict=True)]
    return pull / 2 * torch.stack(gaps).sum()


def optimizer(weights: list[Tensor], phase: Phase) -> torch.optim.Optimizer:
    """A fresh optimiser; each works element by element (`fedkd.cohort` counts on it).

    Fused, it is one kernel a step: Adam takes a third of the time of the loop over tensors, SGD
    with momentum half; plain SGD takes the same.
    """
    if phase.optimizer == "adam":
        return torch.optim.Adam(weights, lr=phase.learning_rate, fused=True)
    return torch.optim.SGD(weights, lr=phase.learning_rate, momentum=phase.momentum, fused=True)


def batches(n: int, phase: Phase, draws: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Ids of each batch: a new permutation an epoch; the last epoch may be cut short."""
    size = phase.batch_size
    per_epoch = math.ceil(n / size)
    left = n_steps(n, phase)
    while left > 0:
        order = draws.permutation(n)
        for start in range(0, min(left, per_epoch) * size, size):
            yield order[start : start + size]
        left -= per_epoch


def n_steps(n: int, phase: Phase) -> int:
    """How many batches `batches` gives out for `n` > 0 records."""
    return max(1, round(phase.epochs * math.ceil(n / phase.batch_size)))


def n_learnt(n: int, phase: Phase) -> int:
    """How many records `batches` gives out for `n`, repeated passes counted."""
    passes, rest = divmod(n_steps(n, phase), math.ceil(n / phase.batch_size))
    return passes * n + rest * phase.batch_size


@torch.no_grad()
def predict(model: Classifier, x: Tensor) -> Tensor:
    """Logits [n, classes] of images x [n, c, h, w], [n, L, classes] of tokens [n, 1, 1, L]."""
    return torch.cat(list(_mapped(model, model, x)))


@torch.no_grad()
def features(model: Classifier, x: Tensor) -> Tensor:
    """Penultimate features [n, d] or [n, L, d] of x."""
    return torch.cat(list(_mapped(model, model.features, x)))


def evaluation_batch(model: Classifier, x: Tensor) -> int:
    """How many records of x the model predicts at once.

    On a CPU the maps of a convolution should stay in a core's cache: 64 images of 1x28x28 took 0.8
    of the time that 512 took.
    """
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return EVALUATION_BATCH // 8 if convolves and x.device.type == "cpu" else EVALUATION_BATCH


def _mapped(model: Classifier, function: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[Tensor]:
    return (function(inputs(block)) for block in torch.split(x, evaluation_batch(model, x)))


class Grades(NamedTuple):
    """How right a model is on each record [n]: sums over the record's positions with a label."""

    hits: Tensor
    """int64: the most probable class was the label."""
    nats: Tensor
    """float32: cross-entropy of the labels."""
    positions: Tensor
    """int64: how many positions have a label."""
    confidence: Tensor
    """float32: probability of the most probable class."""
    brier: Tensor
    """float32: see `fedkd.quality.brier`."""


@torch.no_grad()
def grades(model: Classifier, x: Tensor, y: Tensor) -> Grades:
    """The model's grades on records x [n, c, h, w] with labels y int64 [n] or [n, L].

    Logits are graded block by block: those of all tokens of a test set would not fit in memory.
    """
    model.eval()
    blocks = zip(_mapped(model, model, x), torch.split(y, evaluation_batch(model, x)), strict=True)
    graded = [grade(logits, labels) for logits, labels in blocks]
    return Grades(*(torch.cat(column) for column in zip(*graded, strict=True)))


def grade(logits: Tensor, y: Tensor) -> Grades:
    """The grades of logits [n, classes] or [n, L, classes] on labels y [n] or [n, L]."""
    known = y != NO_LABEL
    nats = cross_entropy(logits.flatten(0, -2), y.flatten()).view(y.shape)
    hits = logits.argmax(dim=-1) == y
    probs = logits.softmax(dim=-1)
    confidence = probs.amax(dim=-1) * known
    squares = brier(probs.flatten(0, -2), y.flatten().clamp_min(0)).view(y.shape) * known
    shape = (len(y), math.prod(y.shape[1:]))
    columns = (hits & known, nats, known, confidence, squares)
    return Grades(*(column.view(shape).sum(dim=1) for column in columns))

"""Which student would learn well from a teacher? A guess without training, from random weights.

Source: DisWOT, Dong et al., CVPR 2023, second-hand: students are chosen by how like the teacher's
are their relations between samples and between classes. The formulas are ours. It is a guess: what
it is worth is measured in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from fedkd.models.zoo import Classifier

Build = Callable[[int], Classifier]
"""A new model of one architecture, its weights drawn from a seed."""
DRAWS = 5


class Cost(NamedTuple):
    """What a client needs for a model."""

    weights: int
    flops: int
    """Of one record's prediction; learning from it takes about three times as many."""


@torch.no_grad()
def likeness(teacher: Classifier, student: Classifier, x: Tensor) -> float:
    """Minus the distance of two models' relations on records x [n, c, h, w]; 0 is alike.

    Relations between samples: cosines [n, n] of their features. Between classes: cosines
    [classes, classes] of what the head makes of them. Each distance is the root of the mean square.
    """
    relations = [_relations(model.eval(), x) for model in (teacher, student)]
    gaps = [(a - b).square().mean().sqrt() for a, b in zip(*relations, strict=True)]
    return -float(torch.stack(gaps).sum())


def _relations(model: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    features = model.features(x).flatten(0, -2).double()
    classes = (features @ model.head.weight.double().T).T
    rows, columns = normalize(features), normalize(classes)
    return rows @ rows.T, columns @ columns.T


def mean_likeness(teacher: Build, student: Build, x: Tensor) -> float:
    """The mean of `likeness` over `DRAWS` pairs of random weights, of no seed twice."""
    pairs = [(teacher(2 * draw), student(2 * draw + 1)) for draw in range(DRAWS)]
    return sum(likeness(*pair, x) for pair in pairs) / DRAWS


@torch.no_grad()
def cost(model: Classifier, x: Tensor) -> Cost:
    """What a model costs on records like x [n, c, h, w]."""
    counter = FlopCounterMode(display=False)
    with counter:
        model.eval()(x)
    weights = sum(weight.numel() for weight in model.parameters())
    return Cost(weights, counter.get_total_flops() // len(x))

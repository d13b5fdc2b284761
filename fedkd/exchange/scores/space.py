"""Squared distances by matrix products, block by block, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK = 1024
"""Samples that are scored at once: memory is O(BLOCK x points), never samples x points x axes."""


def squared(x: Tensor, points: Tensor) -> Tensor:
    """Squared Euclidean distances float64 [n, m] of x [n, d] to points [m, d].

    |a|^2 + |b|^2 - 2 ab around the points' mean, so that data far from 0 lose no digits.
    """
    origin = points.double().mean(dim=0)
    a, b = x.double() - origin, points.double() - origin
    norms = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_(min=0)


def by_block(x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """`score` [n] of x [n, d], a block of rows at a time."""
    found: Iterator[Tensor] = (score(block) for block in torch.split(x, BLOCK))
    return torch.cat([x.new_empty(0, dtype=torch.float64), *found])

"""What a consensus teaches: the records it is about, their targets, their positions' weights."""

from __future__ import annotations

import torch
from torch import Tensor

from fedkd.config_sections import MethodConfig
from fedkd.exchange.consensus import Consensus


def target_of(method: MethodConfig, consensus: Consensus) -> Tensor:
    """What a student of the method learns from each sample [m, classes]."""
    values = torch.from_numpy(consensus.values)
    return values if method.distill.raw else method.release.target(values)


def lesson(ids: Tensor, target: Tensor, positions: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The records [r] that samples are of, their targets and their positions' weights.

    Shapes: ids int64 [m], target [m, classes]. Of texts, targets are [r, L, classes] and weights
    [r, L] are 0 at positions without a consensus; of images, [m, classes] and None.
    """
    if positions == 1:
        return ids, target, None
    rows, place = torch.unique(ids // positions, return_inverse=True)
    at = (place, ids % positions)
    # Not zeros: a temperature of 0 (Swing's targets hold one) times a weight of 0 would be NaN.
    targets = target.new_ones(len(rows), positions, target.shape[1])
    targets[at] = target
    weight = target.new_zeros(len(rows), positions)
    weight[at] = 1
    return rows, targets, weight

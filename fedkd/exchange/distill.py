"""Stage 5, distill: how a student learns from the consensus.

A loss returns one value a sample and leaves the reduction to its caller. This is the table; the
rows are in `fedkd.exchange.objectives`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedkd.exchange.objectives.classes import DKD, NKD, BinaryKL, TopKLoss
from fedkd.exchange.objectives.divergences import (
    KL,
    AdaptiveKL,
    Alpha,
    BalancedKL,
    CrossEntropy,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
)
from fedkd.exchange.objectives.values import L1, MSE, AdaptiveTemperature, Sinkhorn
from fedkd.section import table

__all__ = ["DISTILLS", "KL", "Distill"]

Distill = Annotated[
    KL
    | CrossEntropy
    | ReverseKL
    | JensenShannon
    | SkewKL
    | SkewReverseKL
    | AdaptiveKL
    | BalancedKL
    | Alpha
    | L1
    | MSE
    | Sinkhorn
    | NKD
    | DKD
    | BinaryKL
    | TopKLoss
    | AdaptiveTemperature,
    Field(discriminator="name"),
]
DISTILLS = table(
    KL,
    CrossEntropy,
    ReverseKL,
    JensenShannon,
    SkewKL,
    SkewReverseKL,
    AdaptiveKL,
    BalancedKL,
    Alpha,
    L1,
    MSE,
    Sinkhorn,
    NKD,
    DKD,
    BinaryKL,
    TopKLoss,
    AdaptiveTemperature,
)

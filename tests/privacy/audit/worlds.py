"""Planted worlds for attacks: signals whose law is known, so that what an attack finds is too."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from fedkd.rng import stream
from privacy.audit.signals import Doubles, Flags


class World(NamedTuple):
    target: Doubles  # [targets] the view under attack
    member: Flags  # [targets] what it learnt
    references: Doubles  # [views, targets]
    members: Flags  # [views, targets] what they learnt


def world(
    *,
    shift: float,
    n: int = 20_000,
    views: int = 9,
    spread: float = 1.0,
    difficulty: float = 3.0,
    references_learn: bool = False,
    seed: int = 1,
) -> World:
    """phi = how easy a target is + `shift` where it was learnt + noise of `spread`, all normal."""
    draws = stream(seed, "world")
    easy = draws.normal(scale=difficulty, size=n)
    learnt = draws.random((views + 1, n)) < 0.5
    if not references_learn:
        learnt[1:] = False
    signals = easy + shift * learnt + draws.normal(scale=spread, size=learnt.shape)
    return World(signals[0], learnt[0], signals[1:], learnt[1:])


def auc(scores: Doubles, member: Flags) -> float:
    """Area under the ROC; no evidence is put below every score."""
    found = scores[~np.isnan(scores)]
    lowest = found.min() - 1 if len(found) else 0.0
    return float(roc_auc_score(member, np.where(np.isnan(scores), lowest, scores)))


def auc_error(member: Flags) -> float:
    """Standard deviation of the AUC of scores that tell nothing (Mann-Whitney)."""
    n, m = member.sum(), (~member).sum()
    return float(np.sqrt((n + m + 1) / (12 * n * m)))

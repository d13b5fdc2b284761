"""The best TPR that a privacy guarantee leaves to any attack, at given FPRs.

It holds for telling two neighbouring data sets apart, whatever the attack knows besides. For
members against non-members it holds where one record, or client, more or less is what the unit and
relation of the guarantee speak of.

Source: Dong, Roth, Su 2022, arXiv:1905.02383, Propositions 2.5 and 2.12: (epsilon, delta) bounds
TPR by delta + e^epsilon FPR and by 1 - e^-epsilon (1 - delta - FPR), and a whole privacy profile by
the least of these over all its epsilons. Each epsilon gives a valid bound, so a grid of them does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy import totals
from privacy.events import Protects
from privacy.ledger import Release

GRID = 50 * np.linspace(0, 1, 5001) ** 2
"""Epsilons at which a profile is read, closer near 0: it costs less than 2e-5 of a TPR."""


def best_tpr(fprs: ArrayLike, epsilon: float, delta: float) -> NDArray[np.float64]:
    """The ceiling by one (epsilon, delta) alone, for any mechanism: [k] -> [k].

    >>> best_tpr([0.001, 0.1], 4.0, 1e-5).round(4)
    array([0.0546, 0.9835])
    """
    if math.isinf(epsilon):
        return np.ones(np.shape(fprs))
    return _ceiling(fprs, np.array([epsilon]), np.array([delta]))


def best_tpr_of(
    entries: Iterable[Release], protects: Protects, fprs: ArrayLike
) -> NDArray[np.float64]:
    """The ceiling by all that a client's ledger holds, for one unit and relation: [k] -> [k].

    By the privacy profile of the composed events, so tighter than by the ledger's (epsilon, delta).
    It is 1 where something left without a proof, and speaks of no record given away in the clear.
    """
    return _ceiling(fprs, GRID, totals.deltas(entries, protects, GRID))


def _ceiling(
    fprs: ArrayLike, epsilons: NDArray[np.float64], deltas: NDArray[np.float64]
) -> NDArray[np.float64]:
    def least(fpr: float) -> float:
        few = np.exp(epsilons + np.log(fpr)) + deltas
        many = 1 - np.exp(-epsilons) * (1 - deltas - fpr)
        return float(np.minimum(few, many).min())

    with np.errstate(divide="ignore", over="ignore"):
        found = [least(fpr) for fpr in np.asarray(fprs, dtype=np.float64)]
    clipped: NDArray[np.float64] = np.clip(found, 0, 1)
    return clipped

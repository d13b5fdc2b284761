"""How well scores tell members from non-members: ROC, AUC, and TPR at a given FPR.

A score is higher for what is more likely a member. Equal scores are one group, which no threshold
can divide, so ties never help the attack. All figures are empirical: a bad attack is no protection.

Source: Carlini et al. 2022, arXiv:2112.03570 (TPR at low FPR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import FedkdError
from privacy.audit.intervals import above, below

FEWEST = 10
"""Non-members that a threshold must let through before its FPR means something."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Roc:
    """What each threshold finds; called a member is what scores at least as high.

    Shapes: all [k], from the highest threshold to the lowest. The first is infinite and finds
    nothing.
    """

    thresholds: NDArray[np.float64]
    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    n_members: int
    n_nonmembers: int

    @property
    def auc(self) -> float:
        """The probability that a member scores higher than a non-member, ties counted half."""
        return float(np.trapezoid(self.tpr, self.fpr))


@dataclass(frozen=True, kw_only=True)
class Point:
    """The best threshold whose FPR on this sample is at most `target`."""

    target: float
    threshold: float
    fpr: float
    tpr: float
    low: float
    high: float
    """Clopper-Pearson interval of the TPR at this threshold, which non-members alone chose."""
    supported: bool
    """Whether there are enough non-members for an FPR this small."""


def roc(members: NDArray[np.float64], nonmembers: NDArray[np.float64]) -> Roc:
    """The ROC of the scores of members [m] and of non-members [n].

    Raises: FedkdError without any score of either, or for a score that is no number.
    """
    check_scores(members, nonmembers)
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]

    def share(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        found = len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
        return np.concatenate([[0.0], found / len(scores)])

    return Roc(
        thresholds=np.concatenate([[math.inf], thresholds]),
        fpr=share(nonmembers),
        tpr=share(members),
        n_members=len(members),
        n_nonmembers=len(nonmembers),
    )


def check_scores(*groups: NDArray[np.float64]) -> None:
    """Raise FedkdError for a group of scores that is empty or holds something that is no number."""
    for scores in groups:
        if len(scores) == 0:
            raise FedkdError("there are no scores", fix="an audit needs members and non-members")
        if np.isnan(scores).any():
            raise FedkdError("scores that are no numbers", value=int(np.isnan(scores).sum()))


def smallest_fpr(n_nonmembers: int) -> float:
    """The smallest FPR that a sample of this size supports: `FEWEST` false positives.

    >>> smallest_fpr(1000), smallest_fpr(5)
    (0.01, 1.0)
    """
    return min(1.0, FEWEST / n_nonmembers)


def tpr_at(curve: Roc, fprs: Sequence[float], confidence: float = 0.95) -> list[Point]:
    """The TPR at each target FPR, never interpolated: at a threshold that there is.

    Its interval takes the members as independent; canaries in one run are so only roughly.
    """
    points = []
    for target in fprs:
        at = int(np.searchsorted(curve.fpr, target, side="right")) - 1
        hits = round(curve.tpr[at] * curve.n_members)
        low, high = (limit(hits, curve.n_members, (1 - confidence) / 2) for limit in (below, above))
        points.append(
            Point(
                target=target,
                threshold=float(curve.thresholds[at]),
                fpr=float(curve.fpr[at]),
                tpr=float(curve.tpr[at]),
                low=float(low),
                high=float(high),
                supported=target >= smallest_fpr(curve.n_nonmembers),
            )
        )
    return points


def shuffled(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same scores with membership drawn anew, as many of each: any attack's AUC is 1/2 then."""
    mixed = rng.permutation(np.concatenate([members, nonmembers]))
    return mixed[: len(members)], mixed[len(members) :]


def null_auc_error(n_members: int, n_nonmembers: int) -> float:
    """The standard deviation of the AUC of `shuffled` scores; with ties it is smaller.

    Source: Mann and Whitney 1947.
    """
    return math.sqrt((n_members + n_nonmembers + 1) / (12 * n_members * n_nonmembers))

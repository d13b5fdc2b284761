"""Estimates of exposure where a canary's space cannot be enumerated. Empirical, no guarantee.

Losses are such that lower means more likely to the model, in any unit. References are losses of
candidates drawn like the canary that were never inserted.

Source: Carlini et al. 2019, arXiv:1802.08232, section 4 (exposure, and both estimates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest, skewnorm

from privacy.audit.exposure import NULL_BITS
from privacy.audit.roc import check_scores

WORST_FIT = 0.01
"""The p-value of the Kolmogorov-Smirnov test below which a fit is refused."""


def ranks(losses: NDArray[np.float64], references: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rank of each loss [n] among the references [r], from 1 to r + 1, in the order given.

    A reference of the same loss is put first: that never overstates exposure.
    """
    check_scores(losses, references)
    return 1 + np.searchsorted(np.sort(references), losses, side="right")


def interpolated(
    losses: NDArray[np.float64], references: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Exposure in bits of each canary [n], by its rank among the references, in the order given.

    From log2 r of r references, which more memory cannot raise, to a hair below 0.
    """
    found: NDArray[np.float64] = np.log2(len(references) / ranks(losses, references))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Extrapolated:
    """Exposure beyond the references, by a skew-normal distribution fitted to their losses."""

    bits: NDArray[np.float64] | None
    """Of each canary [n], in the order given, at most log2 of the space; None for a bad fit."""
    distance: float
    """The Kolmogorov-Smirnov distance of the fit from the references, 0 to 1."""
    p_value: float
    """That of a distribution known beforehand: too kind to one that was fitted."""


def extrapolated(
    losses: NDArray[np.float64], references: NDArray[np.float64], size: int
) -> Extrapolated:
    """Exposure of each canary of a space of `size` secrets, refused where the fit is bad.

    A fit that passes is good where the references are; beyond them it is extrapolation.
    """
    check_scores(losses, references)
    fitted = skewnorm(*skewnorm.fit(references))
    test = kstest(references, fitted.cdf)
    bits = None
    if test.pvalue >= WORST_FIT:
        # logcdf: the cdf itself is 0 at some 39 standard deviations.
        bits = np.minimum(-fitted.logcdf(losses) / math.log(2), math.log2(size))
    return Extrapolated(bits=bits, distance=float(test.statistic), p_value=float(test.pvalue))


def null_error(n_canaries: int, n_references: int | None = None) -> float:
    """The standard error in bits of the mean exposure of canaries that a model knows nothing of.

    The mean itself is `NULL_BITS`. Exposure is exponential then, so its deviation is as large as
    its mean. References that all canaries are ranked among add an error that they share; None is
    for ranks in a whole space.

    >>> round(null_error(100), 3), round(null_error(100, 1000), 3)
    (0.144, 0.151)
    """
    shared = 1 / n_references if n_references else 0.0
    return NULL_BITS * math.sqrt(1 / n_canaries + shared)

"""Confidence limits: of a probability from how often it came true, and of a mean of few values.

Sources: Clopper and Pearson 1934 (exact; each limit is one-sided: it fails with a probability of at
most `alpha`, whatever the true probability is); Student 1908.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, t


def below(hits: ArrayLike, n: int, alpha: float) -> NDArray[np.float64]:
    """The lower limit after `hits` of `n`, element by element; 0 after none.

    >>> float(below(0, 10, 0.05))
    0.0
    """
    hits = np.asarray(hits)
    limit = beta.ppf(alpha, np.maximum(hits, 1), n - hits + 1)
    return np.where(hits == 0, 0.0, limit)


def above(hits: ArrayLike, n: int, alpha: float) -> NDArray[np.float64]:
    """The upper limit after `hits` of `n`, element by element; 1 after all.

    >>> round(float(above(0, 10, 0.05)), 4)  # 1 - 0.05 ** (1 / 10)
    0.2589
    """
    return 1 - below(n - np.asarray(hits), n, alpha)


def half_width(values: ArrayLike, confidence: float = 0.95) -> float | None:
    """Half of Student's t interval of the mean of n independent values; None for fewer than two.

    It holds for values that are normal; two of them tell next to nothing.

    >>> round(half_width([0.7, 0.8]), 3)  # 12.706 standard errors
    0.635
    """
    known = np.asarray(values, np.float64)
    n = len(known)
    if n < 2:
        return None
    error = float(known.std(ddof=1)) / math.sqrt(n)
    return float(t.ppf((1 + confidence) / 2, n - 1)) * error

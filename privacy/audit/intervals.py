"""Exact confidence limits of a probability, from how often it came true.

Source: Clopper and Pearson 1934. Each limit is one-sided: it fails with a probability of at most
`alpha`, whatever the true probability is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta


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

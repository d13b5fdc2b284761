"""What an observer has of a client: its answers, round by round, and how they are lined up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Answer = tuple[NDArray[np.int32], NDArray[np.float32]]
"""One upload, or a consensus: proxy ids [m], each once, and their values [m, classes]."""


def rows_at(answer: Answer, ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """The values float64 [k, classes] at proxy ids [k]; NaN where nothing was answered.

    >>> answer = np.array([7, 2], np.int32), np.array([[1, 0], [0.5, 0.5]], np.float32)
    >>> rows_at(answer, np.array([2, 3])).tolist()
    [[0.5, 0.5], [nan, nan]]
    """
    known, values = answer
    rows = np.full((len(ids), values.shape[1]), np.nan)
    order = np.argsort(known)
    at = np.searchsorted(known, ids, sorter=order)
    inside = np.flatnonzero(at < len(known))
    from_ = order[at[inside]]
    hit = known[from_] == ids[inside]
    rows[inside[hit]] = values[from_[hit]]
    return rows


def mean_rows(views: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean [k, classes] of views [k, classes] of the same samples; NaN where no view answers.

    Probabilities are averaged, not their logarithms: that takes zero-mean noise off, and a row
    that noise or truncation has set to 0 does not outvote the others.
    """
    stacked = np.stack(views)
    known = ~np.isnan(stacked).any(axis=2, keepdims=True)
    n = known.sum(axis=0)
    total = np.where(known, stacked, 0).sum(axis=0)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)

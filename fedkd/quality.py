"""How far a model's confidence is to be believed, and how evenly a method serves its clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

N_BINS = 15
"""Of confidences, equally wide: Guo et al. 2017, section 3."""
WORST = 0.1
"""The share of clients whose mean `worst` gives."""


class Calibration(NamedTuple):
    """The expected calibration error, and an interval that holds it with 95 % or more."""

    ece: float
    low: float
    high: float


def calibration(
    confidence: NDArray[np.float64], right: NDArray[np.float64], n_bins: int = N_BINS
) -> Calibration:
    """How far confidences are from the share of right answers, over equally wide bins.

    With d_b the mean over all records of (right - confidence) x [record in bin b], the error is
    sum |d_b|, in [0, 1]: the usual figure, on these bins; between finer ones, errors may cancel.
    The interval is analytic. Each d_b is a mean, so nearly normal around the truth with standard
    error s_b; |d_b| then lies above the truth by 0 to s_b sqrt(2 / pi) on average, most where there
    is no error at all, and spreads by s_b at most. So the truth is in
    [sum |d_b| - sum s_b sqrt(2 / pi) - 1.96 s, sum |d_b| + 1.96 s] with s^2 = sum s_b^2, with a
    probability of 95 % or more for many records: a bootstrap would keep the figure's own bias.
    Shapes: confidence float64 [n], of the most probable class; right 0 or 1 [n]; n > 0.
    Source: Guo et al. 2017, arXiv:1706.04599, equation 5; that it is biased upwards where a model
    is calibrated: Kumar, Liang and Ma 2019, arXiv:1909.10155. The interval is ours.

    >>> calibration(np.array([0.9, 0.9]), np.array([1.0, 0.0])).ece
    0.4
    """
    n = len(confidence)
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    gap = right - confidence
    mean = np.bincount(bins, gap, n_bins) / n
    variance = (np.bincount(bins, gap**2, n_bins) / n - mean**2).clip(min=0) / n
    ece, spread = float(np.abs(mean).sum()), 1.96 * math.sqrt(variance.sum())
    bias = math.sqrt(2 / math.pi) * float(np.sqrt(variance).sum())
    return Calibration(ece, max(0.0, ece - bias - spread), min(1.0, ece + spread))


def brier(probs: Tensor, y: Tensor) -> Tensor:
    """The Brier score [n] of each prediction: its squared distance from the one-hot label.

    From 0, sure and right, to 2, sure and wrong; over two classes, twice the score of one.
    Shapes: probs [n, classes], each row a distribution; y int64 [n].
    Source: Brier 1950, equation 2.
    """
    of_label = probs.gather(1, y[:, None])[:, 0]
    length: Tensor = torch.linalg.vector_norm(probs, dim=1)
    return length**2 - 2 * of_label + 1


def recalls(hits: NDArray[np.int64], seen: NDArray[np.int64]) -> list[float | None]:
    """The share of each class's records that were found, [classes]; None where there was none."""
    return [h / n if n else None for h, n in zip(hits.tolist(), seen.tolist(), strict=True)]


def worst(values: Sequence[float], share: float = WORST) -> float:
    """The mean of the lowest `share` of values, of one at least: what the worst off can expect.

    >>> worst([0.5, 0.9, 0.7], 0.5)
    0.6
    """
    n = max(1, math.ceil(share * len(values) - 1e-9))
    return float(np.mean(np.sort(values)[:n]))

"""Spectrum: how wide a language model is inside, and its output head, from what it answers.

Logits are W h + b of hidden states h, so those of many positions lie in a space no larger than
the hidden width, however many words there are. Soft labels show it too: their logarithms are the
logits up to a constant a row. Empirical, and measured on small models of bytes: exact for answers
as they are and at temperatures of 1 and 20; hidden by noise of 1e-4 on soft labels, by the k
largest for k up to 50 of 256, by one byte a probability, and in the mean of several clients' soft
labels (in the mean of their logits, the widths add up). See tests/privacy/test_spectrum.py.

Source: Carlini et al. 2024, arXiv:2403.06634. Deviations: rows are centred, since soft labels do
not tell their constant, and columns are too, so that a bias, which would add 1 to the rank, adds
nothing. Take one round of one client: the head changes between rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

Floats = NDArray[np.float64]
Values = NDArray[np.float32] | NDArray[np.float64]

Verdict = Literal["read", "vacuous"]

GAP = 10.0
"""The least gap, as a ratio, that counts as the end of the signal. Ours: the singular values of
noise alone lie closer together, where there are twice as many positions as words."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of a matrix of logits, and what they say."""

    singular: Floats
    """Descending, of the logits with rows and columns centred; without those that centring, or
    rounding, leaves at 0."""
    width: int | None
    """How many come before the largest gap: the hidden width, or one less where a LayerNorm comes
    before the head, which spends one dimension. None without a gap of `GAP`, or if vacuous.
    Of answers that are truncated or rounded, words that are never told make a gap of their own:
    only a small `head_residual` says that a width is the model's."""
    gap: float
    """The ratio of the singular values on both sides of the largest gap; 1 without any."""
    basis: Floats
    """[classes, width]: an orthonormal basis of the head's columns, which are known up to an
    invertible transform."""
    verdict: Verdict
    reason: str


def logits(soft: Values) -> Values:
    """Logits up to a constant a row: the logarithms of soft labels [n, classes].

    What is 0 or less, after truncation or noise, becomes the smallest number of its dtype.
    """
    least = np.finfo(soft.dtype).tiny
    return np.log(np.maximum(soft, least))


def spectrum(values: Values, hidden: int) -> Spectrum:
    """The spectrum of one client's logits [positions, classes], as `logits` makes them or raw.

    `hidden` is the true width, which an auditor knows. It does not enter the estimate: it only says
    where there is nothing to find. Rows with NaN (not answered) are left out.

    Vacuous: with no more classes than hidden width, as in classification, or as few positions, the
    centred logits fill their space whatever the head, and no rank tells the width.
    """
    known = values[~np.isnan(values).any(axis=1)]
    n, n_classes = known.shape
    empty = np.empty((n_classes, 0))
    for what, size in (("classes", n_classes), ("positions", n)):
        if size - 1 <= hidden:
            reason = f"{size} {what} span at most {max(size - 1, 0)} dimensions, the width {hidden}"
            return Spectrum(np.empty(0), None, 1.0, empty, "vacuous", f"{reason} all of them")
    rows = known.astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    # The triangle of a QR has the same singular values and right vectors, and is far smaller.
    _, singular, right = np.linalg.svd(np.linalg.qr(rows, mode="r"), full_matrices=False)
    # Centring takes a dimension of both. Below what rounding can tell from 0, ratios mean nothing.
    singular = singular[: min(n, n_classes) - 1]
    rounding = singular[0] * max(n, n_classes) ** 0.5 * np.finfo(known.dtype).eps
    singular = singular[: max(1, int((singular > rounding).sum()) + 1)]
    ratios = singular[:-1] / np.maximum(singular[1:], max(rounding, np.finfo(np.float64).tiny))
    gap = float(ratios.max(initial=1.0))
    if gap < GAP:
        reason = f"no gap among {len(singular)} singular values: the largest is {gap:.1f}"
        return Spectrum(singular, None, gap, empty, "read", reason)
    width = int(ratios.argmax()) + 1
    reason = f"singular values {width} and {width + 1} are a factor of {gap:.0f} apart"
    return Spectrum(singular, width, gap, right[:width].T, "read", reason)


def head_angles(basis: Floats, head: Floats) -> Floats:
    """The principal angles in radians, largest first, of a recovered basis and the true head.

    Shapes: basis [classes, k]; head [classes, hidden], whose columns are centred first, as soft
    labels show no constant; returns float64 [min(k, hidden)]. All 0: one space holds the other.
    Raises: ValueError for an empty basis.
    """
    angles: Floats = subspace_angles(basis, head - head.mean(axis=0))
    return angles


def head_residual(basis: Floats, head: Floats) -> float:
    """The share of the centred head's squared norm that lies outside the recovered space, 0 to 1.

    0: the head is recovered up to an invertible transform. k random dimensions of the `classes` - 1
    leave 1 - k / (classes - 1) outside, on average.
    """
    centred = head - head.mean(axis=0)
    outside = centred - basis @ (basis.T @ centred)
    return float((outside**2).sum() / (centred**2).sum())

"""Signals of membership: how sure a view is of the label of each target, in nats.

A *view* is whatever an observer can ask or has recorded: a client's model or its uploads, the
consensus, a distilled student. Its signal at a target (x, y) is phi = ln p_y - ln(1 - p_y), whose
spread over models is close to normal where that of the loss is not (Carlini et al. 2022,
arXiv:2112.03570, section IV). 1 - p_y is summed from the other classes and never subtracted, so a
sure model does not end in ties at infinity.

A target that a view never answered has the signal NaN: no evidence. Attacks hand NaN on, and
whoever draws a ROC puts it below every score, for members and others alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from fedkd.errors import FedkdError

Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]

FLOOR = 1e-30
"""The least probability in an upload. Soft labels in float32 go below only where they underflow,
so this clips the zeros of counts, of arg-max labels and of what is left out, and nothing else."""


def phi(logits: ArrayLike, y: ArrayLike) -> Doubles:
    """ln p_y - ln(1 - p_y) of softmax(logits): the label's logit above the others' log-sum.

    Shapes: logits [..., classes], of any log-probabilities too; y int64 [...]; returns [...].
    NaN where the logits are, or where y is negative, as where a token has no label.

    >>> float(phi([[0.0, 50.0, 0.0]], [1])[0].round(3))  # float32 would say that 1 - p is 0
    49.307
    """
    z = np.asarray(logits, dtype=np.float64)
    label = np.broadcast_to(np.asarray(y, dtype=np.int64), z.shape[:-1])
    place = np.maximum(label, 0)[..., None]
    own = np.take_along_axis(z, place, axis=-1)[..., 0]
    others = z.copy()
    np.put_along_axis(others, place, -np.inf, axis=-1)
    found: Doubles = own - logsumexp(others, axis=-1)
    return np.where(label < 0, np.nan, found)


def phi_of_labels(
    values: ArrayLike, y: ArrayLike, *, temperature: float = 1.0, floor: float = FLOOR
) -> Doubles:
    """phi of soft labels or one-hot labels, as if the temperature had been 1.

    Shapes: values [..., classes], each row on the simplex; y int64 [...]; returns [...].
    What leaves at temperature T is softmax(logits / T), so T ln p is the logits up to a constant.
    Values below `floor` count as `floor`: a one-hot row scores ±ln(1 / floor), within ln(classes).
    NaN rows, where the client abstained, give NaN.
    Raises: FedkdError for a temperature or a floor that is not positive.
    """
    for name, value in (("temperature", temperature), ("floor", floor)):
        if not value > 0:
            raise FedkdError(f"{name} must be positive", value=value)
    clipped = np.maximum(np.asarray(values, dtype=np.float64), floor)
    return phi(temperature * np.log(clipped), y)


def agreement(values: ArrayLike, y: ArrayLike) -> Doubles:
    """A signal from labels only: the log-odds that a round's arg-max is the label, ln(h+½)/(m+½).

    h and m count the rounds that hit and missed; the halves are Jeffreys' prior, so that a target
    answered twice says less than one answered twenty times. Ties for the largest value go to the
    first class. NaN where no round answered.
    Shapes: values [rounds, ..., classes], NaN rows where the client abstained; y int64 [...];
    returns [...]. Source: ours.
    """
    rows = np.asarray(values, dtype=np.float64)
    answered = ~np.isnan(rows[..., 0])
    hit = answered & (np.nan_to_num(rows).argmax(axis=-1) == np.asarray(y))
    hits, n = hit.sum(axis=0), answered.sum(axis=0)
    return np.where(n > 0, np.log(hits + 0.5) - np.log(n - hits + 0.5), np.nan)


class Moments(NamedTuple):
    """Of signals over the first axis, with NaN left out: of how many, their mean, and about it."""

    n: Ids
    mean: Doubles
    """NaN where n is 0."""
    squares: Doubles
    """The sum of squared deviations from the mean."""


def moments(signals: Doubles) -> Moments:
    """Moments [...] of signals [views, ...]."""
    known = ~np.isnan(signals)
    n = known.sum(axis=0)
    mean = np.where(known, signals, 0.0).sum(axis=0) / np.where(n > 0, n, np.nan)
    squares = np.where(known, np.square(signals - mean), 0.0).sum(axis=0)
    return Moments(n, mean, squares)


def averaged(signals: Doubles) -> Doubles:
    """The mean [...] of [rounds, ...] over the rounds that answered; NaN where none did.

    It serves signals, and answers [rounds, samples, classes] as well.
    """
    return moments(signals).mean


def without(signals: Doubles, members: Flags) -> Doubles:
    """The signals [views, targets] with NaN where the view is known to have learnt the target."""
    return np.where(members, np.nan, signals)

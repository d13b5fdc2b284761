"""Label inference: from the soft labels that a client sends, which classes does it hold?

Empirical: a distribution that is not found is not thereby safe. The observer reads soft labels of
one client (rows on the simplex; take the softmax of logits first), over as many rounds as it has.
A row of `ESTIMATES` is one way to turn them into a guess; those that need the labels of the proxy
set are for an observer who has them, which whoever made the proxy set does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fedkd.errors import FedkdError
from privacy.audit.uploads import Answer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FLOOR = 1e-6
"""The least probability of a class in a guess, before it is normalised: keeps KL finite."""

RIDGE = 0.1
"""Pull of `calibrated` towards `balanced`. Chosen among 0.03, 0.1 and 0.3 on digits at
Dirichlet(0.1), with two models and four seeds; the first two are nearly alike."""

RESTART = 1e-6
"""How often the walk of `stationary` starts anew: it decides only where several answers do."""

SIMPLEX = 1e3
"""Weight of the equation that says the probabilities sum to 1; the rest of it is normalised off."""


def mean(answers: Sequence[Answer], labels: Ints, n_classes: int) -> Floats:
    """The mean over rounds of the mean soft label.

    Source: Shi, Ouyang, Wang 2025, arXiv:2502.08001, label-distribution inference. It takes a proxy
    set with as many samples of each class for granted.
    """
    means = [values.mean(axis=0, dtype=np.float64) for _, values in answers]
    return _normalised(np.mean(means, axis=0))


def most_likely(answers: Sequence[Answer], labels: Ints, n_classes: int) -> Floats:
    """How often each class is the likeliest one of an answered sample, over all rounds. Ours.

    For clients that answer only what looks like their own data, and for hard labels.
    """
    likeliest = np.concatenate([values.argmax(axis=1) for _, values in answers])
    return _normalised(np.bincount(likeliest, minlength=n_classes).astype(np.float64))


def balanced(answers: Sequence[Answer], labels: Ints, n_classes: int) -> Floats:
    """As `mean`, with every class of the answered samples weighing the same. Ours.

    It corrects for a proxy set that is not balanced.
    """
    columns = _confusions(answers, labels, n_classes)
    return _normalised(np.mean([np.nanmean(one, axis=1) for one in columns], axis=0))


def calibrated(answers: Sequence[Answer], labels: Ints, n_classes: int) -> Floats:
    """The distribution that the client's own confusion matrices leave as it is. Ours.

    Let M[j, i] be the mean probability of class j on proxy samples of class i. A classifier with a
    bias that is trained with cross-entropy predicts each class, on average over its training data,
    as often as it is there. If samples of one class look the same at the client and in the proxy
    set, that says M p = p of the client's distribution p. All rounds together give
    argmin over the simplex of mean_r ||(M_r - I) p||^2 + RIDGE^2 ||p - balanced||^2.
    Where classes are hardly ever confused M is near I, and only the pull says which p; rounds in
    which models still confuse tell most. Before a client has learnt its bias (an epoch or two), it
    tells little. A class without answers has probability 0.

    Source: after Black Box Shift Estimation (Lipton et al. 2018, arXiv:1802.03916), which solves
    M p = mean soft label. That would find the classes of the *proxy set*, which are known: its mean
    soft label is M times its own distribution by construction. Hence the fixed point.
    """
    columns = _confusions(answers, labels, n_classes)
    answered = np.flatnonzero(~np.isnan(np.stack(columns)).any(axis=1).all(axis=0))
    pull = RIDGE * np.sqrt(len(columns))
    identity = np.eye(n_classes)
    # A class that one round lacks says nothing in that round's equations.
    equations = [np.nan_to_num(one - identity, nan=0.0) for one in columns]
    left = np.concatenate([*equations, pull * identity, np.full((1, n_classes), SIMPLEX)])
    right = np.zeros(len(left))
    right[-1 - n_classes : -1] = pull * balanced(answers, labels, n_classes)
    right[-1] = SIMPLEX
    found = np.zeros(n_classes)
    found[answered] = nnls(left[:, answered], right)[0]
    return _normalised(found)


def stationary(answers: Sequence[Answer], labels: Ints, n_classes: int) -> Floats:
    """The distribution that the mean over rounds of the client's confusion matrices keeps. Ours.

    The same fixed point M p = p as `calibrated`, and no pull: from class i, a walk goes on to class
    j with the mean probability of j on proxy samples of class i, and p is how often it is where. A
    client's bias towards what it holds is in every column, and is all that decides. The walk starts
    in `balanced`, which matters only where classes are never confused and any p would do. Of a
    Bayes classifier with prior p it is exact, whatever the proxy set's own proportions: there
    p_i M[j, i] = p_j M[i, j], both being what a record of one class is held for the other. A class
    without answers has probability 0; what noise made negative counts as 0.

    Chosen among nine ways to undo a bias, on the clients of three seeds of
    scenarios/audit-labels.toml; it held on three others (docs/results-privacy.md).
    """
    columns = np.stack(_confusions(answers, labels, n_classes))
    heard = np.asarray(~np.isnan(columns).any(axis=1))  # [rounds, classes]
    answered = np.flatnonzero(heard.any(axis=0))
    whole = np.maximum(np.where(heard[:, None, :], columns, 0.0), 0.0).sum(axis=0)
    moves = whole[np.ix_(answered, answered)]
    moves = np.apply_along_axis(_normalised, 0, moves)
    start = RESTART * _normalised(balanced(answers, labels, n_classes)[answered])
    found = np.zeros(n_classes)
    found[answered] = np.linalg.solve(np.eye(len(answered)) - (1 - RESTART) * moves, start)
    return _normalised(found)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One way to guess: from answers, the labels [samples] of the proxy set, and how many classes.

    Returns float64 [classes], on the simplex.
    """

    guess: Callable[[Sequence[Answer], Ints, int], Floats]
    needs_labels: bool


ESTIMATES: dict[str, Estimate] = {
    "mean": Estimate(guess=mean, needs_labels=False),
    "most-likely": Estimate(guess=most_likely, needs_labels=False),
    "balanced": Estimate(guess=balanced, needs_labels=True),
    "calibrated": Estimate(guess=calibrated, needs_labels=True),
    "stationary": Estimate(guess=stationary, needs_labels=True),
}


def infer(
    name: str, answers: Sequence[Answer], n_classes: int, labels: Ints | None = None
) -> Floats:
    """The guess float64 [classes] of the row `name`, from one client's answers, a round each.

    Shapes: `labels` int64 [samples], by proxy id. Rounds without a row are left out; the guess is
    uniform where none is left.
    Raises: FedkdError where the row needs labels that are not given.
    """
    row = ESTIMATES[name]
    if row.needs_labels and labels is None:
        raise FedkdError(f"label inference {name!r} needs the labels of the proxy set")
    heard = [answer for answer in answers if len(answer[0])]
    if not heard:
        return np.full(n_classes, 1 / n_classes)
    return row.guess(heard, np.empty(0, np.int64) if labels is None else labels, n_classes)


@dataclass(frozen=True)
class Scores:
    """How far a guess is from the truth: 0 is exact."""

    kl_nats: float
    """KL(truth || guess), of the guess floored at `FLOOR`."""
    total_variation: float
    """Half the sum of the errors: the share of the records that are guessed wrongly."""
    chebyshev: float
    """The largest error of a class."""
    mean_l1: float
    """The mean error of a class."""


def scores(truth: Floats, guess: Floats) -> Scores:
    """The distances of two distributions float64 [classes].

    >>> scores(np.array([0.5, 0.5, 0]), np.array([0.25, 0.5, 0.25])).total_variation
    0.25
    """
    errors = np.abs(truth - guess)
    floored = _normalised(np.maximum(guess, FLOOR))
    held = truth > 0
    kl = float((truth[held] * np.log(truth[held] / floored[held])).sum())
    total = float(errors.sum())
    return Scores(max(kl, 0.0), total / 2, float(errors.max()), total / len(errors))


def nulls(truth: Floats, population: Floats) -> dict[str, Scores]:
    """What needs no attack: a uniform guess, and the distribution of all clients together."""
    return {
        "uniform": scores(truth, np.full(len(truth), 1 / len(truth))),
        "population": scores(truth, population),
    }


def _confusions(answers: Sequence[Answer], labels: Ints, n_classes: int) -> list[Floats]:
    """For each answer [classes, classes]: column i the mean soft label of class i, or NaN."""
    found = []
    for ids, values in answers:
        own = labels[ids]
        total = np.zeros((n_classes, n_classes))
        np.add.at(total, own, values)
        count = np.bincount(own, minlength=n_classes)
        means = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan)
        found.append(means.T)
    return found


def _normalised(weights: Floats) -> Floats:
    # Noised soft labels need not be probabilities: what is below 0 on average is noise.
    known = np.maximum(weights, 0)
    total = known.sum()
    return known / total if total > 0 else np.full_like(known, 1 / len(known))

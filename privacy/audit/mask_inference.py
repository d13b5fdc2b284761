"""Mask inference: who holds what, from which samples a client answers, whatever it says of them.

Empirical. A filter answers what looks like the client's own data, so the accept/reject mask says
what that is, even where the answers themselves are protected. A private filter's mask is read in
the same way. Masks are bool [clients, samples], of one round or of a run; of several rounds, float
in [0, 1], the share of rounds in which the sample was accepted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from fedkd.errors import FedkdError
from privacy.audit.uploads import Answer

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Masks = Floats | Bools


def mask(answer: Answer, n_samples: int) -> Bools:
    """Which of the proxy set's samples an upload answers, bool [samples]."""
    found = np.zeros(n_samples, np.bool_)
    found[answer[0]] = True
    return found


def class_shares(masks: Masks, strata: NDArray[np.int64], n_strata: int) -> Floats:
    """The share of each class (or topic) of the proxy set that each client accepts.

    Shapes: masks [clients, samples]; strata [samples]; returns float64 [clients, n_strata], NaN for
    a class that the proxy set lacks.
    """
    member = np.eye(n_strata)[strata]
    with np.errstate(invalid="ignore"):
        shares: Floats = (masks @ member) / member.sum(axis=0)
    return shares


def label_distributions(shares: Floats) -> Floats:
    """What each client holds, as guessed from the mask alone: [clients, n_strata] on the simplex.

    Ours: its shares, normalised; uniform for a client that accepts nothing. Score them with
    `label_inference.scores`. The guess is good if a filter accepts the more of a class the more of
    it the client holds: always where clients answer only what they contributed.
    """
    known = np.nan_to_num(shares, nan=0.0)
    total = known.sum(axis=1, keepdims=True)
    uniform = np.full_like(known, 1 / known.shape[1])
    return np.where(total > 0, known / np.where(total > 0, total, 1), uniform)


def holding_auc(shares: Floats, held: Bools) -> float:
    """AUC of a class's share as evidence that the client holds it, over (client, class) pairs.

    Shapes: shares [clients, n_strata], where NaN is left out; held bool, the same. 0.5 is chance.
    Raises: FedkdError where every pair is held, or none.
    """
    known = ~np.isnan(shares)
    return _auc(held[known], shares[known])


def nearest(samples: Floats, records: Floats) -> Floats:
    """The Euclidean distance float64 [n] of samples [n, d] to the nearest of records [m, d].

    Below the threshold that the auditor sets, a sample is a near-duplicate of a member.
    """
    if len(records) == 0:
        return np.full(len(samples), np.inf)
    finder = NearestNeighbors(n_neighbors=1).fit(records)
    return np.asarray(finder.kneighbors(samples)[0][:, 0], np.float64)


def record_auc(masks: Masks, near: Bools, strata: NDArray[np.int64]) -> float:
    """AUC of accepting a sample as evidence that its near-duplicate is among the client's records.

    Only pairs of one client and one class are compared: else a filter that knows its classes, and
    no record, would already look as if it recognised records. AUC is over all such pairs, a tie
    counting one half; 0.5 is chance. For records that a client contributed itself, which every gate
    accepts, `near` is what it contributed.

    Shapes: masks and near [clients, samples]; strata [samples].
    Raises: FedkdError where no client has both kinds of samples of one class.
    """
    won, n_pairs = 0.0, 0
    for scores, members in zip(masks, near, strict=True):
        for stratum in np.unique(strata[members]):
            here = strata == stratum
            n_near = int(members[here].sum())
            pairs = n_near * (int(here.sum()) - n_near)
            if pairs:
                won += pairs * _auc(members[here], scores[here])
                n_pairs += pairs
    if n_pairs == 0:
        raise FedkdError("no client has samples of one class both near to its records and not")
    return won / n_pairs


def _auc(truth: Bools, scores: Masks) -> float:
    if truth.all() or not truth.any():
        raise FedkdError(
            "an AUC needs pairs of both kinds", value=f"{int(truth.sum())} of {len(truth)} held"
        )
    return float(roc_auc_score(truth, scores.astype(np.float64)))

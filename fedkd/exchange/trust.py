"""Whom to believe: a weight for each client from how its votes agree with those of others.

Shapes: what a client votes is its ids [m] and values float32 [m, classes]; each measure returns a
number from 0 to 1 for each of the n clients, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Weights = NDArray[np.float64]
Ids = Sequence[NDArray[np.int32]]
Values = Sequence[NDArray[np.float32]]


def shared(ids: Ids, values: Values, n_samples: int) -> tuple[Weights, Weights]:
    """How many samples each two clients both answered, and on how many with the same likeliest
    class, float64 [n, n]; the diagonals say how many each one answered."""
    n_classes = values[0].shape[1] if values else 1
    counts = [len(mine) for mine in ids]
    starts = np.concatenate([[0], np.cumsum(counts)])
    which = np.concatenate([np.empty(0, np.int64), *ids]).astype(np.int64)
    best = np.concatenate([np.empty(0, np.int64), *(mine.argmax(axis=1) for mine in values)])
    ones = np.ones(len(which))
    answered = csr_array((ones, which, starts), shape=(len(ids), n_samples))
    said = csr_array((ones, which * n_classes + best, starts), (len(ids), n_samples * n_classes))
    both, same = (answered @ answered.T).toarray(), (said @ said.T).toarray()
    return np.asarray(both), np.asarray(same)


def agreement(ids: Ids, values: Values, n_samples: int) -> Weights:
    """Of a client's votes and those of others on the same samples, the share that agree.

    Every vote of another counts. Who answered nothing that others did is believed: 1.
    """
    both, same = shared(ids, values, n_samples)
    np.fill_diagonal(both, 0)
    np.fill_diagonal(same, 0)
    met = both.sum(axis=1)
    return np.where(met > 0, same.sum(axis=1) / np.maximum(met, 1), 1.0)


def vouched(ids: Ids, values: Values, n_samples: int) -> Weights:
    """The mean over all other clients of how far each agrees with this one.

    Each other client counts once, however many samples it shares; one that shares none neither
    vouches nor objects, and counts as agreeing. So where samples have one or two voters, a client
    that claims everything meets the objections of all, and each of those only its. Liars that agree
    vouch for each other: many of them win. Ours.
    """
    both, same = shared(ids, values, n_samples)
    pairs = np.where(both > 0, same / np.maximum(both, 1), 1.0)
    np.fill_diagonal(pairs, 0)
    return pairs.sum(axis=1) / max(len(ids) - 1, 1) if len(ids) > 1 else np.ones(len(ids))

"""Centres of votes that no few voters can move far: for rules that need every vote.

Shapes: votes float64 [most voters, samples, classes], of which the first `voters` [samples] count
for each sample; the rest may hold anything finite. Each returns [samples, classes].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Counts = NDArray[np.int64]
STEPS = 1000
"""Most steps of `geometric_median`: near a vote, or between two camps, they are short."""
NEAR = 1e-9
"""A step that moves a sample's centre by no more is its last."""


def trimmed_mean(votes: Values, voters: Counts, trim: float) -> Values:
    """The mean, class by class, without the floor(trim x voters) least and most votes.

    At `trim` 1/2 it is the median: of an even number of votes, the mean of the middle two. The
    bits do not depend on the order of the voters.
    """
    ranked = np.where(_counting(votes, voters), votes, np.inf)
    ranked.sort(axis=0)
    cut = np.minimum(np.floor(trim * voters).astype(np.int64), (voters - 1) // 2)
    place = np.arange(len(votes))[:, None]
    kept = (place >= cut) & (place < voters - cut)
    centre: Values = np.where(kept[:, :, None], ranked, 0.0).sum(axis=0)
    centre /= (voters - 2 * cut)[:, None]
    return centre


def geometric_median(votes: Values, voters: Counts) -> Values:
    """The point with the least sum of Euclidean distances to the votes.

    Weiszfeld's steps from the mean, in the form that leaves a vote which is not the centre (Vardi
    and Zhang, PNAS 2000). A mean of the votes with weights, so that of distributions
    it is one. Of two votes it is their mean.
    """
    counts = _counting(votes, voters)
    centre = mean(votes, voters)
    left = np.arange(len(voters))
    for _ in range(STEPS):
        mine = counts[:, left]
        way = np.where(mine, votes[:, left] - centre[left], 0.0)
        distance = np.sqrt((way**2).sum(axis=2, keepdims=True))
        at = mine & (distance < 1e-12)
        pull = np.where(mine & ~at, 1 / np.maximum(distance, 1e-12), 0.0)
        towards = (pull * way).sum(axis=0)
        strength = np.sqrt((towards**2).sum(axis=1, keepdims=True))
        # Votes at the centre hold it with the force of their number.
        share = np.maximum(1 - at.sum(axis=0) / np.maximum(strength, 1e-300), 0.0)
        step = share * towards / np.maximum(pull.sum(axis=0), 1e-300)
        centre[left] += step
        left = left[np.abs(step).max(axis=1) > NEAR]
        if len(left) == 0:
            break
    return centre


def outlying(votes: Values, voters: Counts) -> NDArray[np.float64]:
    """How far each vote lies from the mean, along the direction in which the votes on its sample
    vary most: float64 [most voters, samples], at least 0; 0 for votes that do not count.

    Source: the scores of PredictionFilter, Roux et al., ICLR 2025, arXiv 2402.12265, there by power
    iteration; after Diakonikolas et al.
    """
    counts = _counting(votes, voters)
    if not len(votes) or not len(voters):
        return np.zeros(votes.shape[:2])
    way = np.where(counts, votes - mean(votes, voters), 0.0).transpose(1, 0, 2)
    main = np.linalg.svd(way, full_matrices=False)[2][:, 0]
    found: NDArray[np.float64] = np.abs(np.einsum("skc,sc->ks", way, main))
    return found


def filtered(
    votes: Values, voters: Counts, keep: float | NDArray[np.float64]
) -> tuple[Values, Counts]:
    """The votes on each sample whose `outlying` is at most the quantile `keep` of them, in front.

    Source: as `outlying`. At least one vote is left, since a quantile has one below it or at it.
    """
    scores = np.where(_counting(votes, voters)[:, :, 0], outlying(votes, voters), np.inf)
    order = np.argsort(scores, axis=0, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=0)
    place = keep * (voters - 1)
    low, high = (
        np.take_along_axis(ranked, at.astype(int)[None], 0)[0]
        for at in (np.floor(place), np.ceil(place))
    )
    limit = low + (place - np.floor(place)) * (high - low)
    kept = (ranked <= limit + 1e-12).sum(axis=0)
    return np.take_along_axis(votes, order[:, :, None], axis=0), kept


def mean(votes: Values, voters: Counts) -> Values:
    """The mean of the votes that count."""
    centre: Values = np.where(_counting(votes, voters), votes, 0.0).sum(axis=0)
    centre /= voters[:, None]
    return centre


def _counting(votes: Values, voters: Counts) -> NDArray[np.bool_]:
    return (np.arange(len(votes))[:, None] < voters)[:, :, None]

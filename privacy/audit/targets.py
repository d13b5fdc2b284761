"""Whom a membership attack is tried on: a client's records, and as many others that look alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from fedkd.data.dataset import Dataset, stratified
from fedkd.errors import FedkdError
from privacy.audit.signals import Ids


class Targets(NamedTuple):
    """Records to attack, as many members as non-members of each label; ids ascend."""

    members: Ids
    """[n], of the client's data."""
    others: Ids
    """[n], of the test data."""


def balanced_targets(
    own: Dataset, test: Dataset, rng: np.random.Generator, *, most: int | None = None
) -> Targets:
    """Members drawn from `own` and non-members from `test`, label by label as many of each.

    So an attack cannot win by guessing labels. The labels follow the client's own; where the test
    data have too few of one, members of it are dropped too. Nothing is drawn twice: of equal
    records one counts, and a test record that the client also holds is no non-member. (The code of
    Shi, Ouyang, Wang 2025 draws non-members with replacement.) Text goes by topics.
    `most`: at most so many of each, in the labels' shares to within one.
    Raises: FedkdError where no test record has a label of the client's.
    """
    mine, others = _distinct(own.x, ()), _distinct(test.x, _keys(own.x))
    members, nonmembers = [], []
    for stratum in np.unique(own.strata):
        parts = [
            rng.permutation(ids[data.strata[ids] == stratum])
            for data, ids in ((own, mine), (test, others))
        ]
        n = min(map(len, parts))
        members.append(parts[0][:n])
        nonmembers.append(parts[1][:n])
    chosen, paired = np.concatenate(members), np.concatenate(nonmembers)
    if not len(chosen):
        raise FedkdError(
            "the test data have no record like the client's, so there is nothing to compare",
            fix="test data with the client's labels",
        )
    if most is not None and most < len(chosen):
        kept = stratified(own.strata[chosen], most, rng)
        chosen, paired = chosen[kept], paired[kept]
    return Targets(np.sort(chosen), np.sort(paired))


def _keys(x: Tensor) -> list[bytes]:
    return [row.tobytes() for row in x.numpy()]


def _distinct(x: Tensor, known: list[bytes] | tuple[()]) -> Ids:
    """Ids of the first of each kind of record, of those that are not `known`."""
    seen = set(known)
    ids = []
    for i, key in enumerate(_keys(x)):
        if key not in seen:
            seen.add(key)
            ids.append(i)
    return np.array(ids, dtype=np.int64)

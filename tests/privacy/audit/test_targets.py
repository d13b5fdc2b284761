"""Members and non-members: as many of each label, nothing twice, nothing that is also a member."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.data.dataset import Dataset
from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.targets import Targets, balanced_targets

C = 4
RECORDS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, C - 1)), min_size=1, max_size=60)


def dataset(records: list[tuple[int, int]]) -> Dataset:
    """Images of one grey level; levels that are equal are the same image."""
    levels = torch.tensor([level for level, _ in records], dtype=torch.uint8)
    return Dataset(
        levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.tensor([y for _, y in records]), C
    )


@given(RECORDS, RECORDS, st.integers(0, 3))
@settings(deadline=None)
def test_what_is_drawn(
    mine: list[tuple[int, int]], others: list[tuple[int, int]], seed: int
) -> None:
    own, test = dataset(mine), dataset(others)
    held = {level for level, _ in mine}
    first_own = {level: y for level, y in reversed(mine)}
    first_test = {level: y for level, y in reversed(others) if level not in held}
    expected = {
        c: min(list(first_own.values()).count(c), list(first_test.values()).count(c))
        for c in range(C)
    }
    if not any(expected.values()):
        with pytest.raises(FedkdError, match="nothing to compare"):
            balanced_targets(own, test, stream(seed, "test"))
        return
    found = balanced_targets(own, test, stream(seed, "test"))
    for ids, data in zip(found, (own, test), strict=True):
        assert (np.diff(ids) > 0).all()
        levels = data.x[torch.from_numpy(ids), 0, 0, 0].tolist()
        assert len(set(levels)) == len(levels)
        assert {c: data.y.numpy()[ids].tolist().count(c) for c in range(C)} == expected
    assert not held & set(test.x[torch.from_numpy(found.others), 0, 0, 0].tolist())


def skewed() -> tuple[Dataset, Dataset]:
    """40, 20 and 10 members of three labels, and 100 test records of each; all are distinct."""
    x = torch.arange(370).view(-1, 1, 1, 1).float()
    y = torch.tensor([0] * 40 + [1] * 20 + [2] * 10 + [0, 1, 2] * 100)
    return Dataset(x[:70], y[:70], C), Dataset(x[70:], y[70:], C)


def test_labels_follow_the_client() -> None:
    own, test = skewed()
    found = balanced_targets(own, test, stream(1, "test"))
    assert found.members.tolist() == list(range(70))
    assert np.bincount(test.y.numpy()[found.others]).tolist() == [40, 20, 10]


@pytest.mark.parametrize("most", [1, 7, 35, 69, 70, 1000])
def test_fewer_keep_the_shares(most: int) -> None:
    own, test = skewed()
    found = balanced_targets(own, test, stream(1, "test"), most=most)
    counts = [
        np.bincount(data.y.numpy()[ids], minlength=3)
        for ids, data in zip(found, (own, test), strict=True)
    ]
    np.testing.assert_array_equal(*counts)
    n = min(most, 70)
    assert counts[0].sum() == n
    assert (np.abs(counts[0] - n * np.array([40, 20, 10]) / 70) <= 1).all()


def test_the_draw_is_the_generator_s() -> None:
    def drawn(seed: int) -> Targets:
        return balanced_targets(*skewed(), stream(seed, "test"), most=30)

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert drawn(1).others.tolist() != drawn(2).others.tolist()


def test_every_test_record_of_a_label_is_as_likely() -> None:
    own, test = skewed()
    hits = np.zeros(len(test))
    for seed in range(300):
        hits[balanced_targets(own, test, stream(seed, "test")).others] += 1
    for label, share in enumerate((0.4, 0.2, 0.1)):
        mine = hits[test.y.numpy() == label]
        error = np.sqrt(300 * share * (1 - share))
        assert np.abs(mine - 300 * share).max() < 4.5 * error

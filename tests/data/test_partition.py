"""Partitions: always a partition, always what the row promises, and as its oracle deals."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
from flwr_datasets.partitioner import IidPartitioner, Partitioner, PathologicalPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fedkd.data.partition import (
    PARTITIONS,
    Dirichlet,
    Iid,
    Natural,
    Partition,
    Pathological,
    Quantity,
    Shards,
    Strong,
    Weak,
)
from fedkd.errors import FedkdError

Ids = NDArray[np.int64]
BALANCED = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


def assert_partition(parts: list[Ids], n: int) -> None:
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert all(part.dtype == np.int64 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    assert min(len(part) for part in parts) >= 2


def by_flower(partitioner: Partitioner, labels: Ids) -> list[Ids]:
    """What flwr-datasets' own partitioner makes of the labels."""
    rows = np.arange(len(labels))
    partitioner.dataset = datasets.Dataset.from_dict({"label": labels, "row": rows})
    parts = map(partitioner.load_partition, range(partitioner.num_partitions))
    return [part.with_format("numpy")[:]["row"] for part in parts]


def class_counts(parts: list[Ids], labels: Ids, n_classes: int) -> Ids:
    """How many samples of each class each part holds [clients, classes]."""
    return np.stack([np.bincount(labels[part], minlength=n_classes) for part in parts])


ROWS = sorted(PARTITIONS.keys() - {"natural", "virtual", "own"})
LIMITS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "dirichlet": {"alpha": st.floats(0.1, 1000)},
    "quantity": {"alpha": st.floats(0.001, 1000)},
    "pathological": {"classes_per_client": st.integers(1, 3)},
    "shards": {"shards_per_client": st.integers(1, 5)},
}


def row_of(name: str, **fields: Any) -> Any:
    return TypeAdapter(Partition).validate_python({"name": name, **fields})


@st.composite
def label_arrays(draw: st.DrawFn) -> Ids:
    """Up to four classes of uneven sizes, in any order, under any numbers."""
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    names = draw(st.permutations(range(-3, 6)))[: len(sizes)]
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(sum(sizes))
    return np.repeat(names, sizes)[order]


def outcome(row: Any, labels: Ids, seed: int) -> list[Ids] | str:
    """The parts, or the text of the refusal."""
    try:
        return list(row.split(labels, None, seed))
    except FedkdError as error:
        return str(error)


@pytest.mark.parametrize("name", ROWS)
@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 8), label_arrays(), st.integers(0, 2**40))
def test_every_row_gives_a_partition_or_says_why_not(
    name: str, data: st.DataObject, clients: int, y: Ids, seed: int
) -> None:
    fields = {key: data.draw(values) for key, values in LIMITS.get(name, {}).items()}
    row = row_of(name, clients=clients, **fields)
    parts, again = outcome(row, y, seed), outcome(row, y, seed)
    if isinstance(parts, str):
        assert "fix: " in parts
        assert again == parts
        return
    assert len(parts) == row.clients
    assert_partition(parts, len(y))
    assert not isinstance(again, str)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", ROWS)
def test_every_row_follows_the_seed(name: str) -> None:
    row = row_of(name, clients=20)
    first, second = row.split(BALANCED, None, 1), row.split(BALANCED, None, 2)
    assert_partition(first, len(BALANCED))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def n_classes_of(parts: list[Ids], labels: Ids = BALANCED) -> Ids:
    present: Ids = (class_counts(parts, labels, 10) > 0).sum(axis=1)
    return present


@given(st.integers(10, 30), st.integers(0, 99))
def test_strong_is_one_class_a_client(clients: int, seed: int) -> None:
    assert set(n_classes_of(Strong(clients=clients).split(BALANCED, None, seed))) == {1}


@given(st.integers(5, 30), st.integers(0, 99))
def test_weak_is_two_classes_a_client(clients: int, seed: int) -> None:
    assert set(n_classes_of(Weak(clients=clients).split(BALANCED, None, seed))) == {2}


@given(st.integers(10, 20), st.integers(1, 6), st.integers(0, 99))
def test_pathological_is_k_classes_a_client(clients: int, k: int, seed: int) -> None:
    row = Pathological(clients=clients, classes_per_client=k)
    assert set(n_classes_of(row.split(BALANCED, None, seed))) == {k}


@pytest.mark.parametrize(("row", "k"), [(Strong(), 1), (Weak(), 2)])
def test_strong_and_weak_deal_as_flower_does(row: Strong | Weak, k: int) -> None:
    oracle = by_flower(PathologicalPartitioner(10, "label", k, "deterministic"), BALANCED)
    ours = class_counts(row.split(BALANCED, None, 0), BALANCED, 10)
    assert np.array_equal(ours, class_counts(oracle, BALANCED, 10))


def test_pathological_draws_its_classes_as_flower_does() -> None:
    """First classes are equal; the others are drawn uniformly, so equal on average."""
    ours, theirs = np.zeros((12, 10)), np.zeros((12, 10))
    for seed in range(40):
        parts = Pathological(clients=12, classes_per_client=3).split(BALANCED, None, seed)
        ours += class_counts(parts, BALANCED, 10) > 0
        oracle = PathologicalPartitioner(12, "label", 3, "first-deterministic", seed=seed)
        theirs += class_counts(by_flower(oracle, BALANCED), BALANCED, 10) > 0
    first = (np.arange(12), np.arange(12) % 10)
    assert (ours[first] == 40).all()
    assert (theirs[first] == 40).all()
    # Off the first class, each is binomial(40, 2/9): 5 standard deviations of a difference
    # of two such are 18.6; of its sum over 12 clients, 64.
    assert np.abs(ours - theirs).max() < 18.6
    assert np.abs(ours.sum(0) - theirs.sum(0)).max() < 64


def test_iid_has_flowers_sizes_and_mixes_the_classes() -> None:
    labels = np.sort(BALANCED)[:597]
    parts = Iid(clients=4).split(labels, None, 0)
    oracle = by_flower(IidPartitioner(4), labels)
    assert [len(part) for part in parts] == [len(part) for part in oracle]
    assert class_counts(parts, labels, 10).min() >= 5


def dirichlet_counts(alpha: float, n_seeds: int) -> NDArray[np.float64]:
    row = Dirichlet(clients=4, alpha=alpha)
    return np.stack(
        [class_counts(row.split(BALANCED, None, s), BALANCED, 10) for s in range(n_seeds)]
    ).astype(np.float64)


def test_dirichlet_has_the_moments_of_its_name() -> None:
    """Shares of a class: mean 1/k and variance (1/k)(1 - 1/k) / (k alpha + 1)."""
    shares = dirichlet_counts(alpha=1.0, n_seeds=60) / 60
    assert shares.mean() == pytest.approx(1 / 4)
    assert shares.var() == pytest.approx((1 / 4) * (3 / 4) / (4 * 1.0 + 1), rel=0.1)


def test_dirichlet_with_a_great_alpha_is_nearly_iid() -> None:
    assert np.abs(dirichlet_counts(alpha=1e6, n_seeds=3) - 15).max() <= 1


def test_dirichlet_does_not_follow_the_order_of_the_file() -> None:
    part = Dirichlet(clients=2, alpha=1000).split(np.zeros(400, np.int64), None, 0)[0]
    assert abs(part.mean() - 199.5) < 40


def test_dirichlet_gives_up_quietly_on_a_tiny_alpha() -> None:
    with pytest.raises(FedkdError, match=r"got 0\.001; fix: raise partition.alpha"):
        Dirichlet(clients=100, alpha=0.001).split(BALANCED, None, 0)


def test_quantity_skews_sizes_only() -> None:
    labels = np.repeat(np.arange(2), 5000)
    parts = Quantity(clients=5, alpha=0.3).split(labels, None, 0)
    assert max(map(len, parts)) > 2 * min(map(len, parts))
    largest = class_counts(parts, labels, 2)[np.argmax([len(part) for part in parts])]
    assert largest[0] / largest.sum() == pytest.approx(0.5, abs=0.05)
    even = Quantity(clients=5, alpha=1000).split(labels, None, 0)
    assert max(map(len, even)) < 1.3 * min(map(len, even))


def test_shards_are_runs_of_the_sorted_labels() -> None:
    parts = Shards(clients=10, shards_per_client=2).split(BALANCED, None, 0)
    assert [len(part) for part in parts] == [60] * 10
    assert n_classes_of(parts).max() <= 2
    assert set(class_counts(parts, BALANCED, 10).ravel()) <= {0, 30, 60}
    assert max(np.ptp(BALANCED[part]) for part in parts) > 1  # dealt, not handed out in order


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_natural_is_one_client_an_id(owners: list[int]) -> None:
    ids = np.array(owners * 2)
    parts = Natural().split(np.zeros_like(ids), ids, 0)
    assert_partition(parts, len(ids))
    assert [set(ids[part]) for part in parts] == [{owner} for owner in sorted(set(owners))]


@pytest.mark.parametrize(
    ("row", "labels", "message"),
    [
        (Iid(clients=301), BALANCED, "set partition.clients to at most 300"),
        (Strong(clients=9), BALANCED, "needs at least 10 clients"),
        (Weak(clients=4), BALANCED, "needs at least 5 clients"),
        (Weak(clients=2), np.zeros(9, np.int64), "2 classes a client, but the data have 1"),
        (Pathological(clients=9), BALANCED, "needs at least 10 clients"),
        (Pathological(classes_per_client=11), BALANCED, "11 classes a client"),
        (Natural(), BALANCED, "needs data that name each sample's owner"),
        (Strong(clients=4), np.array([0] * 9 + [1]), "client 2 would get too few samples"),
    ],
)
def test_impossible_splits(row: Any, labels: Ids, message: str) -> None:
    with pytest.raises(FedkdError, match=message):
        row.split(labels, None, 0)


def test_a_natural_owner_of_one_sample_is_refused() -> None:
    with pytest.raises(FedkdError, match="client 1 would get too few samples"):
        Natural().split(np.zeros(3, np.int64), np.array([4, 4, 7]), 0)


def test_bad_fields_are_refused() -> None:
    for fields in ({"clients": 0}, {"name": "natural", "clients": 3}, {"alpha": 1}):
        with pytest.raises(ValidationError):
            TypeAdapter(Partition).validate_python({"name": "iid", **fields})

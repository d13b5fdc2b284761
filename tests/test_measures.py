"""What the server measures, against plain loops."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedkd.exchange.consensus import Consensus
from server.measures import consensus_accuracy, filter_quality, over_clients

C = 4
QUICK = settings(deadline=None, max_examples=100)
LABELS = hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, C - 1))
COUNTS = hnp.arrays(np.int64, C, elements=st.integers(0, 3))


def chosen(data: st.DataObject, n: int) -> NDArray[np.int32]:
    return np.flatnonzero(data.draw(hnp.arrays(bool, n))).astype(np.int32)


@given(LABELS, COUNTS, st.data())
@QUICK
def test_filter_quality_is_counted_by_hand(
    labels: NDArray[np.int64], counts: NDArray[np.int64], data: st.DataObject
) -> None:
    ids = chosen(data, len(labels))
    accepted, familiar = set(ids.tolist()), set()
    by_class = [0] * C
    for sample, label in enumerate(labels.tolist()):
        if counts[label] > 0:
            familiar.add(sample)
        if sample in accepted:
            by_class[label] += 1
    expected: dict[str, Any] = {
        "accepted": len(accepted) / len(labels),
        "accepted_by_class": by_class,
    }
    if accepted:
        expected["precision"] = len(accepted & familiar) / len(accepted)
    if familiar:
        expected["recall"] = len(accepted & familiar) / len(familiar)
    assert filter_quality(ids, labels, counts) == expected


def test_a_perfect_filter_and_an_open_one() -> None:
    labels, counts = np.array([0, 1, 2, 3, 1, 1]), np.array([0, 7, 0, 1])
    perfect = filter_quality(np.array([1, 3, 4, 5], np.int32), labels, counts)
    assert (perfect["precision"], perfect["recall"]) == (1, 1)
    everything = filter_quality(np.arange(6, dtype=np.int32), labels, counts)
    assert (everything["precision"], everything["recall"]) == (4 / 6, 1)
    assert everything["accepted_by_class"] == [1, 3, 1, 1]


def test_what_has_no_meaning_is_left_out() -> None:
    labels, nothing = np.array([0, 0]), np.array([], np.int32)
    assert filter_quality(nothing, labels, np.array([1, 0])).keys() == {
        "accepted",
        "accepted_by_class",
        "recall",
    }
    stranger = filter_quality(np.array([0], np.int32), labels, np.array([0, 5]))
    assert stranger["precision"] == 0
    assert "recall" not in stranger


@given(LABELS, st.data())
@QUICK
def test_consensus_accuracy_is_counted_by_hand(
    labels: NDArray[np.int64], data: st.DataObject
) -> None:
    ids = chosen(data, len(labels))
    values = data.draw(
        hnp.arrays(np.float32, (len(ids), C), elements=st.floats(0, 1, width=32), unique=True)
    )
    got = consensus_accuracy(Consensus(ids, values), labels)
    hits = [
        max(range(C), key=row.tolist().__getitem__) == labels[i]
        for i, row in zip(ids, values, strict=True)
    ]
    assert got == (pytest.approx(sum(hits) / len(hits)) if hits else None)


ACCURACY = st.floats(0, 1)
REPORTS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(
                ("accuracy", "own_accuracy", "validation_accuracy", "precision", "recall"), ACCURACY
            ),
            "accepted": ACCURACY,
            "train_s": ACCURACY,
            "accepted_by_class": st.just([1, 2]),
        },
    ),
    max_size=6,
)


@given(REPORTS)
@QUICK
def test_clients_are_summed_up_over_those_that_report(reports: list[dict[str, float]]) -> None:
    expected = {}
    for key in {key for report in reports for key in report} - {"train_s", "accepted_by_class"}:
        expected[key] = statistics.fmean(report[key] for report in reports if key in report)
    accuracies = [report["accuracy"] for report in reports if "accuracy" in report]
    if accuracies:
        expected["accuracy_sd"] = statistics.pstdev(accuracies)
        expected["accuracy_worst"] = min(accuracies)
        expected["accuracy_worst_tenth"] = min(accuracies)  # of up to ten clients
    got = over_clients(reports)
    assert got.keys() == expected.keys()
    assert got == pytest.approx(expected, abs=1e-12)


def test_spread_and_worst_are_those_of_the_clients() -> None:
    reports: list[dict[str, float]] = [{"accuracy": 0.9}, {"accuracy": 0.5}, {"recall": 1.0}]
    assert over_clients(reports) == pytest.approx(
        {
            "accuracy": 0.7,
            "accuracy_sd": 0.2,
            "accuracy_worst": 0.5,
            "accuracy_worst_tenth": 0.5,
            "recall": 1.0,
        }
    )
    assert over_clients([]) == over_clients([{}, {}]) == {}


def test_the_worst_tenth_of_many_clients_is_their_mean() -> None:
    reports = [{"accuracy": at / 100} for at in range(20, 50)]
    assert over_clients(reports)["accuracy_worst_tenth"] == pytest.approx(0.21)


def test_classes_are_found_by_all_clients_together_and_nonsense_does_not_count() -> None:
    def counts(hits: object, seen: object) -> dict[str, Any]:
        return {"class_hits": hits, "class_seen": seen}

    sound = [counts([1, 0, 0], [2, 4, 0]), counts([2, 1, 0], [2, 4, 0])]
    broken = [counts([1], [1]), counts(3.0, 4.0), counts([1, 1, 1], [1]), {"class_hits": [1]}]
    found = over_clients([*sound, *broken])["class_recall"]
    assert found == [3 / 4, 1 / 8, None]
    assert "class_recall" not in over_clients(broken[1:])

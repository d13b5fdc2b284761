"""What the server measures in a simulation, where it knows the proxy set's labels.

Labels and class counts come from the simulated world and are used here only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd import quality
from fedkd.exchange.consensus import Consensus


def filter_quality(
    ids: NDArray[np.int32],
    labels: NDArray[np.int64],
    class_counts: NDArray[np.int64],
    weights: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """How well one client's filter found the samples of its own classes.

    Args: ids: accepted proxy ids [m]; labels: of the proxy set [n]; class_counts: of the client;
        weights: of the accepted ids [m], which the precision counts by.
    Returns: accepted share, precision, recall, and accepted samples by class.
    """
    n_classes = len(class_counts)
    held = class_counts > 0
    there = np.bincount(labels, minlength=n_classes)
    everything = len(ids) == len(labels)
    answered = there if everything else np.bincount(labels[ids], minlength=n_classes)
    right, familiar = int(answered[held].sum()), int(there[held].sum())
    quality: dict[str, Any] = {
        "accepted": len(ids) / len(labels),
        "accepted_by_class": answered.tolist(),
    }
    if weights is not None:
        quality["precision"] = float(weights[held[labels[ids]]].sum() / weights.sum())
    elif len(ids):
        quality["precision"] = right / len(ids)
    if familiar:
        quality["recall"] = right / familiar
    return quality


def consensus_accuracy(consensus: Consensus, labels: NDArray[np.int64]) -> float | None:
    """Share of the kept samples whose most likely class is the label; None if none is kept.

    Samples without a label (the padding of a text) do not count.
    """
    wanted = labels[consensus.ids]
    if not (wanted >= 0).any():
        return None
    return float((consensus.values.argmax(axis=1) == wanted)[wanted >= 0].mean())


def of_consensus(
    consensus: Consensus,
    n_samples: int,
    truth: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
) -> dict[str, Any]:
    """The share of the proxy set's samples that are kept, and how many of them are right."""
    said: dict[str, Any] = {"kept": len(consensus.ids) / n_samples}
    if len(consensus.ids) and truth is not None:
        said["consensus_accuracy"] = consensus_accuracy(consensus, truth[0])
    return said


def over_clients(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, spread (standard deviation) and worst of the clients' accuracies; means of the rest.

    `accuracy_worst_tenth` is the mean of the worst tenth of the clients, `class_recall` that of all
    clients together. The means of `ece_low` and `ece_high` are a cautious interval of the mean
    calibration error, also where clients share a test set: no mean spreads by more than the mean of
    the spreads.
    """
    summary: dict[str, Any] = {}
    for key in (
        "accuracy",
        "own_accuracy",
        "validation_accuracy",
        "perplexity",
        "precision",
        "recall",
        "accepted",
        "filter_auroc",
        "filter_s",
        "exposure_own",
        "exposure_peers",
        "exposure_controls",
        "brier",
        "ece",
        "ece_low",
        "ece_high",
    ):
        values = [report[key] for report in reports if key in report]
        if values:
            summary[key] = float(np.mean(values))
    accuracies = [report["accuracy"] for report in reports if "accuracy" in report]
    if accuracies:
        summary["accuracy_sd"] = float(np.std(accuracies))
        summary["accuracy_worst"] = float(np.min(accuracies))
        summary["accuracy_worst_tenth"] = quality.worst(accuracies)
    counted = [[report[key] for key in BY_CLASS] for report in reports if _counts(report)]
    alike = [counts for counts in counted if len(counts[0]) == len(counted[0][0])]
    if alike:
        summary["class_recall"] = quality.recalls(*np.sum(alike, axis=0))
    return summary


BY_CLASS = ("class_hits", "class_seen")


def _counts(report: dict[str, Any]) -> bool:
    """Whether a report has counts by class, of as many classes each."""
    hits, seen = (report.get(key) for key in BY_CLASS)
    return isinstance(hits, list) and isinstance(seen, list) and len(hits) == len(seen)

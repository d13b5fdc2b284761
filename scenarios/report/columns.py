"""The columns of a report's tables: what each says, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from scenarios.spending import guaranteed
from scenarios.units import duration, percent, plain, size


class Column(NamedTuple):
    """A column of the comparison: its heading, how a line's value is written, what it means."""

    heading: str
    text: Callable[[dict[str, Any]], str]
    meaning: str


def _share(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda line: percent(line[key])


def _accuracy(line: dict[str, Any]) -> str:
    spread = line["accuracy_sd"]
    return percent(line["accuracy"]) + ("" if spread is None else f" ± {100 * spread:.1f}")


def _ece(line: dict[str, Any]) -> str:
    if line["ece"] is None:
        return "-"
    return f"{100 * line['ece']:.1f} ({100 * line['ece_low']:.1f} to {100 * line['ece_high']:.1f})"


def _least_found(line: dict[str, Any]) -> str:
    """The class that is found least, by number, with its recall."""
    known = [
        (recall, at) for at, recall in enumerate(line["class_recall"] or ()) if recall is not None
    ]
    if not known:
        return "-"
    recall, at = min(known)
    return f"{percent(recall)}, class {at}"


def columns_of(table: list[dict[str, Any]]) -> list[Column]:
    """`COLUMNS`, and before bytes and time what only some results have."""
    some = {"server_accuracy": SERVER, "perplexity": PERPLEXITY}
    more = [c for key, c in some.items() if any(line[key] is not None for line in table)]
    more += [Column(c.heading, c.of, c.meaning + ".") for c in guaranteed(table)]
    return [*COLUMNS[:-2], *more, *COLUMNS[-2:]]


ACCURACY = Column(
    "accuracy",
    _accuracy,
    "On the test set, in the last round, mean over the clients that took part in it and over "
    "seeds; ± is the standard deviation over seeds. It is never the best over test rounds.",
)
TIME = Column(
    "time", lambda line: duration(line["seconds"]), "Of all rounds together, by the clock."
)
SERVER = Column(
    "server",
    _share("server_accuracy"),
    "Accuracy of the server's own model on the test set, in the last round.",
)
PERPLEXITY = Column(
    "perplexity",
    lambda line: plain(line["perplexity"]),
    "Of texts, in the last round: e to the mean cross-entropy of the test set's positions, mean "
    "over clients; a model that guesses evenly has as much as there are characters.",
)
COLUMNS = (
    ACCURACY,
    Column(
        "worst client",
        _share("accuracy_worst"),
        "The lowest accuracy of a client in the last round, mean over seeds.",
    ),
    Column(
        "own classes",
        _share("own_accuracy"),
        "The same test set weighed by each client's own mix of classes, in the last round.",
    ),
    Column(
        "by validation",
        _share("best_accuracy"),
        "Test accuracy in the round with the best accuracy on the validation set, which is apart "
        "from the test set; without a validation set, in the last round.",
    ),
    Column(
        "answered",
        _share("accepted"),
        "Share of the proxy set that a client's filter let it answer, in the last round.",
    ),
    Column(
        "precision",
        _share("precision"),
        "Of the proxy samples that a client answered, the share from classes it holds.",
    ),
    Column(
        "recall",
        _share("recall"),
        "Of the proxy samples from classes that a client holds, the share it answered.",
    ),
    Column(
        "consensus",
        _share("consensus_accuracy"),
        "Share of the answered proxy samples whose most likely class, by what all clients say "
        "together, is the true one, in the last round.",
    ),
    Column(
        "bytes",
        lambda line: size(line["bytes"]),
        "Payload of all clients and rounds, up and down, the proxy set included.",
    ),
    TIME,
)
WORST_TENTH = Column(
    "worst tenth",
    _share("accuracy_worst_tenth"),
    "Mean accuracy of the worst tenth of the clients, one at least, mean over seeds.",
)
QUALITY = (
    Column(
        "between clients",
        lambda line: "-" if line["clients_sd"] is None else f"± {100 * line['clients_sd']:.1f}",
        "Standard deviation of the accuracy over clients, in points, mean over seeds.",
    ),
    WORST_TENTH,
    Column(
        "least found class",
        _least_found,
        "Of each class of the test set, the share that clients' models find (recall), mean over "
        "clients and seeds; here the class with the lowest.",
    ),
    Column(
        "ECE",
        _ece,
        "Expected calibration error in points: how far confidence lies from accuracy, over 15 "
        "equally wide bins, mean over clients and seeds; in brackets the mean ends of intervals "
        "that hold each client's true one with 95 % or more.",
    ),
    Column(
        "Brier score",
        lambda line: "-" if line["brier"] is None else f"{line['brier']:.3f}",
        "Mean squared distance of the soft labels from the truth, 0 to 2; evenly guessing among 10 "
        "classes gives 0.9.",
    ),
)
"""Calibration and fairness, all of the last round, on the test set."""

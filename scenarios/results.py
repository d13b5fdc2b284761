"""What a run gave: its cells, and the table that compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedkd.config import Scenario
from privacy.ledger import Release
from scenarios.spending import Ledgers, Spent, figures, most
from server.events import Event

Round = dict[str, Any]


ROUND_BYTES = ("pool", "up", "down")


class Traffic(NamedTuple):
    """Payload bytes."""

    contributed: int
    """To the proxy set, up."""
    pool: int
    """The proxy set, down."""
    up: int
    down: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row with one seed, as its events tell it."""

    row: str
    seed: int
    events: Sequence[Event]
    ledgers: Ledgers = field(default_factory=dict)
    """What the clients have recorded so far."""
    server_ledger: tuple[Release, ...] = ()
    """What the server has recorded of what it tells itself, where clients trust it."""

    def of(self, kind: str) -> list[Event]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def measured(self) -> list[Round]:
        """The rounds in which the clients were measured, in order."""
        return [event for event in self.of("round") if "accuracy" in event]

    @property
    def last(self) -> Round:
        """The last measured round, which is the last of a whole run: the figure to quote."""
        return self.measured[-1]

    @property
    def best(self) -> Round:
        """The round with the best validation accuracy (never chosen on the test set)."""
        return max(self.measured, key=_chosen_by)

    @property
    def traffic(self) -> Traffic:
        """Of all clients and rounds."""
        sums = [sum(event[f"bytes_{key}"] for event in self.of("round")) for key in ROUND_BYTES]
        return Traffic(sum(event["bytes_up"] for event in self.of("pool")), *sums)

    @property
    def bytes(self) -> int:
        """All payload bytes, up and down, the proxy pool included."""
        return sum(self.traffic)

    @property
    def abstained(self) -> int:
        """How often a client's budget made it say nothing, over clients and rounds."""
        return sum(int(event.get("n_abstained", 0)) for event in self.of("round"))

    @property
    def seconds(self) -> float:
        """Time of all rounds."""
        return float(sum(event["seconds"] for event in self.of("round")))


@dataclass(frozen=True, kw_only=True)
class Result:
    """A scenario's cells; rows in the order they ran, the scenario's own first."""

    scenario: Scenario
    folder: Path | None
    cells: tuple[Cell, ...]

    def rows(self) -> dict[str, list[Cell]]:
        """The cells of each row, one a seed."""
        rows: dict[str, list[Cell]] = {}
        for cell in self.cells:
            rows.setdefault(cell.row, []).append(cell)
        return rows

    def table(self) -> list[dict[str, Any]]:
        """One line a row: means over seeds, the standard deviation of the accuracy, what was spent.

        Keys: row, seeds, accuracy (last round), accuracy_sd (over seeds; None for one seed),
        accuracy_worst, accuracy_worst_tenth, clients_sd (over clients), own_accuracy, best_accuracy
        (round chosen on validation), accepted, precision, recall, consensus_accuracy,
        server_accuracy, perplexity, brier, ece, ece_low, ece_high (None where there is none),
        class_recall (a list, or None), filter_auroc (when a filter was made last), filter_s (a
        client's seconds for all its filters; None without one), abstained (clients, over rounds),
        bytes, seconds, privacy: for each unit and relation, who spent most, over seeds, as
        `spending.figures` has it; none where nothing was recorded.
        """
        return [_line(row, cells, self.spent[row]) for row, cells in self.rows().items()]

    @cached_property
    def spent(self) -> dict[str, list[Spent]]:
        """For each row, and each unit and relation, the client that spent most, over seeds."""
        delta = self.scenario.privacy.delta
        return {
            row: most([(cell.seed, cell.ledgers) for cell in cells], delta)
            for row, cells in self.rows().items()
        }


def _chosen_by(round_: Round) -> tuple[float, int]:
    """Validation accuracy, the later round at a tie; without a validation set, the last round."""
    return float(round_.get("validation_accuracy", 0.0)), int(round_["round"])


def _recalls(rounds: list[Round]) -> list[float | None] | None:
    """Of each class, the mean over the rounds that know it; None where none knows any."""
    known = [round_["class_recall"] for round_ in rounds if "class_recall" in round_]
    by_class = [[one for one in ones if one is not None] for ones in zip(*known, strict=True)]
    return [float(np.mean(ones)) if ones else None for ones in by_class] or None


def _line(row: str, cells: list[Cell], spent: list[Spent]) -> dict[str, Any]:
    def mean(key: str) -> float | None:
        values = [cell.last[key] for cell in cells if cell.last.get(key) is not None]
        return float(np.mean(values)) if values else None

    def filtered(key: str, of: Callable[[list[float]], float]) -> float | None:
        """Of the rounds in which filters were made, which need not be all; mean over cells."""
        made = [[event[key] for event in cell.of("round") if key in event] for cell in cells]
        found = [of(values) for values in made if values]
        return float(np.mean(found)) if found else None

    accuracies = [cell.last["accuracy"] for cell in cells]
    return {
        "row": row,
        "seeds": [cell.seed for cell in cells],
        "accuracy": mean("accuracy"),
        "accuracy_sd": float(np.std(accuracies, ddof=1)) if len(cells) > 1 else None,
        **{
            key: mean(key)
            for key in (
                "accuracy_worst",
                "accuracy_worst_tenth",
                "own_accuracy",
                "accepted",
                "precision",
                "recall",
                "consensus_accuracy",
                "server_accuracy",
                "perplexity",
                "brier",
                "ece",
                "ece_low",
                "ece_high",
            )
        },
        "clients_sd": mean("accuracy_sd"),
        "filter_auroc": filtered("filter_auroc", itemgetter(-1)),
        "filter_s": filtered("filter_s", sum),
        "class_recall": _recalls([cell.last for cell in cells]),
        "best_accuracy": float(np.mean([cell.best["accuracy"] for cell in cells])),
        "bytes": round(np.mean([cell.bytes for cell in cells])),
        "seconds": float(np.mean([cell.seconds for cell in cells])),
        "abstained": float(np.mean([cell.abstained for cell in cells])),
        "privacy": [{**figures(s.total), "client": s.client, "seed": s.seed} for s in spent],
    }

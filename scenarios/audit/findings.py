"""What an audit writes below a cell, and how it is read back: one JSON object a line.

`findings.jsonl` grows part by part; a part counts once its last line says that it is done, so
what an interrupted part has left is never read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

OBSERVERS = {
    "owner": "the client's own model: no observer, the most that there is to leak",
    "uploads": "the server, who sees each client's uploads as they came",
    "aggregate": "the server under secure aggregation, or whoever hears the consensus alone",
    "peer": "another client: the consensus, its own upload and its own model",
    "student": "whoever reads the final model of another client",
}
"""From where one looks, in the order of tables and plots."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One figure of one attack, from where one observer stands. Empirical, whatever it says."""

    part: str
    observer: str
    """One of OBSERVERS."""
    attack: str
    adaptive: bool = False
    """Whether the attack knows the defence."""
    target: str
    measure: str
    value: float | None
    """None: could not be measured; `note` says why."""
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    null: float | None = None
    """What no leakage gives."""
    most: float | None = None
    """The cap."""
    ceiling: float | None = None
    """The most that the ledger allows any attack."""
    n: int = 0
    """Targets, or pairs, that it is of."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a plot shows: a ROC's FPR and TPR, or the raw values of a histogram in `x`."""

    part: str
    observer: str
    attack: str
    target: str
    kind: Literal["roc", "histogram"]
    x: tuple[float, ...]
    y: tuple[float, ...] = field(default=())
    n: int = 0
    """Of a ROC: the non-members, on which the smallest FPR depends; of a histogram: its values."""


def append(
    cell: Path, part: str, findings: Iterable[Finding], curves: Iterable[Curve] = (), **done: Any
) -> None:
    """Write a part's findings and curves, then that it is done; `done` says more of it."""
    folder = cell / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    last = {"part": part, "done": True, **done}
    with (folder / "curves.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in [*map(asdict, curves), last])
    with (folder / "findings.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in [*map(asdict, findings), last])


def read(cell: Path) -> list[Finding]:
    """The findings of the parts that are done, in the order written; none without an audit."""
    return [Finding(**line) for line in _done(cell / "audit" / "findings.jsonl")]


def read_curves(cell: Path) -> list[Curve]:
    """The curves of the parts that are done."""
    found = list(_done(cell / "audit" / "curves.jsonl"))
    return [Curve(**{**line, "x": tuple(line["x"]), "y": tuple(line["y"])}) for line in found]


def _done(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of each part up to the one that says it is done; of a repeated part, the last."""
    if not path.exists():
        return
    open_: dict[str, list[dict[str, Any]]] = {}
    done: dict[str, list[dict[str, Any]]] = {}
    with path.open(encoding="utf-8") as file:
        for text in file:
            if not text.endswith("\n"):  # cut short by a crash
                break
            line = json.loads(text)
            if line.get("done"):
                done[line["part"]] = open_.pop(line["part"], [])
            else:
                open_.setdefault(line["part"], []).append(line)
    for lines in done.values():
        yield from lines

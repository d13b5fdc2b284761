"""What an audit writes below a cell, and how it is read back: one JSON object a line.

`findings.jsonl` grows part by part; a part counts once its last line says that it is done, so
what an interrupted part has left is never read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

OBSERVERS = {
    "owner": "the client's own model: no observer, the most that there is to leak",
    "uploads": "the server, who sees each client's uploads as they came",
    "aggregate": "the server under secure aggregation, or whoever hears the consensus alone",
    "peer": "another client: the consensus, its own upload and its own model",
    "student": "whoever reads the final model of another client",
}
"""From where one looks, in the order of tables and plots."""

EPSILON = "epsilon at least"
"""The measure that its ceiling contradicts where it lies above."""
UNSUPPORTED = "smallest FPR"
"""What the note begins with of a TPR at an FPR that the sample is too small for."""


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
    """The most that the ledger allows any attack; None where it promises nothing."""
    n: int = 0
    """Targets, or pairs, that it is of."""
    note: str = ""

    @property
    def contradicts(self) -> bool:
        """Whether the ledger promises less than was found: then one of the two is wrong."""
        known = self.measure == EPSILON and self.value is not None and self.ceiling is not None
        return known and self.value > self.ceiling  # type: ignore[operator]


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


class Found(NamedTuple):
    """What a part gives."""

    findings: Sequence[Finding]
    curves: Sequence[Curve] = ()
    note: str = ""
    """What could not be measured, and why."""


def append(
    cell: Path, part: str, findings: Iterable[Finding], curves: Iterable[Curve] = (), **done: Any
) -> None:
    """Write a part's findings and curves, then that it is done; `done` says more of it."""
    folder = cell / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    last = {"part": part, "done": True, **done}
    # The findings last: they are what says that a part is done.
    for path, lines in ((_curves(cell), curves), (_findings(cell), findings)):
        text = "".join(
            json.dumps(line, allow_nan=False) + "\n" for line in [*map(asdict, lines), last]
        )
        with path.open("ab") as file:
            file.truncate(_whole(path))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def read(cell: Path) -> list[Finding]:
    """The findings of the parts that are done, in the order written; none without an audit."""
    return [Finding(**line) for part in _done(_findings(cell)).values() for line in part[:-1]]


def read_curves(cell: Path) -> list[Curve]:
    """The curves of the parts that are done."""
    return [
        Curve(**{**line, "x": tuple(line["x"]), "y": tuple(line["y"])})
        for part in _done(_curves(cell)).values()
        for line in part[:-1]
    ]


def done(cell: Path) -> dict[str, dict[str, Any]]:
    """What the last line of each part that is done says of it."""
    return {name: part[-1] for name, part in _done(_findings(cell)).items()}


def _findings(cell: Path) -> Path:
    return cell / "audit" / "findings.jsonl"


def _curves(cell: Path) -> Path:
    return cell / "audit" / "curves.jsonl"


def _whole(path: Path) -> int:
    """How many bytes of a file are whole lines: a crash may have torn the last."""
    return path.read_bytes().rfind(b"\n") + 1


def _done(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of each part with the one that says it is done; of a repeated part, the last."""
    left: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for line in _lines(path):
        lines = left.setdefault(line["part"], [])
        lines.append(line)
        if line.get("done"):
            found.pop(line["part"], None)
            found[line["part"]] = left.pop(line["part"])
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for text in path.read_bytes()[: _whole(path)].splitlines():
            yield json.loads(text)

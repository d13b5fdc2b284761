"""A client's total taken apart, for people: what training, filter and release each cost.

The parts of one client do not add up to its total: privacy losses compose better than epsilons do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from privacy import accounting
from privacy.accounting import Spent
from privacy.events import Protects
from privacy.ledger import Release, What
from privacy.totals import total

Name = Literal["training", "filter", "release"]
PARTS: dict[Name, tuple[What, ...]] = {
    "training": ("training",),
    "filter": ("accept mask", "sample weights"),
    "release": ("summary", "soft labels", "label means", "weights"),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part of a client's ledger says for one unit and relation."""

    name: Name
    how: tuple[str, ...]
    """The mechanisms, or what is there instead."""
    spent: Spent
    """What the part's own events cost."""
    derived: bool
    """It is made of what another part has paid for, at least in part."""
    bare: tuple[str, ...]
    """What it is and why it has no guarantee; empty if it has one."""

    @property
    def epsilon(self) -> float:
        """By itself; infinite without a guarantee."""
        return math.inf if self.bare else self.spent.epsilon

    def __str__(self) -> str:
        if self.bare:
            return f"no guarantee ({'; '.join(self.bare)})"
        how = ", ".join(self.how)
        if self.spent.epsilon == 0 and self.derived:
            return f"nothing more ({how})"
        return f"{self.spent}, by {how}"


def parts(entries: Iterable[Release], protects: Protects, delta: float) -> tuple[Part, ...]:
    """The parts of one client's ledger that have entries, for one unit and relation."""
    entries = tuple(entries)
    bare = frozenset(total(entries, protects, delta).bare)
    return tuple(
        _part(name, mine, bare, protects, delta)
        for name, whats in PARTS.items()
        if (mine := [e for e in entries if e.what in whats and _counts(e, protects)])
    )


def _counts(entry: Release, protects: Protects) -> bool:
    """Whether an entry is of something: a mask that nobody sees is in the sum that has it."""
    hidden = entry.seen_by == "no one" and entry.what != "training"
    return entry.rows > 0 and not (hidden and all(e.protects != protects for e in entry.events))


def _part(
    name: Name, mine: list[Release], bare: frozenset[Release], protects: Protects, delta: float
) -> Part:
    events = [event for entry in mine for event in entry.events if event.protects == protects]
    unproved = [entry for entry in mine if entry in bare]
    if name == "training":  # it stays on the client, so it is never bare itself
        unproved = [e for e in mine if all(event.protects != protects for event in e.events)]
    return Part(
        name=name,
        how=tuple(sorted({entry.reason for entry in mine})),
        spent=accounting.epsilon(events, protects, delta),
        derived=any(entry.derived_from for entry in mine),
        bare=tuple(sorted({_why(entry, protects) for entry in unproved})),
    )


def _why(entry: Release, protects: Protects) -> str:
    if entry.guarantee == "proved":
        return f"{entry.reason}, which is not proved for {protects}"
    return f"{entry.guarantee}: {entry.reason}"

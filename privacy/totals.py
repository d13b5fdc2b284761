"""What a ledger adds up to: epsilon for training, filter and release together, client by client.

A total is for one unit and one neighbouring relation; different ones never add up. It is finite
only if everything that left has a proof for just that unit and relation. The sizes of the clients'
data sets are taken as public, and so is which samples a client drew to contribute; what a
simulation measures (accuracies, class counts) is not a release and not charged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.section import Section
from privacy import accounting
from privacy.accounting import Spent
from privacy.events import Event, Protects, Relation, Unit
from privacy.ledger import Ledger, Release, What

DEFAULTS = (Protects("record", "add-remove"), Protects("client", "replace"))
"""What is answered for in any case, even where no event has that unit and relation."""


class Budget(Section):
    """The most that may be spent on one unit under one neighbouring relation."""

    unit: Unit
    relation: Relation
    epsilon: float = Field(gt=0)
    delta: float = Field(ge=0, lt=1)

    @property
    def protects(self) -> Protects:
        """Unit and neighbouring relation."""
        return Protects(self.unit, self.relation)


@dataclass(frozen=True, kw_only=True)
class Total:
    """What all entries of one client cost together."""

    spent: Spent
    """What the proved events cost."""
    bare: tuple[Release, ...]
    """What left without a proof for this unit and relation."""
    in_the_clear: int
    """Raw samples that were given away. For these records no epsilon holds."""

    @property
    def epsilon(self) -> float:
        """For the records that were not given away, or for the client; infinite with `bare`."""
        return math.inf if self.bare else self.spent.epsilon

    def __str__(self) -> str:
        if self.bare:
            why = sorted({f"{e.what}: {_why(e, self.spent.protects)}" for e in self.bare})
            text = (
                f"epsilon infinite for {self.spent.protects} at any delta below 1 "
                f"({'; '.join(why)})"
            )
        else:
            text = str(self.spent)
        if self.in_the_clear and self.spent.protects.unit == "record":
            text += f"; infinite for the {self.in_the_clear} records given away in the clear"
        return text


def total(entries: Iterable[Release], protects: Protects, delta: float) -> Total:
    """The total of one client's entries for one unit and relation, in any order of the entries."""
    entries = tuple(entries)
    bare = _bare(entries, protects)
    return Total(
        spent=accounting.epsilon(_events(entries, protects), protects, delta),
        bare=bare,
        in_the_clear=_in_the_clear(entries),
    )


def totals(entries: Iterable[Release], delta: float) -> list[Total]:
    """A total for each unit and relation that an entry has events for, and for `DEFAULTS`."""
    entries = tuple(entries)
    found = {event.protects for entry in entries for event in entry.events}
    return [total(entries, protects, delta) for protects in sorted({*DEFAULTS, *found})]


def worst(by_client: Mapping[int, Total]) -> tuple[int, Total]:
    """The client that has spent most: what the federation as a whole promises to anyone in it.

    Clients hold different data and each release reads the data of one client only, so clients
    compose in parallel: the maximum, never the sum. Of equals, the first by client.
    """
    client = max(sorted(by_client), key=lambda client: by_client[client].epsilon)
    return client, by_client[client]


def affords(ledger: Ledger, budget: Budget, *releases: Release) -> bool:
    """Whether the budget still holds after `releases`; if not, the client abstains.

    What is recorded already is paid for, so a repeated message is always affordable. By RDP
    alone, which costs about a millisecond and is a valid bound by itself.
    """
    new = [release for release in releases if release not in ledger]
    if not new:
        return True
    entries, protects = (*ledger.entries(), *new), budget.protects
    return at_most(entries, protects, budget.delta) <= budget.epsilon


def at_most(entries: Iterable[Release], protects: Protects, delta: float) -> float:
    """As `total(...).epsilon`, by RDP alone; infinite where something left without a proof."""
    entries = tuple(entries)
    if _bare(entries, protects):
        return math.inf
    return accounting.rdp_epsilon(_events(entries, protects), protects, delta)


def deltas(
    entries: Iterable[Release], protects: Protects, epsilons: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The delta that holds at each epsilon; 1 everywhere where something left without a proof.

    As `total(...).epsilon`, it says nothing for records that were given away in the clear.
    Shapes: `epsilons` [k], ascending, at least 0 -> [k].
    """
    entries = tuple(entries)
    if _bare(entries, protects):
        return np.ones(len(epsilons))
    return accounting.deltas(_events(entries, protects), protects, epsilons)


def _events(entries: Iterable[Release], protects: Protects) -> list[Event]:
    return [event for entry in entries for event in entry.events if event.protects == protects]


def _bare(entries: tuple[Release, ...], protects: Protects) -> tuple[Release, ...]:
    """What left without a proof for `protects`, sorted.

    An entry is covered by events of its own, or if all that it is derived from is covered. One of
    no rows let nothing leave: which samples a client answers is the accept mask's entry. Raw
    samples do not touch the other records of their client, so they are not bare for `record`.
    """
    uncovered: set[What] = set()
    while True:
        bare = [entry for entry in entries if not _covered(entry, protects, uncovered)]
        found: set[What] = {entry.what for entry in bare}
        if found == uncovered:
            left = [entry for entry in bare if entry.seen_by != "no one"]
            return tuple(sorted(left, key=Release.as_line))
        uncovered = found


def _covered(entry: Release, protects: Protects, uncovered: set[What]) -> bool:
    if entry.rows == 0 or (entry.what == "raw samples" and protects.unit == "record"):
        return True
    if any(event.protects == protects for event in entry.events):
        return True
    return bool(entry.derived_from) and uncovered.isdisjoint(entry.derived_from)


def _in_the_clear(entries: Iterable[Release]) -> int:
    return sum(entry.rows for entry in entries if entry.what == "raw samples")


def _why(entry: Release, protects: Protects) -> str:
    if entry.guarantee == "proved":
        return f"not proved for {protects}"
    return f"{entry.guarantee}, {entry.reason}"

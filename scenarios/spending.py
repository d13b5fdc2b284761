"""What the clients' ledgers say after a run: the client that spent most, for each unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from privacy import ledger
from privacy.events import Protects
from privacy.ledger import Release
from privacy.totals import Total, total, totals, worst

Ledgers = Mapping[int, tuple[Release, ...]]
"""The entries of each client that has some, by client."""


class Spent(NamedTuple):
    """The total of the client that spent most, over seeds."""

    seed: int
    client: int
    total: Total

    @property
    def proved(self) -> bool:
        """Whether it is finite."""
        return not self.total.bare

    def __str__(self) -> str:
        return f"{self.total}; client {self.client} of seed {self.seed}, which spent most"


def read(folder: Path) -> Ledgers:
    """The ledgers below a folder of clients; a run that is going on is not disturbed."""
    return {
        int(path.parent.name): ledger.look(path)
        for path in sorted(folder.glob("[0-9]*/ledger.jsonl"))
    }


def most(ledgers: Iterable[tuple[int, Ledgers]], delta: float) -> list[Spent]:
    """For each unit and relation, who spent most in one row: of its ledgers by seed.

    Nothing where no client has an entry, for then nothing left.
    """
    found: dict[Protects, dict[tuple[int, int], Total]] = {}
    for seed, by_client in ledgers:
        for client, entries in by_client.items():
            for one in totals(entries, delta):
                found.setdefault(one.spent.protects, {})[seed, client] = one
    spent = []
    for by_who in found.values():
        order = sorted(by_who)
        place, dearest = worst({i: by_who[who] for i, who in enumerate(order)})
        spent.append(Spent(*order[place], dearest))
    return spent


def figures(found: Total) -> dict[str, Any]:
    """A total for JSON: never an epsilon without delta, unit, relation and both accountants."""
    spent = found.spent
    return {
        "unit": spent.protects.unit,
        "relation": spent.protects.relation,
        "delta": spent.delta,
        "epsilon": None if found.bare else spent.epsilon,
        "pld": None if found.bare else spent.pld,
        "rdp": None if found.bare else spent.rdp,
        "bare": sorted({f"{e.what}: {e.guarantee}, {e.reason}" for e in found.bare}),
        "in_the_clear": found.in_the_clear,
    }


class Guaranteed(NamedTuple):
    """What a column of epsilons is about."""

    protects: Protects
    delta: float

    @property
    def heading(self) -> str:
        """Short, for a column; `meaning` must stand beside it."""
        return f"epsilon, {self.protects.unit}"

    @property
    def meaning(self) -> str:
        """What the column's values are."""
        return (
            f"At delta {self.delta:g} for {self.protects}, of the client that spent most; the "
            "larger of what the accountants PLD and RDP say. A dash: something left without a "
            "guarantee"
        )

    def of(self, line: Mapping[str, Any]) -> str:
        """The value of a line of `Result.table`; 0 where nothing was recorded as leaving."""
        for told in line["privacy"]:
            if (told["unit"], told["relation"]) == self.protects:
                return "-" if told["epsilon"] is None else f"{told['epsilon']:.3g}"
        return "-" if line["privacy"] else "0"

    def of_ledger(self, entries: Iterable[Release]) -> str:
        """The value of one client."""
        found = total(entries, self.protects, self.delta)
        return "-" if found.bare else f"{found.spent.epsilon:.3g}"


def guaranteed(lines: Iterable[Mapping[str, Any]]) -> list[Guaranteed]:
    """The columns of epsilon that a table needs: one for each unit that any row protects."""
    found = {
        Guaranteed(Protects(told["unit"], told["relation"]), told["delta"])
        for line in lines
        for told in line["privacy"]
        if told["epsilon"]
    }
    return sorted(found)


def in_one_line(spent: list[Spent], asked: Protects) -> str:
    """What a row's ledgers say: every guarantee, or why there is none for the unit asked for."""
    if not spent:
        return "nothing was recorded as leaving a client"
    proved = [one for one in spent if one.proved and one.total.spent.epsilon]
    return "; ".join(map(str, proved or [s for s in spent if s.total.spent.protects == asked]))

"""What a report says in words, read out of a result: disclosures, notes, what is missing."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise

import fedkd
from scenarios.results import Cell, Result
from scenarios.simulate import plans
from server.events import Event

MOST_NOTES = 30

MOVES = {
    "left": "left",
    "joined": "came, or came back",
    "late": "answered after the deadline of the round before",
}
"""Events of a deployment's clients, in words."""


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """What one client let out of its hands, in all rounds so far."""

    client: int
    held: int
    """Samples before any was contributed."""
    contributed: int
    """Raw samples given to the proxy set, which the server and all clients see."""
    uploads: int
    """Replies with a payload."""
    rows: int
    """Soft labels in those that the server took."""
    refused: int
    """Replies with a payload that the server did not take; they had left the client already."""


def own_cell(result: Result) -> Cell | None:
    """The scenario's own row with its first seed; None before its first round is done."""
    own = result.rows().get(result.scenario.method.name)
    return own[0] if own else None


def disclosures(cell: Cell) -> list[Disclosure]:
    """One for each client, by client."""
    refused = {(e["round"], e["client"]) for e in cell.of("refused") if e["step"] == "train"}
    uploads: dict[int, list[Event]] = defaultdict(list)
    for event in cell.of("client"):
        if event.get("bytes_up", 0) > 0:
            uploads[event["client"]].append(event)
    return [
        Disclosure(
            client=(client := hello["client"]),
            held=hello["n_private"] + hello["contributed"],
            contributed=hello["contributed"],
            uploads=len(uploads[client]),
            rows=_rows(cell, client, {e["round"] for e in uploads[client] if "accepted" in e}),
            refused=sum((event["round"], client) in refused for event in uploads[client]),
        )
        for hello in cell.of("hello")
    ]


def _rows(cell: Cell, client: int, rounds: set[int]) -> int:
    """Soft labels of some rounds, by the client's ledger: of texts, one a position."""
    return sum(
        entry.rows
        for entry in cell.ledgers.get(client, ())
        if entry.what == "soft labels" and entry.round in rounds
    )


def unfinished(result: Result) -> list[str]:
    """What has rounds to go: a line for each row and number of rounds done."""
    n_rounds = result.scenario.training.rounds
    done = {(cell.row, cell.seed): len(cell.of("round")) for cell in result.cells}
    short: dict[tuple[str, int], list[int]] = defaultdict(list)
    for plan in plans(result.scenario):
        if (rounds := done.get((plan.row, plan.seed), 0)) < n_rounds:
            short[plan.row, rounds].append(plan.seed)
    return [
        f"{row}, seed {spans(seeds)}: {rounds} of {n_rounds} rounds done"
        for (row, rounds), seeds in short.items()
    ]


def notes(result: Result) -> list[str]:
    """Who came, left, was late or refused, and what rounds remark, alike ones in one line."""
    refused: dict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)
    remarks: dict[tuple[str, str], list[int]] = defaultdict(list)
    moves: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for cell in result.cells:
        where = f"{cell.row}, seed {cell.seed}"
        for event in cell.of("refused"):
            key = (where, event["step"], event["reason"])
            refused[key].append((event["round"], event["client"]))
        for kind, words in MOVES.items():
            for event in cell.of(kind):
                dropped = kind == "late" and not event["used"]
                said = f"{words}, not used: {event['reason']}" if dropped else words
                moves[where, said].append((event["round"], event["client"]))
        for event in cell.of("round"):
            if "note" in event:
                remarks[where, event["note"]].append(event["round"])
        for event in cell.of("repeated"):
            remarks[where, f"repeated, since {event['reason']}"].append(event["round"])
    lines = [
        f"{where}, round {spans(rounds)}: {remark}" for (where, remark), rounds in remarks.items()
    ]
    lines += [
        f"{where}: client {spans(client for _, client in cases)} {words} "
        f"(round {spans(round_ for round_, _ in cases)})"
        for (where, words), cases in moves.items()
    ]
    lines += [
        f"{where}: {len(cases)} {'reply' if len(cases) == 1 else 'replies'} to “{step}” refused "
        f"(client {spans(client for _, client in cases)}; "
        f"round {spans(round_ for round_, _ in cases)}): {reason}"
        for (where, step, reason), cases in refused.items()
    ]
    if len(lines) > MOST_NOTES:
        lines[MOST_NOTES:] = [f"and {len(lines) - MOST_NOTES} more; see events.jsonl"]
    return lines


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in words.

    >>> spans([3, 1, 2, 7, 9, 8, 12])
    '1 to 3, 7 to 9, 12'
    """
    ordered = sorted(set(numbers))
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b > a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b > a + 1), ordered[-1]]
    return ", ".join(
        str(first) if first == last else f"{first} to {last}"
        for first, last in zip(starts, ends, strict=True)
    )


def environment() -> str:
    """The versions and the machine of this process."""
    parts = [f"fedkd {fedkd.__version__}", f"Python {platform.python_version()}"]
    parts += [f"{package} {version(package)}" for package in ("torch", "flwr", "numpy")]
    return ", ".join(
        [*parts, f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPUs"]
    )

"""An audit in the terminal: what is being done, and one table a cell, by observer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scenarios.audit.findings import OBSERVERS, UNSUPPORTED, Finding
from scenarios.audit.run import Audit, Step
from scenarios.units import duration

MEANING = (
    "no leak: what chance gives; of: the measure's own limit; ledger: the most that the "
    "accounted epsilon allows any attack, a dash where it promises nothing. * The attack knows the "
    "defence: temperatures undone, rounds of noise averaged. TPRs at an FPR that the sample is too "
    "small for are left out; --json has them."
)

ELSEWHERE = (
    "The clients' ledgers lie with them and not here, so nothing is held against an epsilon: the "
    "column ledger is empty, whatever they promise."
)


class Telling:
    """Prints each part as it is finished; a terminal also shows what is being done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")
        self._cell: tuple[str, int] | None = None

    def __enter__(self) -> Telling:
        self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def __call__(self, step: Step) -> None:
        """Tell one step."""
        if self._cell != (step.row, step.seed):
            self._cell = (step.row, step.seed)
            self._say(f"[bold]{step.row}, seed {step.seed}[/bold]")
        if step.seconds is None:
            self._status.update(f"{step.row}, seed {step.seed}: {step.part}")
        elif step.skipped:
            self._say(f"  [dim]{step.part}: {escape(step.note)}[/dim]")
        else:
            note = f"  {escape(step.note)}" if step.note else ""
            self._say(f"  {step.part}  {duration(step.seconds)}{note}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def tables(audit: Audit) -> Iterator[Table | str]:
    """One table for each observer of each cell that has findings, and at last what columns mean."""
    some = [cell for cell in audit.cells if cell.findings]
    for cell in some:
        yield f"[bold]{cell.row}, seed {cell.seed}: what leaks to whom[/bold] (empirical)"
        for observer, line in OBSERVERS.items():
            seen = [one for one in cell.findings if one.observer == observer and _supported(one)]
            if seen:
                yield _table(f"{observer}: {line}", seen)
    if some and not any(cell.accounted for cell in some):
        yield ELSEWHERE
    if some:
        yield MEANING


def _table(title: str, seen: Sequence[Finding]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("attack", overflow="fold")
    table.add_column("measure", no_wrap=True)
    for heading in ("value", "95 %", "no leak", "ledger", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (part, target), group in groupby(seen, key=lambda one: (one.part, one.target)):
        table.add_row(f"[bold]{part}[/bold]: {escape(target)}")
        for one in group:
            table.add_row(*_row(one))
    return table


def _supported(one: Finding) -> bool:
    return not one.note.startswith(UNSUPPORTED)


def _row(one: Finding) -> Sequence[str]:
    interval = "" if one.low is None or one.high is None else f"{_n(one.low)} to {_n(one.high)}"
    value = _n(one.value)
    style = "bold red" if one.contradicts else ""
    cap = "" if one.most in (None, 1.0) else f" (of {_n(one.most)})"
    return [
        f"  {escape(one.attack)}" + ("*" if one.adaptive else ""),
        f"{one.measure}{cap}",
        f"[{style}]{value}[/{style}]" if style else value,
        interval,
        _n(one.null),
        _n(one.ceiling),
        str(one.n),
    ]


def _n(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def as_table(audit: Audit) -> dict[str, Any]:
    """For JSON."""
    return {
        "scenario": audit.scenario.name,
        "folder": str(audit.folder),
        "contradictions": contradictions(audit),
        "cells": [
            {
                "row": cell.row,
                "seed": cell.seed,
                "findings": [asdict(one) for one in cell.findings],
            }
            for cell in audit.cells
        ],
    }


def contradictions(audit: Audit) -> list[str]:
    """One line for each finding above what a ledger allows."""
    return [
        f"CONTRADICTION in {cell.row}, seed {cell.seed}: to {one.observer!r} epsilon is at least "
        f"{_n(one.value)}, and the ledger says at most {_n(one.ceiling)}: one of them is wrong. "
        f"{one.note}"
        for cell, one in audit.contradictions
    ]

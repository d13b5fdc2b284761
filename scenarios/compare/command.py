"""What `fedkd compare` does: run, tell how it goes on, and write tables and the page."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from scenarios.compare import page, table
from scenarios.compare.book import Book, Entry
from scenarios.compare.plan import Comparison
from scenarios.compare.run import Job, carry_out, jobs
from scenarios.units import duration, percent, size
from server.events import Event

WRITE_EVERY_S = 20.0
"""Tables are written while cells go on, so that a kill -9 leaves some, but not after each."""


class Stopped(Exception):
    """By Ctrl-C."""


def compare(
    comparison: Comparison, home: Path, workers: int, command: str, console: Console, as_json: bool
) -> bool:
    """Carry a comparison out and print its table; returns whether every cell is done.

    Args: command: what makes it again. Raises: Stopped, with the tables written; FedkdError as
        `carry_out`.
    """
    book = Book(comparison, home)
    stopped = False
    try:
        with _Telling(book, Console(quiet=True) if as_json else console, command) as telling:
            carry_out(comparison, home, workers, telling)
    except KeyboardInterrupt:
        stopped = True
    entries = book.entries()
    table.write(entries, comparison, home, command)
    path = page.write(entries, comparison, home, command)
    if as_json:
        print(json.dumps(_as_table(entries, comparison, home), indent=2))
    else:
        console.print(table.table_of(entries, comparison.name))
        for remark in table.remarks(entries, comparison):
            console.print(f"[yellow]{escape(remark)}[/yellow]", soft_wrap=True, highlight=False)
        console.print(f"comparison: {path}", soft_wrap=True)
    if stopped:
        raise Stopped
    return all(job.done for job in jobs(comparison, home))


def _as_table(entries: list[Entry], comparison: Comparison, home: Path) -> dict[str, object]:
    return {
        "comparison": comparison.name,
        "folder": str(home),
        "page": str(home / page.PAGE),
        "remarks": table.remarks(entries, comparison),
        "table": [
            {
                "split": entry.run.split,
                "method": entry.run.method,
                "reference": entry.run.reference,
                "folder": str(entry.run.folder(home)),
                "failed": list(entry.failures),
                **(entry.line or {}),
            }
            for entry in entries
        ],
    }


class _Telling:
    """Prints a line for each cell that is over, with the time left by those that it has seen.

    To a terminal, it also shows where the cells are that go on.
    """

    def __init__(self, book: Book, console: Console, command: str) -> None:
        self._book, self._console, self._command = book, console, command
        cells = jobs(book.comparison, book.home)
        self._n_cells, self._n_before = len(cells), sum(job.done for job in cells)
        self._n_over = self._n_before
        self._rounds: dict[str, str] = {}
        self._start = self._written = time.monotonic()
        self._status = console.status("starting")
        if self._n_before:
            console.print(f"{self._n_before} of {self._n_cells} cells are done already")

    def __enter__(self) -> _Telling:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, job: Job, event: Event | None) -> None:
        if event is not None:
            n_rounds = job.plan.scenario.training.rounds
            self._rounds[str(job)] = f"{escape(str(job))}  round {event['round']}/{n_rounds}"
        else:
            self._rounds.pop(str(job), None)
            self._over(job)
        self._status.update("; ".join(self._rounds.values()))

    def _over(self, job: Job) -> None:
        self._n_over += 1
        per_cell = (time.monotonic() - self._start) / (self._n_over - self._n_before)
        left = duration(per_cell * (self._n_cells - self._n_over))
        place = f"{self._n_over:>{len(str(self._n_cells))}}/{self._n_cells}"
        if job.failed:
            text = f"[red]failed: {escape(job.failed)}[/red]"
        else:
            cell = job.plan.read(job.run.folder(job.home))
            text = f"accuracy {percent(cell.last['accuracy'])}  {size(cell.bytes)}"
            text += f"  {duration(cell.seconds)}"
        self._console.print(
            f"{place}  {escape(str(job))}  {text}  left {left}", soft_wrap=True, highlight=False
        )
        if time.monotonic() > self._written + WRITE_EVERY_S:
            table.write(self._book.entries(), self._book.comparison, self._book.home, self._command)
            self._written = time.monotonic()

"""The cells of a comparison that are done, an entry for each method on each split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.compare.plan import Comparison, Run
from scenarios.compare.run import Job
from scenarios.results import Cell, Result


@dataclass(frozen=True)
class Entry:
    """A method on a split: the cells that are done, and what is said of the others."""

    run: Run
    cells: tuple[Cell, ...]
    states: dict[int, str]
    """By seed: "done", "waiting", or why it failed."""
    first: tuple[Cell, ...] = ()
    """The cells of the split's first method, which this one is set against; its own has none."""

    @cached_property
    def line(self) -> dict[str, Any] | None:
        """As `Result.table` has it, with bytes `up` and `down` of one client; None without cells.

        `gain` is the accuracy less that of the split's first method with the same seed: the mean
        over the seeds that both have done, and `gain_sd`, the standard deviation of these
        differences, which is smaller than that of either where a seed is hard for both.
        Seconds are of cells that may have run side by side.
        """
        if not self.cells:
            return None
        (line,) = Result(scenario=self.run.scenario, folder=None, cells=self.cells).table()
        ups, downs = zip(*map(per_client, self.cells), strict=True)
        theirs = {cell.seed: cell.last["accuracy"] for cell in self.first}
        gains = [c.last["accuracy"] - theirs[c.seed] for c in self.cells if c.seed in theirs]
        return {
            **line,
            "gain": float(np.mean(gains)) if gains else None,
            "gain_sd": float(np.std(gains, ddof=1)) if len(gains) > 1 else None,
            "up": sum(ups) / len(ups),
            "down": sum(downs) / len(downs),
        }

    @property
    def n_seeds(self) -> str:
        """How many seeds are done, and of how many if not all are."""
        done, asked = len(self.cells), len(self.states)
        return str(done) if done == asked else f"{done} of {asked}"

    @property
    def failures(self) -> dict[str, list[int]]:
        """Why cells failed, and their seeds."""
        found: dict[str, list[int]] = {}
        for seed, state in self.states.items():
            if state not in ("done", "waiting"):
                found.setdefault(state, []).append(seed)
        return found


def per_client(cell: Cell) -> tuple[float, float]:
    """Bytes that one client sent and got in all rounds, with the proxy set; mean over clients."""
    n_clients = max(1, len(cell.of("hello")))
    traffic = cell.traffic
    up, down = traffic.contributed + traffic.up, traffic.pool + traffic.down
    return up / n_clients, down / n_clients


class Book:
    """Reads what there is of a comparison; what has not changed is not read again."""

    def __init__(self, comparison: Comparison, home: Path) -> None:
        self.comparison, self.home = comparison, home
        self._runs = [[Job(run, plan, home) for plan in run.cells] for run in comparison.runs]
        self._known: dict[int, Entry] = {}

    def entries(self) -> list[Entry]:
        """One for each run, in their order."""
        found: list[Entry] = []
        firsts: dict[str, tuple[Cell, ...]] = {}
        for at, of_run in enumerate(self._runs):
            first = firsts.get(of_run[0].run.split, ())
            found.append(self._entry(at, of_run, first))
            firsts.setdefault(of_run[0].run.split, found[-1].cells)
        return found

    def _entry(self, at: int, of_run: Sequence[Job], first: tuple[Cell, ...]) -> Entry:
        states = {job.plan.seed: "done" if job.done else job.failed or "waiting" for job in of_run}
        known = self._known.get(at)
        if known is None or known.states != states:
            run = of_run[0].run
            cells = tuple(job.plan.read(run.folder(self.home)) for job in of_run if job.done)
            known = self._known[at] = Entry(run, cells, states, first)
        elif known.first is not first:
            known = self._known[at] = replace(known, first=first)
        return known

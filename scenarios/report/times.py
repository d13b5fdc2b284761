"""What the time of each row went to: the phases of its clients, and the clock.

Clients measure their own phases. On a grid where one works at a time, what the clock has more is
the server's work and the messages. Where they work side by side, their times may add up to more
than the clock's, and what server and messages took is hidden behind them: no rest is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.results import Cell, Result
from scenarios.units import duration, percent

PHASES = ("train", "filter", "answer", "distill", "evaluate")
REST = "server and messages"
ONE_AT_A_TIME = ("inline", "cohort")


@dataclass(frozen=True, kw_only=True)
class Time:
    """One row's seconds over all rounds, mean over its seeds."""

    phases: dict[str, float]
    """Summed over clients, by phase."""
    wall: float
    """Of the rounds, by the clock."""
    alone: bool
    """Whether one client worked at a time."""

    @property
    def work(self) -> float:
        """Seconds of all clients."""
        return sum(self.phases.values())

    @property
    def rest(self) -> float:
        """What the clock has more than clients that worked one at a time; zero for others."""
        return max(0.0, self.wall - self.work) if self.alone else 0.0

    @property
    def longest(self) -> float:
        """The clients' seconds and the rest, or the clock's if that has more."""
        return max(self.work, self.wall)


def times(result: Result) -> dict[str, Time]:
    """By row; a row whose clients measured no phase is left out."""
    alone = result.scenario.grid.name in ONE_AT_A_TIME
    found = {row: _mean_time(cells, alone) for row, cells in result.rows().items()}
    return {row: time for row, time in found.items() if time.work > 0}


def in_words(result: Result) -> list[str]:
    """One line a row: the clock, then each phase with its share, the greatest first."""
    return [f"{row}: {_words(time)}" for row, time in times(result).items()]


def _mean_time(cells: list[Cell], alone: bool) -> Time:
    return Time(
        phases={phase: float(np.mean([_spent(cell, phase) for cell in cells])) for phase in PHASES},
        wall=float(np.mean([cell.seconds for cell in cells])),
        alone=alone,
    )


def _spent(cell: Cell, phase: str) -> float:
    return float(sum(event.get(f"{phase}_s", 0.0) for event in cell.of("client")))


def _words(time: Time) -> str:
    parts = {**time.phases, REST: time.rest}
    shares = ", ".join(
        f"{name} {duration(seconds)} ({percent(seconds / (time.work + time.rest))})"
        for name, seconds in sorted(parts.items(), key=lambda part: -part[1])
        if seconds > 0
    )
    if time.rest > 0:
        return f"{duration(time.wall)} by the clock: {shares}"
    at_a_time = time.work / time.wall
    return (
        f"{duration(time.work)} of clients' work in {duration(time.wall)} by the clock, "
        f"{at_a_time:.1f} at a time: {shares}"
    )

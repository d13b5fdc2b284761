"""What each row costs: payload bytes and time by phase, as horizontal bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from scenarios.report.figures import HALF, INK, LINES, PART_COLOURS, figure, key, label
from scenarios.report.times import PHASES, REST, times
from scenarios.results import Cell, Result
from scenarios.units import duration, size

BYTES = ("proxy pool, once", "up", "down")
LOG_FROM = 50
"""Bytes stand on a logarithmic axis where the longest bar is that many times the shortest."""
WALL, MARK = "end by the clock", 0.006
ROOM = 0.22
"""Share of the axis that is kept free for the number at a bar's end."""


def payload_bytes(result: Result) -> Figure | None:
    """Payload bytes of each row, mean over seeds: the proxy pool once, up, down."""
    bars = _by_row(result, _bytes)
    used = [value for parts in bars.values() for value in parts if value > 0]
    if not used:
        return None
    plot, axes = _rows("What travelled", list(bars))
    if logarithmic := max(used) > LOG_FROM * min(used):
        left = min(used) / 3
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xlim(left, left * (max(used) / left) ** (1 / (1 - ROOM)))
    else:
        left = 0.0
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(left, max(used) / (1 - ROOM))
    for row, parts in enumerate(bars.values()):
        for part, value in enumerate(parts):
            place = row + (part - 1) * 0.26
            axes.barh(place, value, 0.24, color=PART_COLOURS[part])
            _number(axes, max(value, left), place, size(value))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    label(axes, "payload bytes, logarithmic axis" if logarithmic else "payload bytes")
    key(plot, dict(zip(BYTES, PART_COLOURS, strict=False)))
    return plot


def phase_seconds(result: Result) -> Figure | None:
    """Time of each row by phase, summed over clients and rounds, mean over seeds.

    A mark stands where the rounds end by the clock: at the bar's end, after a part for server and
    messages, if one client works at a time; where clients work side by side, mostly inside the bar.
    """
    bars = times(result)
    if not bars:
        return None
    most = max(time.longest for time in bars.values())
    plot, axes = _rows("What the time went to", list(bars))
    for row, time in enumerate(bars.values()):
        parts = [*time.phases.values(), time.rest]
        ends = np.cumsum(parts)
        axes.barh([row] * len(parts), parts, 0.56, ends - parts, color=PART_COLOURS)
        axes.barh(row, MARK * most, 0.8, time.wall - MARK * most / 2, color=INK)
        _number(axes, time.longest, row, duration(ends[-1]))
    axes.set_xlim(0, most / (1 - ROOM))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    label(axes, "seconds of work, summed over clients and rounds")
    key(plot, {**dict(zip((*PHASES, REST), PART_COLOURS, strict=True)), WALL: INK})
    return plot


def _by_row(result: Result, measure: Callable[[Cell], Sequence[float]]) -> dict[str, list[float]]:
    """The parts that `measure` gives, mean over each row's seeds."""
    return {
        row: np.mean([measure(cell) for cell in cells], axis=0).tolist()
        for row, cells in result.rows().items()
    }


def _bytes(cell: Cell) -> list[int]:
    contributed, pool, up, down = cell.traffic
    return [contributed + pool, up, down]


def _rows(title: str, rows: list[str]) -> tuple[Figure, Axes]:
    """Axes with a place for each row, the first on top."""
    plot, axes = figure(HALF, max(1.6 + 0.6 * len(rows), 3.2), title)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color=LINES)
    return plot, axes


def _number(axes: Axes, x: float, y: float, text: str) -> None:
    """The number at a bar's end."""
    axes.annotate(
        text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
    )

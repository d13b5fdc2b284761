"""What a row costs: payload bytes and seconds."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from scenarios.progress import duration, size
from scenarios.report.figures import HALF, INK, LINES, PART_COLOURS, figure, label
from scenarios.results import Cell, Result

PHASES = ("train", "filter", "answer", "distill", "evaluate")
REST = "server and transport"
LOG_FROM = 50
"""Bars stand on a logarithmic axis where the longest is that many times the shortest."""


def payload_bytes(result: Result) -> Figure | None:
    """Payload bytes of each row, mean over seeds: the proxy pool, up, down."""
    bars = _by_row(result, _bytes)
    used = [value for parts in bars.values() for value in parts.values() if value]
    if not used:
        return None
    plot, axes = _rows("What travelled", list(bars), 0.62)
    if logarithmic := max(used) > LOG_FROM * min(used):
        axes.set_xscale("log")
    for part, (name, colour) in enumerate(zip(next(iter(bars.values())), PART_COLOURS)):
        values = [parts[name] for parts in bars.values()]
        places = [row + (part - 1) * 0.26 for row in range(len(bars))]
        drawn = axes.barh(places, values, 0.24, color=colour, label=name)
        axes.bar_label(drawn, [size(v) for v in values], padding=4, fontsize=8, color=INK)
    axes.margins(x=0.16)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    label(axes, "payload, logarithmic" if logarithmic else "payload")
    _key(plot, 3)
    return plot

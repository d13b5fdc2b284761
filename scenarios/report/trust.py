"""Whom to believe: what each client's votes are worth beside those of the others, by round."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from scenarios.report.facts import own_cell
from scenarios.report.figures import BLUE, LINES, ORANGE, WIDE, figure, label, legend
from scenarios.results import Result

MOST_NAMED = 10
"""Clients whose lines end near each other, by name."""


def trusted(result: Result) -> Figure | None:
    """A line a client in the scenario's own row; None for rules that keep no votes apart.

    In a simulation it is known who lies, and marked.
    """
    cell = own_cell(result)
    rounds = [event for event in cell.of("round") if "trust" in event] if cell else []
    if cell is None or not rounds:
        return None
    lines: dict[int, tuple[list[int], list[float]]] = {}
    for event in rounds:
        for client, trust in zip(event["trusted"], event["trust"], strict=True):
            x, y = lines.setdefault(client, ([], []))
            x.append(event["round"])
            y.append(trust)
    liars = result.scenario.hostile.clients(len(cell.of("hello")), cell.seed)
    ends: dict[tuple[int, int], list[int]] = {}
    plot, axes = figure(WIDE, 3.4, f"Whom the votes speak for, seed {cell.seed}")
    for client, (x, y) in sorted(lines.items()):
        colour = ORANGE if client in liars else BLUE
        axes.plot(x, y, color=colour, linewidth=1.4, marker="o", markersize=3.5, alpha=0.8)
        ends.setdefault((x[-1], round(y[-1] * 12)), []).append(client)
    for (end, height), clients in ends.items():
        text = ", ".join(map(str, clients[:MOST_NAMED])) + ("…" if clients[MOST_NAMED:] else "")
        at = (end, height / 12)
        axes.annotate(text, at, (7, 0), textcoords="offset points", fontsize=8, va="center")
    handles = [Line2D([], [], color=BLUE, label="honest" if liars else "client")]
    if liars:
        handles.append(Line2D([], [], color=ORANGE, label="hostile"))
    legend(plot, handles)
    axes.set_ylim(-0.03, 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=LINES)
    label(axes, "round", "trust, 0 to 1")
    return plot

"""The plots of a report: each draws a result, or gives None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from scenarios.report.bars import payload_bytes, phase_seconds
from scenarios.report.figures import INK, LINES, ROW_COLOURS, WIDE, figure, label
from scenarios.report.heatmaps import filter_map, partition
from scenarios.report.trust import trusted
from scenarios.results import Cell, Result
from scenarios.units import percent

MOST_MARKERS = 30
"""Lines of up to so many rounds mark each of them."""


Shown = TypeVar("Shown")


class Plot(NamedTuple, Generic[Shown]):
    """A row of the table of plots; `name` is its file's, `reading` says how to read it."""

    name: str
    draw: Callable[[Shown], Figure | None]
    alt: str
    reading: str


def curves(result: Result) -> Figure | None:
    """Accuracy on the test set by round, one line a row: mean over seeds, ± standard deviation.

    The own row's worst client is a thin line. A row ends where the first of its seeds does.
    """
    if not result.cells:
        return None
    plot, axes = figure(WIDE, 4.3, "Accuracy on the test set, by round")
    shown: list[tuple[float, Line2D]] = []
    colours, styles = cycle(ROW_COLOURS), cycle(("-", "--", "-.", ":"))
    n_rounds = max(cell.last["round"] for cell in result.cells)
    marker = "o" if n_rounds <= MOST_MARKERS else None
    for row, cells in result.rows().items():
        mean, sd = over_seeds(cells, "accuracy")
        rounds = [event["round"] for event in cells[0].measured][: len(mean)]
        own = row == result.scenario.method.name
        (line,) = axes.plot(
            rounds,
            mean,
            next(styles),
            color=next(colours),
            linewidth=2.4 if own else 1.7,
            marker=marker,
            markersize=4,
            label=f"{row}  {percent(mean[-1])}",
        )
        shown.append((mean[-1], line))
        colour = line.get_color()
        axes.fill_between(rounds, mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
        if own:
            worst, _ = over_seeds(cells, "accuracy_worst")
            text = f"{row}, worst client  {percent(worst[-1])}"
            (line,) = axes.plot(rounds, worst, color=colour, linewidth=0.9, label=text)
            shown.append((worst[-1], line))
    shown.sort(key=lambda entry: -entry[0])
    plot.legend(
        handles=[line for _, line in shown],
        loc="outside right upper",
        frameon=False,
        labelcolor=INK,
        labelspacing=0.8,
    )
    axes.set_xlim(0.5, n_rounds + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.grid(axis="y", color=LINES)
    label(axes, "round")
    return plot


def over_seeds(cells: list[Cell], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation [rounds] over seeds; the deviation is zero for one seed."""
    series = [[float(event[key]) for event in cell.measured] for cell in cells]
    shortest = min(map(len, series))
    values = np.array([seed[:shortest] for seed in series])
    sd = values.std(axis=0, ddof=1) if len(cells) > 1 else np.zeros(shortest)
    return values.mean(axis=0), sd


PLOTS: tuple[Plot[Result], ...] = (
    Plot(
        "curves",
        curves,
        "Line chart of test accuracy by round, one line a row",
        "One line a row, thick for the scenario's own; a band is ± one standard deviation over "
        "seeds, the thin line the worst client of the own row, and the key tells where each "
        "line ends: with the last round that all its seeds have done.",
    ),
    Plot(
        "partition",
        partition,
        "Heat map of clients by classes: how many samples each client holds",
        "The darker, the more samples of that class the client holds, "
        "those it gave to the proxy set included.",
    ),
    Plot(
        "filter",
        filter_map,
        "Heat map of clients by classes: share of each proxy class that each client answered",
        "Per cent of each proxy class that the client answered, in its latest answer; "
        "a perfect filter is dark blue in the client's own classes and white elsewhere. "
        "A client always answers for what it gave to the proxy set itself.",
    ),
    Plot(
        "trust",
        trusted,
        "Line chart of how far each client is to be believed, by round",
        "What the combine rule says of each client, or, of a rule that says nothing, the mean over "
        "the other clients of the share of samples on which they agree. A client far below the "
        "others is suspect; in a simulation those that lie are marked.",
    ),
    Plot(
        "bytes",
        payload_bytes,
        "Bar chart of payload bytes by row: proxy pool, up and down",
        "Payload of all clients and rounds together; the proxy pool travels once, "
        "before the first round.",
    ),
    Plot(
        "seconds",
        phase_seconds,
        "Bar chart of seconds by row, split into the phases of a round",
        "All clients and rounds together, by what the time went to; the black mark is where the "
        "rounds ended by the clock. Clients that worked side by side did more in that time than "
        "it is long; then what server and messages took is hidden behind them.",
    ),
)

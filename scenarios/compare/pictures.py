"""A comparison in pictures: accuracy by round, accuracy against bytes, what classes are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from scenarios.compare.book import Entry
from scenarios.report.figures import (
    BLUE,
    FAINT,
    INK,
    LINES,
    ROW_COLOURS,
    WIDE,
    label,
    legend,
    panels,
)
from scenarios.report.plots import Plot, over_seeds
from scenarios.units import size

MARKERS = "osD^vP*X<>"
REFERENCE_STYLES = ((0, (1, 1)), (0, (4, 2)), (0, (6, 2, 1, 2)), (0, (8, 3)), (0, (2, 4)))
PANEL_HEIGHT = 3.1
MOST_NUMBERS = 12
"""Up to so many classes, each has its recall written in the map."""

Entries = Sequence[Entry]


Style = Literal["-", "--", "-."] | tuple[int, tuple[int, ...]]
STYLES: tuple[Style, ...] = ("-", "--", "-.")


class Look(NamedTuple):
    """How a method is drawn, in every panel alike."""

    colour: str
    style: Style
    marker: str


def looks(entries: Entries) -> dict[str, Look]:
    """Of methods, colours; of references, grey in patterns of their own."""
    methods = {entry.run.method: entry.run.reference for entry in entries}
    of_its_kind = {True: 0, False: 0}
    found = {}
    for method, reference in methods.items():
        at = of_its_kind[reference]
        of_its_kind[reference] += 1
        if reference:
            style: Style = REFERENCE_STYLES[at % len(REFERENCE_STYLES)]
            found[method] = Look(FAINT, style, MARKERS[-1 - at % len(MARKERS)])
        else:
            turn, at_colour = divmod(at, len(ROW_COLOURS))
            found[method] = Look(ROW_COLOURS[at_colour], STYLES[turn % 3], MARKERS[at % 10])
    return found


def curves(entries: Entries) -> Figure | None:
    """Accuracy by round, a panel a split: mean over seeds, ± standard deviation."""

    def draw(axes: Axes, of_split: Entries, seen: dict[str, Look]) -> None:
        for entry in of_split:
            mean, sd = over_seeds(list(entry.cells), "accuracy")
            rounds = [event["round"] for event in entry.cells[0].measured][: len(mean)]
            look = seen[entry.run.method]
            wide = 1.3 if entry.run.reference else 1.9
            axes.plot(rounds, mean, color=look.colour, linestyle=look.style, linewidth=wide)
            if len(rounds) == 1:
                axes.plot(rounds, mean, look.marker, color=look.colour, markersize=5)
            axes.fill_between(rounds, mean - sd, mean + sd, color=look.colour, alpha=0.13, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        label(axes, "round")

    return _by_split(entries, "Accuracy on the test set, by round", draw, markers=False)


def trade(entries: Entries) -> Figure | None:
    """Accuracy in the last round against the bytes of one client, a panel a split.

    What sends nothing is a line across: there is no place for it on a logarithmic axis.
    """

    def draw(axes: Axes, of_split: Entries, seen: dict[str, Look]) -> None:
        axes.set_xscale("log")
        sent = [n for e in of_split if e.line and (n := e.line["up"] + e.line["down"])]
        if sent:
            axes.set_xlim(min(sent) / 1.5, max(sent) * 1.5)
        span = max(sent) / min(sent) if sent else 1
        for entry in of_split:
            line = entry.line
            assert line is not None
            look, sd = seen[entry.run.method], line["accuracy_sd"] or 0.0
            n_bytes = line["up"] + line["down"]
            if not n_bytes:
                axes.axhline(line["accuracy"], color=look.colour, linestyle=look.style, lw=1.2)
                continue
            axes.errorbar(
                n_bytes,
                line["accuracy"],
                sd,
                fmt=look.marker,
                color=look.colour,
                markersize=7,
                markerfacecolor="white" if entry.run.reference else look.colour,
                capsize=2,
                lw=1.2,
            )
        steps = (1, 2, 5) if span < 100 else (1,)
        ticks = MaxNLocator(4) if span < 5 else LogLocator(10, steps, numticks=8)
        axes.xaxis.set_major_locator(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        axes.minorticks_off()
        label(axes, "payload bytes of one client, up and down")

    return _by_split(entries, "Accuracy against bytes", draw, markers=True)


def classes(entries: Entries) -> Figure | None:
    """The recall of each class, methods by classes, a panel a split."""
    there = [e for e in entries if e.line and e.line["class_recall"]]
    splits = list(dict.fromkeys(entry.run.split for entry in there))
    if not there:
        return None
    most = max(sum(e.run.split == split for e in there) for split in splits)
    rows = -(-len(splits) // 2)
    plot, all_axes = panels(
        WIDE, rows * (1.1 + 0.27 * most) + 0.4, "Recall of each class, per cent", splits, 2
    )
    scale = LinearSegmentedColormap.from_list("found", ["white", BLUE])
    for split, axes in zip(splits, all_axes, strict=True):
        of_split = [entry for entry in there if entry.run.split == split]
        values = np.array([e.line["class_recall"] for e in of_split if e.line], dtype=float)
        axes.imshow(values, scale, aspect="auto", vmin=0, vmax=1)
        axes.set_yticks(range(len(of_split)), [entry.run.method for entry in of_split])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label(axes, "class")
        if values.shape[1] <= MOST_NUMBERS:
            for row, column in np.argwhere(~np.isnan(values)):
                value = values[row, column]
                colour = "white" if value > 0.6 else INK
                text = f"{100 * value:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return plot


def _by_split(
    entries: Entries,
    title: str,
    draw: Callable[[Axes, Entries, dict[str, Look]], None],
    markers: bool,
) -> Figure | None:
    """A panel a split, all of one accuracy axis, and one legend for them."""
    there = [entry for entry in entries if entry.line]
    if not there:
        return None
    splits, seen = list(dict.fromkeys(entry.run.split for entry in there)), looks(entries)
    columns = 1 if len(splits) == 1 else 2
    height = PANEL_HEIGHT * -(-len(splits) // columns) + 0.9
    plot, all_axes = panels(WIDE, height, title, splits, columns)
    for split, axes in zip(splits, all_axes, strict=True):
        draw(axes, [entry for entry in there if entry.run.split == split], seen)
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.grid(axis="y", color=LINES)
    low = min(axes.get_ylim()[0] for axes in all_axes)
    high = max(axes.get_ylim()[1] for axes in all_axes)
    for axes in all_axes:
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
    shown = {entry.run.method: entry for entry in there}
    silent = {name for name, e in shown.items() if e.line and not e.line["up"] + e.line["down"]}
    handles = []
    for name, entry in shown.items():
        look, marked = seen[name], markers and name not in silent
        handles.append(
            Line2D(
                [],
                [],
                color=look.colour,
                linestyle="none" if marked else look.style,
                marker=look.marker if marked else "",
                markerfacecolor="white" if entry.run.reference else look.colour,
                linewidth=1.6,
                label=name,
            )
        )
    legend(plot, handles)
    return plot


PICTURES: tuple[Plot[Entries], ...] = (
    Plot(
        "curves",
        curves,
        "Line charts of test accuracy by round, one panel a split, one line a method",
        "Mean over seeds; a band is ± one standard deviation over them. Grey, in patterns, are "
        "the reference rows.",
    ),
    Plot(
        "trade",
        trade,
        "Scatter plots of accuracy against payload bytes, one panel a split",
        "In the last round, against all that one client sent and got, on a logarithmic axis; bars "
        "are ± one standard deviation over seeds. Hollow marks are references; what sends nothing "
        "is a line across. Up and to the left is better.",
    ),
    Plot(
        "classes",
        classes,
        "Heat maps of methods by classes: recall",
        "Share of each class's test samples that the clients' models find in the last round, mean "
        "over clients and seeds. White cells are classes that a method does not learn.",
    ),
)
"""What is drawn of a comparison."""

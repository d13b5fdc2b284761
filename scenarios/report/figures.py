"""The look of the plots: ink, paper, and colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

WIDE, HALF = 11.2, 5.5
"""Figure widths in inches: the whole page, and one of two beside each other."""
INK, FAINT, LINES, VOID = "#1c2530", "#5d6b7a", "#e2e7ec", "#d3d8de"
BLUE, ORANGE = "#0072b2", "#d55e00"
ROW_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""Okabe and Ito's palette."""
PART_COLOURS = ("#332288", "#88ccee", "#44aa99", "#ddcc77", "#cc6677", "#b0b0b0")
"""Paul Tol's muted palette, for the parts of a whole."""


def figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A new figure of so many inches, with one pair of axes."""
    plot, (axes,) = panels(width, height, title, [""])
    return plot, axes


def panels(
    width: float, height: float, title: str, names: Sequence[str], columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """A new figure with a pair of axes for each name, so many beside each other."""
    plot = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    plot.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    found = []
    for at, name in enumerate(names):
        axes = plot.add_subplot(-(-len(names) // columns), columns, at + 1, facecolor="white")
        axes.set_title(name, loc="left", fontsize=9.5, color=INK)
        axes.tick_params(labelcolor=INK, labelsize=9, length=0)
        axes.spines[:].set_visible(False)
        axes.set_axisbelow(True)
        found.append(axes)
    return plot, found


def label(axes: Axes, x: str = "", y: str = "") -> None:
    """Name the axes."""
    axes.set_xlabel(x, color=FAINT, fontsize=9.5)
    axes.set_ylabel(y, color=FAINT, fontsize=9.5)


def key(plot: Figure, colours: Mapping[str, str]) -> None:
    """Say below the axes what each colour means."""
    plot.legend(
        handles=[Patch(facecolor=colour, label=name) for name, colour in colours.items()],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.0,
        columnspacing=1.4,
    )


def legend(plot: Figure, handles: Sequence[Line2D | ErrorbarContainer]) -> None:
    """Say below the axes what each line or marker means."""
    plot.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if len(handles) <= 5 else 4,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        columnspacing=1.4,
    )


def png(plot: Figure) -> bytes:
    """The figure as a PNG, sharp on dense screens; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()

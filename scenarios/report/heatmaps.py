"""Clients by classes: who holds what, and who answers what."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from scenarios.report.facts import own_cell
from scenarios.report.figures import BLUE, HALF, INK, ORANGE, VOID, figure, key, label
from scenarios.results import Result

PALE_BLUE = "#d9e9f5"
KEY = {
    "own class, answered": BLUE,
    "own class, left out": PALE_BLUE,
    "other class, answered": ORANGE,
}
MOST_NUMBERS = (20, 12)
"""Up to so many clients and classes, each cell has its number written in it."""
MOST_TICKS = 20

Array = NDArray[np.float64]


def partition(result: Result) -> Figure | None:
    """How many samples of each class each client holds, in the scenario's own row.

    None where nobody knows: clients with data of their own tell no counts.
    """
    cell = own_cell(result)
    if cell is None or any("class_counts" not in hello for hello in cell.of("hello")):
        return None
    clients = [hello["client"] for hello in cell.of("hello")]
    counts = np.array([hello["class_counts"] for hello in cell.of("hello")], dtype=float)
    plot, axes = _map(f"Who holds which samples, seed {cell.seed}", clients, counts.shape[1])
    scale = LinearSegmentedColormap.from_list("held", ["white", BLUE])
    picture = axes.imshow(counts, scale, aspect="auto", vmin=0)
    if _numbered(counts):
        _write(axes, counts, scale(counts / counts.max())[..., :3])
    else:
        bar = plot.colorbar(picture, ax=axes, aspect=40, pad=0.02, label="samples")
        bar.ax.tick_params(length=0, labelsize=9)
        bar.outline.set_visible(False)
    return plot


def filter_map(result: Result) -> Figure | None:
    """The share of each proxy class that each client answered, in the latest answer it gave.

    None where no client answered or the proxy set has no labels to tell by.
    """
    cell = own_cell(result)
    answers = {
        event["client"]: event["accepted_by_class"]
        for event in (cell.of("client") if cell else ())
        if "accepted_by_class" in event
    }
    if cell is None or not answers:
        return None
    clients = sorted(answers)
    held = {hello["client"]: hello["class_counts"] for hello in cell.of("hello")}
    own = np.array([held[client] for client in clients]) > 0
    accepted = np.array([answers[client] for client in clients], dtype=float)
    offered = np.array(cell.of("pool")[0]["class_counts"], dtype=float)
    share = np.full_like(accepted, np.nan)
    np.divide(accepted, offered, out=share, where=offered > 0)

    plot, axes = _map(f"Who answers which proxy samples, seed {cell.seed}", clients, share.shape[1])
    colours = _colours(share, own)
    axes.imshow(colours, aspect="auto")
    if _numbered(share):
        _write(axes, 100 * share, colours)
        for row, column in np.argwhere(own):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=INK, lw=1.2, zorder=3))
    key(plot, KEY)
    return plot


def _map(title: str, clients: list[int], n_classes: int) -> tuple[Figure, Axes]:
    plot, axes = figure(HALF, min(max(1.5 + 0.3 * len(clients), 2.6), 6.4), title)
    label(axes, "class", "client")
    axes.set_xticks(range(0, n_classes, -(-n_classes // MOST_TICKS)))
    ticks = range(0, len(clients), -(-len(clients) // MOST_TICKS))
    axes.set_yticks(ticks, [str(clients[tick]) for tick in ticks])
    return plot, axes


def _numbered(values: Array) -> bool:
    n_clients, n_classes = values.shape
    return bool(n_clients <= MOST_NUMBERS[0] and n_classes <= MOST_NUMBERS[1])


def _write(axes: Axes, values: Array, colours: Array) -> None:
    """Each positive value as a whole number, white on dark cells, with lines between cells."""
    for row, column in np.argwhere(values > 0):
        dark = colours[row, column] @ (0.299, 0.587, 0.114) < 0.6
        text = f"{values[row, column]:.0f}"
        colour = "white" if dark else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    grid(axes, values.shape)


def grid(axes: Axes, shape: tuple[int, ...]) -> None:
    """Thin lines between the cells of a map of so many rows and columns."""
    axes.set_xticks(np.arange(shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] + 1) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color=VOID, linewidth=0.6)


def _colours(share: Array, own: NDArray[np.bool_]) -> Array:
    """RGB [clients, classes, 3]: blue for own classes, orange for others, grey for NaN."""
    low = np.where(own[..., None], to_rgb(PALE_BLUE), to_rgb("white"))
    high = np.where(own[..., None], to_rgb(BLUE), to_rgb(ORANGE))
    mixed = low + share[..., None] * (high - low)
    return np.where(np.isnan(mixed), to_rgb(VOID), mixed)

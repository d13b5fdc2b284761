"""The maps of audits: what leaks to whom, and what that is worth in utility."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from scenarios.audit.findings import OBSERVERS
from scenarios.audit.reading import ByName, Reading, measure
from scenarios.report.figures import (
    FAINT,
    INK,
    LINES,
    ORANGE,
    ROW_COLOURS,
    WIDE,
    label,
    legend,
    panels,
)
from scenarios.report.heatmaps import grid

LEADING = (
    ("exposure", "exposure"),
    ("membership", "auc"),
    ("membership", "tpr@0.01"),
    ("label-distribution", "tv"),
)
"""What the summary shows, where there is any of it."""
PANEL_NAMES = {
    "exposure": "Exposure, bits",
    "auc": "Membership, AUC",
    "tpr@0.01": "Membership, TPR at 1 % FPR",
    "tv": "Class shares, distance",
}
MARKERS = ("o", "s", "D", "^", "v", "P")
"""Of a number that shares no factor with that of the colours, so that pairs repeat late."""
SCALE = LinearSegmentedColormap.from_list("leak", ["white", ORANGE])
PALE = "#eef1f4"


class Point(NamedTuple):
    """A protection in the plane of privacy and utility."""

    utility: float
    half: float | None
    """Half of the 95 % interval over seeds; None for one."""
    proved: bool


def leakage(rows: ByName) -> Figure | None:
    """Heat maps, rows by observers: the strongest attack's figure; the darker, the more leaks."""
    shown = [pair for pair in LEADING if any(pair in one.asked() for one in rows.values())]
    if not shown:
        return None
    names = [PANEL_NAMES[what] for _, what in shown]
    columns = min(len(shown), 2)
    lines = -(-len(shown) // columns)
    height = 0.7 + lines * (1.15 + 0.36 * len(rows))
    plot, drawn = panels(WIDE, height, "What leaks, by who looks", names, columns)
    for axes, pair in zip(drawn, shown, strict=True):
        found = [[one.strongest(*pair, [who]) for who in OBSERVERS] for one in rows.values()]
        leaks = np.array([[one.leak if one else np.nan for one in row] for row in found])
        colours = SCALE(np.nan_to_num(leaks))[..., :3]
        colours[np.array([[one is None for one in row] for row in found])] = to_rgb(PALE)
        axes.imshow(colours, aspect="auto")
        form = measure(pair[1]).form.format
        for y, row in enumerate(found):
            for x, one in enumerate(row):
                text = "-" if one is None else f"{form(one.mean)}{'' if one.supported else '?'}"
                axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=INK)
        axes.set_xticks(range(len(OBSERVERS)), list(OBSERVERS))
        axes.set_yticks(range(len(rows)), list(rows))
        grid(axes, leaks.shape)
    return plot


def utility(rows: ByName, points: Mapping[str, Point], name: str) -> Figure | None:
    """Utility against the worst observer's figure, a panel for each leading measure.

    Filled: the ledgers hold an epsilon. `name`: of the utility. An axis on which less is better, as
    of perplexity, or more, as of a distance from the truth, is turned round.
    """
    shown = [
        pair
        for pair in LEADING
        if any(rows[who].strongest(*pair) is not None for who in points if who in rows)
    ]
    if not shown:
        return None
    names = [PANEL_NAMES[what] for _, what in shown]
    title = "The worst observer's figure against utility: better down and to the right"
    plot, drawn = panels(WIDE, 4.4, title, names, len(shown))
    looks = dict(zip(points, zip(cycle(ROW_COLOURS), cycle(MARKERS), strict=False), strict=False))
    handles = {}
    for axes, pair in zip(drawn, shown, strict=True):
        nulls = []
        for who, point in points.items():
            worst = rows[who].strongest(*pair) if who in rows else None
            if worst is None or worst.mean is None:
                continue
            colour, marker = looks[who]
            handles[who] = axes.errorbar(
                point.utility,
                worst.mean,
                _error(worst),
                point.half,
                fmt=marker,
                color=colour,
                markerfacecolor=colour if point.proved else "white",
                markersize=8,
                markeredgewidth=1.8,
                elinewidth=1,
                capsize=2,
                label=who,
            )
            nulls += [] if worst.null is None else [worst.null]
        for null in nulls[:1]:
            axes.axhline(null, color=FAINT, linewidth=1, linestyle=":", zorder=0)
        axes.margins(0.15)
        if name == "perplexity":
            axes.invert_xaxis()
        else:
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(color=LINES)
        if measure(pair[1]).falls:
            axes.invert_yaxis()
        label(axes, name)
    legend(plot, list(handles.values()))
    return plot


def _error(reading: Reading) -> NDArray[np.float64] | None:
    """The distances [2, 1] to the ends of the 95 % interval, if there is one."""
    if reading.mean is None or reading.interval is None:
        return None
    low, high = reading.interval
    return np.maximum([[reading.mean - low], [high - reading.mean]], 0.0)

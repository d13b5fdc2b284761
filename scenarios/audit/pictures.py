"""The plots of audits: one line, or row, for each row of a run or protection of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from privacy.audit.exposure import NULL_BITS
from privacy.audit.roc import smallest_fpr
from scenarios.audit.findings import OBSERVERS, Curve
from scenarios.audit.reading import CONTROLS, NULL, ByName, Leaks, measure
from scenarios.report.figures import (
    FAINT,
    INK,
    LINES,
    ORANGE,
    ROW_COLOURS,
    VOID,
    WIDE,
    label,
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
STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^", "v", "P")
"""As `STYLES`, of a number that shares no factor with that of the colours, so pairs repeat late."""
SCALE = LinearSegmentedColormap.from_list("leak", ["white", ORANGE])
PALE = "#eef1f4"
MOST_LINES = 7


class Point(NamedTuple):
    """A protection in the plane of privacy and utility."""

    utility: float
    spread: float | None
    """Standard deviation over seeds; None for one."""
    proved: bool


def leakage(audits: ByName) -> Figure | None:
    """Heat maps, rows by observers: the strongest attack's figure; the darker, the more leaks."""
    shown = [pair for pair in LEADING if any(pair in one.asked() for one in audits.values())]
    if not shown:
        return None
    names = [PANEL_NAMES[what] for _, what in shown]
    columns = min(len(shown), 2)
    lines = -(-len(shown) // columns)
    height = 0.7 + lines * (1.15 + 0.36 * len(audits))
    plot, drawn = panels(WIDE, height, "What leaks, by who looks", names, columns)
    for axes, pair in zip(drawn, shown, strict=True):
        found = [[one.strongest(*pair, [who]) for who in OBSERVERS] for one in audits.values()]
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
        axes.set_yticks(range(len(audits)), list(audits))
        grid(axes, leaks.shape)
    return plot


def utility(audits: ByName, points: Mapping[str, Point], name: str) -> Figure | None:
    """Utility against the worst observer's figure, a panel for each leading measure.

    Filled: the ledgers hold an epsilon. `name`: of the utility. An axis on which less is better, as
    of perplexity, or more, as of a distance from the truth, is turned round.
    """
    shown = [
        pair
        for pair in LEADING
        if any(audits[who].strongest(*pair) is not None for who in points if who in audits)
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
            worst = audits[who].strongest(*pair) if who in audits else None
            if worst is None or worst.mean is None:
                continue
            colour, marker = looks[who]
            handles[who] = axes.errorbar(
                point.utility,
                worst.mean,
                worst.sd,
                point.spread,
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
    _legend(plot, list(handles.values()))
    return plot


def exposures(audits: ByName) -> Figure | None:
    """Histograms of exposure, a panel for each observer; a dotted line where chance is.

    Each line is the strongest attack of a row, over all its seeds; grey are secrets nobody holds.
    """
    lines = {name: _by_observer(one, "histogram") for name, one in audits.items()}
    observers = [who for who in OBSERVERS if any(who in found for found in lines.values())]
    if not observers:
        return None
    every = [x for found in lines.values() for group in found.values() for c in group for x in c.x]
    bins = np.arange(0, np.ceil(max(every)) + 1.01, 1.0)
    plot, drawn = _by_who(observers, "Exposure of planted secrets")
    for who, axes in zip(observers, drawn, strict=True):
        controls = [
            x
            for one in audits.values()
            for curve in _of(one, "histogram", who)
            if curve.attack == CONTROLS
            for x in curve.x
        ]
        if controls:
            share = np.histogram(controls, bins)[0] / len(controls)
            axes.stairs(share, bins, fill=True, color=VOID)
        for (_, found), colour, style in zip(
            lines.items(), cycle(ROW_COLOURS), cycle(STYLES), strict=False
        ):
            values = [x for curve in found.get(who, []) for x in curve.x]
            if values:
                share = np.histogram(values, bins)[0] / len(values)
                axes.stairs(share, bins, color=colour, linewidth=1.8, linestyle=style)
        axes.axvline(NULL_BITS, color=INK, linewidth=1, linestyle=":")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=LINES)
        label(axes, "exposure, bits")
    handles = [
        *_lines(lines),
        Line2D([], [], color=VOID, linewidth=6, label="secrets that nobody holds"),
        Line2D(
            [], [], color=INK, linewidth=1, linestyle=":", label=f"chance: {NULL_BITS:.2f} bits"
        ),
    ]
    _legend(plot, handles)
    return plot


def rocs(audits: ByName) -> Figure | None:
    """ROC on logarithmic axes, a panel for each observer, mean TPR over seeds.

    Of several rows the attack with the greatest AUC each; of one row, every attack. A dashed line
    marks the smallest FPR that the non-members support; what is left of it is luck.
    """
    if len(audits) == 1:
        (one,) = audits.values()
        lines = _by_attack(one)
    else:
        lines = {name: _by_observer(one, "roc") for name, one in audits.items()}
    observers = [who for who in OBSERVERS if any(who in found for found in lines.values())]
    if not observers:
        return None
    curves = [curve for found in lines.values() for group in found.values() for curve in group]
    floor = min(min((x for x in curve.x if x > 0), default=1.0) for curve in curves) / 2
    supported = max(smallest_fpr(curve.n) for curve in curves if curve.n > 0)
    plot, drawn = _by_who(observers, "Members found (TPR) at a rate of false alarms (FPR)")
    diagonal = np.geomspace(floor, 1, 50)
    for who, axes in zip(observers, drawn, strict=True):
        axes.plot(diagonal, diagonal, color=FAINT, linewidth=1, linestyle=":")
        axes.axvline(supported, color=INK, linewidth=0.9, linestyle=(0, (6, 3)))
        for (_, found), colour, style in zip(
            lines.items(), cycle(ROW_COLOURS), cycle(STYLES), strict=False
        ):
            if who in found:
                x, y = (np.maximum(values, floor) for values in _mean_roc(found[who]))
                axes.step(x, y, where="post", color=colour, linewidth=1.6, linestyle=style)
        axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.1))
        axes.minorticks_off()
        axes.grid(color=LINES)
        label(axes, "FPR", "TPR")
    handles = [
        *_lines(lines),
        Line2D([], [], color=FAINT, linewidth=1, linestyle=":", label="guessing"),
        Line2D(
            [],
            [],
            color=INK,
            linewidth=0.9,
            linestyle=(0, (6, 3)),
            label=f"smallest FPR supported: {supported:.2g}",
        ),
    ]
    _legend(plot, handles)
    return plot


Lines = Mapping[str, Mapping[str, list[Curve]]]
"""For each line of the key, its curves by observer, one a seed."""


def _of(audit: Leaks, kind: str, observer: str) -> list[Curve]:
    """Curves of one observer, a histogram's without what is no number."""
    found = [
        curve
        for curves in audit.curves
        for curve in curves
        if (curve.kind, curve.observer) == (kind, observer) and curve.part != NULL
    ]
    if kind == "histogram":
        found = [replace(one, x=tuple(filter(math.isfinite, one.x))) for one in found]
    return [one for one in found if one.x]


def _by_observer(audit: Leaks, kind: str) -> dict[str, list[Curve]]:
    """The curves of each observer's strongest attack."""
    found = {}
    for observer in OBSERVERS:
        groups: dict[tuple[str, str, str], list[Curve]] = {}
        for curve in _of(audit, kind, observer):
            if curve.attack != CONTROLS:
                groups.setdefault((curve.part, curve.attack, curve.target), []).append(curve)
        if groups:
            found[observer] = max(groups.values(), key=_mean_strength)
    return found


def _by_attack(audit: Leaks) -> dict[str, dict[str, list[Curve]]]:
    """The curves of every attack on what it finds most of, the strongest attacks first."""
    groups: dict[str, dict[str, dict[str, list[Curve]]]] = {}
    for observer in OBSERVERS:
        for curve in _of(audit, "roc", observer):
            on = groups.setdefault(curve.attack, {}).setdefault(observer, {})
            on.setdefault(curve.target, []).append(curve)
    found = {
        attack: {who: max(on.values(), key=_mean_strength) for who, on in by_who.items()}
        for attack, by_who in groups.items()
    }
    order = sorted(found, key=lambda attack: -max(map(_mean_strength, found[attack].values())))
    return {attack: found[attack] for attack in order[:MOST_LINES]}


def _mean_strength(curves: list[Curve]) -> float:
    """The AUC of a ROC, and the mean of a histogram."""
    return float(
        np.mean([np.trapezoid(c.y, c.x) if c.kind == "roc" else np.mean(c.x) for c in curves])
    )


def _mean_roc(curves: list[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """FPR, and the mean over curves of the TPR that each has at no more than that FPR."""
    fpr = np.unique(np.concatenate([curve.x for curve in curves]))
    tpr = [np.array(c.y)[np.searchsorted(c.x, fpr, side="right") - 1] for c in curves]
    return fpr, np.mean(tpr, axis=0)


def _by_who(observers: list[str], title: str) -> tuple[Figure, list[Axes]]:
    columns = min(len(observers), 3)
    height = 1.2 + 2.5 * -(-len(observers) // columns)
    return panels(WIDE, height, title, [OBSERVER_NAMES[who] for who in observers], columns)


OBSERVER_NAMES = {
    "owner": "owner: the client's own model",
    "uploads": "uploads: the server",
    "aggregate": "aggregate: the consensus alone",
    "peer": "peer: another client",
    "student": "student: another client's model",
}


def _lines(names: Iterable[str]) -> list[Line2D]:
    looks = zip(names, cycle(ROW_COLOURS), cycle(STYLES), strict=False)
    return [Line2D([], [], color=c, linewidth=1.8, linestyle=s, label=name) for name, c, s in looks]


def _legend(plot: Figure, handles: Sequence[Line2D | ErrorbarContainer]) -> None:
    plot.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        columnspacing=1.4,
    )

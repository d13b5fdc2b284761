"""The curves of audits: exposures and ROCs, a panel for each observer, a line for each row.

A row is one of a run, or a protection of a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from privacy.audit.exposure import NULL_BITS
from privacy.audit.roc import smallest_fpr
from scenarios.audit.findings import OBSERVERS, Curve
from scenarios.audit.reading import CONTROLS, NULL, ByName, Leaks
from scenarios.report.figures import (
    FAINT,
    INK,
    LINES,
    ROW_COLOURS,
    VOID,
    WIDE,
    label,
    legend,
    panels,
)

Style = Literal["-", "--", "-.", ":"]
STYLES: tuple[Style, ...] = ("-", "--", "-.", ":")
DASHES = (0, (6, 3))
MOST_LINES = 7
Lines = Mapping[str, Mapping[str, list[Curve]]]
"""For each line of the key, its curves by observer, one a seed."""


def exposures(rows: ByName) -> Figure | None:
    """Histograms of exposure, a panel for each observer; a dotted line where chance is.

    Each line is the strongest attack of a row, over all its seeds; grey are secrets nobody holds.
    """
    lines, targets = _strongest(rows, "histogram")
    if not targets:
        return None
    every = [x for found in lines.values() for group in found.values() for c in group for x in c.x]
    bins = np.arange(0, np.ceil(max(every)) + 1.01, 1.0)
    plot, drawn = _by_who(targets, "Exposure of planted secrets")
    for who, axes in drawn.items():
        controls = [x for one in rows.values() for x in _controls(one, who)]
        if controls:
            axes.stairs(_shares(controls, bins), bins, fill=True, color=VOID)
        for name, colour, style in _looks(lines):
            values = [x for curve in lines[name].get(who, []) for x in curve.x]
            if values:
                share = _shares(values, bins)
                axes.stairs(share, bins, color=colour, linewidth=1.8, linestyle=style)
        axes.axvline(NULL_BITS, color=INK, linewidth=1, linestyle=":")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=LINES)
        label(axes, "exposure, bits")
    chance = f"chance: {NULL_BITS:.2f} bits"
    handles = [
        *_handles(lines),
        Line2D([], [], color=VOID, linewidth=6, label="secrets that nobody holds"),
        Line2D([], [], color=INK, linewidth=1, linestyle=":", label=chance),
    ]
    legend(plot, handles)
    return plot


def rocs(rows: ByName) -> Figure | None:
    """ROC on logarithmic axes, a panel for each observer, mean TPR over seeds.

    Of several rows the attack with the greatest AUC each; of one row, every attack. A dashed line
    marks the smallest FPR that the non-members support; what is left of it is luck.
    """
    if len(rows) == 1:
        (one,) = rows.values()
        rows = _by_attack(one)
    lines, targets = _strongest(rows, "roc")
    if not targets:
        return None
    curves = [curve for found in lines.values() for group in found.values() for curve in group]
    floor = min(min((x for x in curve.x if x > 0), default=1.0) for curve in curves) / 2
    plot, drawn = _by_who(targets, "Members found (TPR) at a rate of false alarms (FPR)")
    diagonal = np.geomspace(floor, 1, 50)
    for who, axes in drawn.items():
        axes.plot(diagonal, diagonal, color=FAINT, linewidth=1, linestyle=":")
        for name, colour, style in _looks(lines):
            if who in lines[name]:
                x, y = (np.maximum(values, floor) for values in _mean_roc(lines[name][who]))
                axes.step(x, y, where="post", color=colour, linewidth=1.6, linestyle=style)
        sizes = [curve.n for found in lines.values() for curve in found.get(who, []) if curve.n]
        if sizes:
            axes.axvline(smallest_fpr(min(sizes)), color=INK, linewidth=0.9, linestyle=DASHES)
        axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.1))
        axes.minorticks_off()
        axes.grid(color=LINES)
        label(axes, "FPR", "TPR")
    least = "smallest FPR that the sample supports"
    handles = [
        *_handles(lines),
        Line2D([], [], color=FAINT, linewidth=1, linestyle=":", label="guessing"),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=DASHES, label=least),
    ]
    legend(plot, handles)
    return plot


def _of(one: Leaks, kind: str, observer: str) -> list[Curve]:
    """Curves of one observer over all seeds, controls apart."""
    return [curve for curve in _all_of(one, kind, observer) if curve.attack != CONTROLS]


def _controls(one: Leaks, observer: str) -> list[float]:
    """Exposures of secrets that nobody holds."""
    found = _all_of(one, "histogram", observer)
    return [x for curve in found if curve.attack == CONTROLS for x in curve.x]


def _all_of(one: Leaks, kind: str, observer: str) -> list[Curve]:
    """Curves of one observer, a histogram's without what is no number."""
    found = [
        curve
        for seed in one.curves
        for curve in seed
        if (curve.kind, curve.observer) == (kind, observer) and curve.part != NULL
    ]
    if kind == "histogram":
        found = [replace(curve, x=tuple(filter(math.isfinite, curve.x))) for curve in found]
    return [curve for curve in found if curve.x]


def _strongest(rows: ByName, kind: str) -> tuple[Lines, dict[str, str]]:
    """Each row's strongest curves by observer, and what is attacked there.

    That is one target for all rows, so that like is compared with like: the one that any of them
    tells most of.
    """
    lines: dict[str, dict[str, list[Curve]]] = {name: {} for name in rows}
    targets = {}
    for who in OBSERVERS:
        groups: dict[tuple[str, str], dict[str, list[Curve]]] = {}
        for name, one in rows.items():
            for curve in _of(one, kind, who):
                by_attack = groups.setdefault((curve.target, name), {})
                by_attack.setdefault(curve.attack, []).append(curve)
        best = {at: max(some.values(), key=_strength) for at, some in groups.items()}
        if best:
            targets[who] = max(best, key=lambda at: _strength(best[at]))[0]
            for (target, name), curves in best.items():
                if target == targets[who]:
                    lines[name][who] = curves
    return {name: found for name, found in lines.items() if found}, targets


def _by_attack(one: Leaks) -> dict[str, Leaks]:
    """What a row's attacks found, each by itself, the strongest first, and at most so many."""
    curves = [c for seed in one.curves for c in seed if c.kind == "roc" and c.part != NULL]
    found = {
        attack: replace(
            one, curves=tuple(tuple(c for c in seed if c.attack == attack) for seed in one.curves)
        )
        for attack in dict.fromkeys(curve.attack for curve in curves)
    }

    def best(attack: str) -> float:
        return max(_strength([curve]) for curve in curves if curve.attack == attack)

    return {attack: found[attack] for attack in sorted(found, key=best, reverse=True)[:MOST_LINES]}


def _strength(curves: list[Curve]) -> float:
    """The mean AUC of ROCs, and the mean of histograms."""
    return float(
        np.mean([np.trapezoid(c.y, c.x) if c.kind == "roc" else np.mean(c.x) for c in curves])
    )


def _mean_roc(curves: list[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """FPR, and the mean over curves of the TPR that each has at no more than that FPR."""
    fpr = np.unique(np.concatenate([curve.x for curve in curves]))
    tpr = [np.array(c.y)[np.searchsorted(c.x, fpr, side="right") - 1] for c in curves]
    return fpr, np.mean(tpr, axis=0)


def _shares(values: list[float], bins: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.histogram(values, bins)[0] / len(values)


def _by_who(targets: Mapping[str, str], title: str) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each observer."""
    columns = min(len(targets), 3)
    height = 1.2 + 2.5 * -(-len(targets) // columns)
    names = [f"{who}: {target}" for who, target in targets.items()]
    plot, drawn = panels(WIDE, height, title, names, columns)
    return plot, dict(zip(targets, drawn, strict=True))


def _looks(names: Iterable[str]) -> Iterator[tuple[str, str, Style]]:
    return zip(names, cycle(ROW_COLOURS), cycle(STYLES), strict=False)


def _handles(names: Iterable[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=colour, linewidth=1.8, linestyle=style, label=name)
        for name, colour, style in _looks(names)
    ]

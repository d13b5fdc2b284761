"""One scenario under several protections: each is run and audited, and one table compares them.

The folder of a comparison has an ordinary run folder for each protection, so what is done there is
not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import config
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from fedkd.files import locked
from fedkd.files import write as write_file
from privacy.audit.intervals import half_width
from scenarios.audit.curves import exposures, rocs
from scenarios.audit.pictures import Point, leakage, utility
from scenarios.audit.protections import BASELINE, Chosen, chosen
from scenarios.audit.reading import Leaks, leaks
from scenarios.audit.run import audit
from scenarios.report import page
from scenarios.report.figures import png
from scenarios.results import Result
from scenarios.simulate import Listener, plans, simulate

Auditor = Callable[[Path], object]
"""ByName a run folder; what was done there is not done again."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One protection, run and audited."""

    chosen: Chosen
    result: Result
    audit: Leaks | None
    """Of the scenario's own row; None where no audit fits it."""

    @property
    def line(self) -> dict[str, Any]:
        """The own row of the result's table."""
        return self.result.table()[0]

    @property
    def proved(self) -> bool:
        """Whether the ledgers hold an epsilon for everything that left, of some unit.

        That of the baseline says nothing, and does not count.
        """
        held = any(told["epsilon"] for told in self.line["privacy"])
        return held and self.chosen.kind != "baseline"

    def over_seeds(self, key: str) -> tuple[float, float | None] | None:
        """Mean of a figure of the last round over seeds, and half of its 95 % interval."""
        cells = self.result.rows()[self.result.scenario.method.name]
        values = [cell.last[key] for cell in cells if cell.last.get(key) is not None]
        if not values:
            return None
        return float(np.mean(values)), half_width(values)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, in the order asked for."""

    scenario: Scenario
    folder: Path
    entries: tuple[Entry, ...]
    plots: tuple[str, ...] = ()
    """What is drawn, once all is there."""

    @property
    def audits(self) -> dict[str, Leaks]:
        """By protection, of those that were audited."""
        return {e.chosen.name: e.audit for e in self.entries if e.audit is not None}

    @property
    def utility(self) -> str:
        """What the models are measured by: texts by perplexity."""
        has = all(entry.over_seeds("perplexity") for entry in self.entries)
        return "perplexity" if has else "accuracy"

    @property
    def contradictions(self) -> list[str]:
        """Where more was found than a ledger allows."""
        return [
            f"{name}: {text}" for name, one in self.audits.items() for text in one.contradictions
        ]


def protections(scenario: Scenario, names: Sequence[str], *, baseline: bool = True) -> list[Chosen]:
    """What is to be compared, every one checked with its data, before anything is run.

    Each scenario is recorded, and has no reference rows. `baseline` adds the weak-noise DP-SGD.
    Raises: FedkdError for a name, or a scenario, that cannot be.
    """
    if not any(name.strip() for name in names):
        raise FedkdError("nothing to compare", fix="--compare none,swing,dpsgd:8")
    recorded = config.parse({**scenario.model_dump(), "audit": True})
    asked = [*names, BASELINE] if baseline else names
    found = {one.name: one for one in (chosen(recorded, name) for name in asked)}
    for one in found.values():
        for plan in plans(one.scenario):
            plan.check()
    return list(found.values())


def compare(
    scenario: Scenario,
    names: Sequence[str],
    folder: Path,
    *,
    baseline: bool = True,
    auditor: Auditor = audit,
    starts: Callable[[Chosen], Listener | None] = lambda _: None,
    written: Callable[[Comparison], object] = lambda _: None,
) -> Comparison:
    """Run and audit a scenario under each protection, below `folder`.

    Args: starts: is told what is run next, and gives who listens to it; written: is told what there
        is to compare so far, after each protection.
    Raises: FedkdError as `protections`, for a folder of another scenario, or if another process
        works in it.
    """
    asked = protections(scenario, names, baseline=baseline)
    entries: list[Entry] = []
    with locked(folder):
        for one in asked:
            where = folder / one.folder
            result = simulate(one.scenario, folder=where, listener=starts(one))
            auditor(where)
            page.write(result, where)
            own = leaks(result).get(one.scenario.method.name)
            entries.append(Entry(chosen=one, result=result, audit=own))
            so_far = Comparison(scenario=scenario, folder=folder, entries=tuple(entries))
            written(so_far)
        whole = replace(so_far, plots=draw(so_far))
        written(whole)
    return whole


def draw(comparison: Comparison) -> tuple[str, ...]:
    """Write the plots into the folder; returns their names, without those that show nothing."""
    points = {}
    for entry in comparison.entries:
        mean, half = entry.over_seeds(comparison.utility) or (np.nan, None)
        points[entry.chosen.name] = Point(mean, half, entry.proved)
    found = comparison.audits
    figures = {
        "leakage": leakage(found),
        "utility": utility(found, points, comparison.utility),
        "exposures": exposures(found),
        "roc": rocs(found),
    }
    for name, figure in figures.items():
        if figure is not None:
            write_file(comparison.folder / "plots" / f"{name}.png", png(figure))
    return tuple(name for name, figure in figures.items() if figure is not None)

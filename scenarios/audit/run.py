"""Audit a run: every part of every cell, one after the other; what is done is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from clients.place import Place
from fedkd.config import Scenario
from fedkd.config_sections import Grid
from fedkd.errors import FedkdError, did_you_mean
from fedkd.files import locked
from fedkd.rng import stream
from scenarios.audit import findings
from scenarios.audit.evidence import Cell
from scenarios.audit.findings import Finding
from scenarios.audit.parts import PARTS
from scenarios.audit.views import Views
from scenarios.simulate import Plan, plans, scenario_of, simulate

LOCK = "audit.lock"
ALONE = "local-only"


class Step(NamedTuple):
    """What an audit tells: that a part begins, or, with `seconds`, that it has ended."""

    row: str
    seed: int
    part: str
    seconds: float | None = None
    note: str = ""
    skipped: bool = False


Listener = Callable[[Step], None]


@dataclass(frozen=True, kw_only=True)
class Audited:
    """The findings of one cell."""

    row: str
    seed: int
    folder: Path
    findings: tuple[Finding, ...]
    accounted: bool
    """Whether clients' ledgers were there to hold findings against."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit of a run gave."""

    scenario: Scenario
    folder: Path
    cells: tuple[Audited, ...]

    @property
    def contradictions(self) -> list[tuple[Audited, Finding]]:
        """Where more was found than a ledger allows: one of the two is wrong."""
        return [(cell, one) for cell in self.cells for one in cell.findings if one.contradicts]


def audit(
    folder: str | Path,
    *,
    parts: Sequence[str] = (),
    shadows: int = 0,
    keys: Sequence[Place] = (),
    grid: Grid | None = None,
    listener: Listener | None = None,
) -> Audit:
    """Audit a run folder, of a run that is finished or going on.

    Args: parts: names from `PARTS`, or all that fit the run; shadows: how many more times each cell
        is run with other coins for its canaries, as references for membership; keys: what clients
        of a deployment say that they held; grid: what carries shadows; listener: is told every
        step.
    Findings are kept below each cell, part by part, so an audit that was stopped goes on where it
    was; a part is done again only if the run, or the number of its shadows, has grown since, or
    with other keys.
    Raises: FedkdError for what is no run folder, an unknown part, or parts of which none fits.
    """
    folder = Path(folder)
    scenario = scenario_of(folder)
    chosen = list(parts or PARTS)
    for name in chosen:
        if name not in PARTS:
            raise FedkdError(
                "no part of an audit has this name",
                value=name,
                allowed=", ".join(PARTS),
                fix=did_you_mean(name, PARTS),
            )
    begun = [plan for plan in plans(scenario) if (plan.folder(folder) / "events.jsonl").exists()]
    if not begun:
        raise FedkdError("no row of this run has begun", value=str(folder))
    if shadows and (scenario.canaries is None or scenario.canaries.assign != "coin"):
        raise FedkdError(
            "shadow federations draw the coins of canaries anew, and there are none",
            value=shadows,
            fix='canaries.assign = "coin" in the scenario, or no --shadows',
        )
    cells = []
    with locked(folder, LOCK):
        for plan in begun:
            cell = replace(_open(plan, folder, begun), keys=tuple(keys))
            if shadows:
                cell = _with_shadows(cell, plan, shadows, grid or scenario.grid, listener)
            _carry_out(cell, chosen, listener, asked=bool(parts))
            known = [one for one in findings.read(cell.folder) if one.part in chosen]
            cells.append(
                Audited(
                    row=plan.row,
                    seed=plan.seed,
                    folder=cell.folder,
                    findings=tuple(known),
                    accounted=bool(cell.ledgers),
                )
            )
    return Audit(scenario=scenario, folder=folder, cells=tuple(cells))


def _open(plan: Plan, folder: Path, begun: Sequence[Plan]) -> Cell:
    alone = next((p for p in begun if p.row == ALONE and p.seed == plan.seed), None)
    return Cell(
        row=plan.row,
        seed=plan.seed,
        scenario=plan.scenario,
        folder=plan.folder(folder),
        alone=None if alone is None or plan.row == ALONE else _open(alone, folder, begun),
    )


def _with_shadows(cell: Cell, plan: Plan, n: int, grid: Grid, listener: Listener | None) -> Cell:
    return replace(cell, shadows=tuple(_shadows(cell, plan, n, grid, listener)))


def _shadows(
    cell: Cell, plan: Plan, n: int, grid: Grid, listener: Listener | None
) -> Iterator[Cell]:
    """The row once more for each other draw of the coins, run if it is not there yet."""
    canaries = plan.scenario.canaries
    assert canaries is not None
    for number in range(1, n + 1):
        change = {
            "canaries": canaries.model_copy(update={"assignment": canaries.assignment + number}),
            "seeds": (plan.seed,),
            "references": (),
        }
        scenario = plan.scenario.model_copy(update=change).on(grid)
        folder = cell.folder / "audit" / "shadows" / str(number)
        started = time.perf_counter()
        _tell(listener, Step(plan.row, plan.seed, f"shadow {number} of {n}"))
        simulate(scenario, folder=folder)
        seconds = time.perf_counter() - started
        _tell(listener, Step(plan.row, plan.seed, f"shadow {number} of {n}", seconds))
        (own,) = plans(scenario)
        yield _open(own, folder, ())


def _carry_out(cell: Cell, chosen: Sequence[str], listener: Listener | None, asked: bool) -> None:
    views = Views(cell)
    known = findings.done(cell.folder)
    lacking: dict[str, list[str]] = {}
    for name in chosen:
        part = PARTS[name]
        shadows = len(cell.shadows) if part.shadowed else 0
        state = {"rounds": cell.rounds, "keys": [key.seat for key in cell.keys]}
        before = {"keys": [], **known.get(name, {})}
        if all(before.get(k) == v for k, v in state.items()) and before["shadows"] >= shadows:
            _tell(listener, Step(cell.row, cell.seed, name, 0.0, "done before", skipped=True))
            continue
        why = part.lacking(cell)
        if why is not None:
            lacking.setdefault(why, []).append(name)
            continue
        _tell(listener, Step(cell.row, cell.seed, name))
        started = time.perf_counter()
        found = part.find(views, stream(cell.seed, "audit", purpose=name))
        seconds = time.perf_counter() - started
        done = {**state, "shadows": shadows, "seconds": round(seconds, 3), "note": found.note}
        findings.append(cell.folder, name, found.findings, found.curves, **done)
        _tell(listener, Step(cell.row, cell.seed, name, seconds, found.note))
    told = {", ".join(names): why for why, names in lacking.items()}
    for names, why in told.items():
        _tell(listener, Step(cell.row, cell.seed, names, 0.0, why, skipped=True))
    if asked and sum(map(len, lacking.values())) == len(chosen):
        raise FedkdError(
            f"the row {cell.row} cannot be audited for this",
            value=", ".join(chosen),
            fix="; ".join(f"{names}: {why}" for names, why in told.items()),
        )


def _tell(listener: Listener | None, step: Step) -> None:
    if listener is not None:
        listener(step)

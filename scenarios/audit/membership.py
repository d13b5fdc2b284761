"""The parts `membership` and `null`: who was trained on what, from where each observer stands.

Scores of all clients are put together, each from its own view; a target without evidence is put
below all others, for members and non-members alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from fedkd.errors import FedkdError
from privacy.audit.membership import ROWS, Attack, Evidence
from privacy.audit.roc import Roc, roc, smallest_fpr, tpr_at
from privacy.audit.signals import Doubles, Flags
from scenarios.audit.evidence import Cell, Way
from scenarios.audit.findings import OBSERVERS, UNSUPPORTED, Curve, Finding, Found
from scenarios.audit.ledger import ceilings
from scenarios.audit.views import (
    Stand,
    Targets,
    Views,
    canary_targets,
    record_targets,
    with_shadows,
)

FPRS = (0.01, 0.001)
POINTS = 200
"""Of a ROC that is kept."""
CHOSEN = {
    "owner": "coop-lira",
    "uploads": "coop-lira",
    "aggregate": "threshold",
    "peer": "threshold",
    "student": "threshold",
}
"""The attack of each observer whose guesses bound epsilon: fixed beforehand, or it is no bound."""


class Case(NamedTuple):
    """One client's targets as one observer sees them."""

    evidence: Evidence
    inside: Flags


class Setting(NamedTuple):
    """Which targets an observer attacks, and how."""

    observer: str
    way: Way
    what: str
    cases: Sequence[Case]
    against: str = ""
    """Which references are held against the view: "shadows" or "students"; else the peers."""

    @property
    def adaptive(self) -> bool:
        """Whether it knows the defence."""
        return self.way == "undone"

    def name(self, attack: str) -> str:
        """What an attack is called here."""
        return named(f"{attack}, {self.against}" if self.against else attack, self.way)


class Scores(NamedTuple):
    """Of all clients together."""

    members: Doubles
    others: Doubles


def scores(attack: Attack, cases: Sequence[Case]) -> Scores | None:
    """What an attack gives; None where it lacks evidence at any client."""
    found = []
    for case in cases:
        if any(getattr(case.evidence, need) is None for need in attack.needs):
            return None
        try:
            found.append(attack.score(case.evidence))
        except FedkdError:  # too thin: such as no reference that has learnt a target
            return None
    values = np.concatenate(found) if found else np.empty(0)
    if not np.isfinite(values).any():
        return None
    values = np.where(np.isnan(values), -np.inf, values)
    inside = np.concatenate([case.inside for case in cases])
    if inside.all() or not inside.any():
        return None
    return Scores(values[inside], values[~inside])


def named(attack: str, way: Way) -> str:
    """An attack's name with the way that answers were taken."""
    return attack + {"told": "", "averaged": ", rounds averaged", "undone": ", undone"}[way]


def where(cell: Cell) -> str:
    """What canaries are called, as targets."""
    inside = cell.world.first_in_proxy is not None
    return "canaries in the proxy set" if inside else "canaries outside it"


def canary_settings(views: Views) -> Sequence[Setting]:
    """Canaries that clients were trained on against those that they were not, for each observer."""
    cell = views.cell

    def made() -> Iterator[Setting]:
        if cell.world.canaries:
            targets = {i: canary_targets(cell, i) for i in cell.clients}
            in_proxy = cell.world.first_in_proxy is not None
            yield from _settings(views, where(cell), targets, in_proxy)

    return views.once("canaries", lambda: list(made()))


def record_settings(views: Views) -> Sequence[Setting]:
    """Clients' own records against records like them of the test set, for each observer."""

    def made() -> Iterator[Setting]:
        targets = {}
        for client in views.cell.clients:
            try:
                targets[client] = record_targets(views.cell, client)
            except FedkdError:  # the test data have none like this client's
                continue
        yield from _settings(views, "records", targets, in_proxy=False)

    return views.once("records", lambda: list(made()))


def _settings(
    views: Views, what: str, targets: dict[int, Targets], in_proxy: bool
) -> Iterator[Setting]:
    others = views.shadows if what != "records" else []
    for observer in OBSERVERS:
        if not views.can_stand(observer):
            continue
        for way in views.ways(observer, in_proxy):
            stands = {i: views.stand(observer, i, in_proxy, way) for i in targets}
            yield Setting(observer, way, what, _cases(stands, targets))
            if others:
                shadowed = {
                    i: with_shadows(
                        stand,
                        [(v.stand(observer, i, in_proxy, way), v.cell) for v in others],
                    )
                    for i, stand in stands.items()
                }
                yield Setting(observer, way, what, _cases(shadowed, targets), "shadows")
            if observer == "aggregate" and in_proxy and way != "averaged":
                learnt = {i: views.with_students(stand) for i, stand in stands.items()}
                yield Setting(observer, way, what, _cases(learnt, targets), "students")


def _cases(stands: dict[int, Stand], targets: dict[int, Targets]) -> list[Case]:
    return [Case(stands[i].evidence(t), t.inside) for i, t in targets.items()]


def membership(views: Views, rng: np.random.Generator) -> Found:
    """Every attack that has what it needs: AUC, and TPR at low FPR beside the ledger's ceiling."""
    findings: list[Finding] = []
    curves: list[Curve] = []
    for setting in (*canary_settings(views), *record_settings(views)):
        most = ceilings(views.cell, setting.observer, setting.what, FPRS)
        for attack in ROWS:
            if setting.against and "references" not in attack.needs:
                continue  # it is the same whatever the references
            found = scores(attack, setting.cases)
            if found is not None:
                curve = roc(*found)
                findings += _findings(setting, attack.name, curve, most)
                curves.append(_curve(setting, attack.name, curve))
    return Found(findings, curves)


def _findings(
    setting: Setting, attack: str, curve: Roc, most: Sequence[float | None]
) -> list[Finding]:
    half = 1.96 * auc_error(curve.auc, curve.n_members, curve.n_nonmembers)
    tell = partial(
        Finding,
        part="membership",
        observer=setting.observer,
        attack=setting.name(attack),
        adaptive=setting.adaptive,
        target=setting.what,
        n=curve.n_members + curve.n_nonmembers,
        most=1.0,
    )
    low, high = max(0.0, curve.auc - half), min(1.0, curve.auc + half)
    found = [tell(measure="auc", value=curve.auc, low=low, high=high, null=0.5)]
    least = smallest_fpr(curve.n_nonmembers)
    for point, ceiling in zip(tpr_at(curve, FPRS), most, strict=True):
        note = f"{UNSUPPORTED} that {curve.n_nonmembers} non-members support: {least:.2g}"
        found.append(
            tell(
                measure=f"tpr@{point.target:g}",
                value=point.tpr,
                low=point.low,
                high=point.high,
                null=point.target,
                ceiling=ceiling,
                note="" if point.supported else note,
            )
        )
    return found


def auc_error(auc: float, n_members: int, n_others: int) -> float:
    """The standard error of an AUC. Source: Hanley and McNeil 1982.

    >>> round(auc_error(0.5, 100, 100), 3)
    0.041
    """
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (n_members - 1) * (one - auc**2) + (n_others - 1) * (two - auc**2)
    return math.sqrt(max(spread, 0.0) / (n_members * n_others))


def _curve(setting: Setting, attack: str, curve: Roc) -> Curve:
    """At most `POINTS` points, evenly spread over log FPR: there it is read."""
    at = np.arange(len(curve.fpr))
    if len(at) > POINTS:
        logs = np.log(np.maximum(curve.fpr, 0.5 / curve.n_nonmembers))
        wanted = np.linspace(logs[0], logs[-1], POINTS - 2)
        at = np.unique([0, *np.searchsorted(logs, wanted), len(at) - 1])
    return Curve(
        part="membership",
        observer=setting.observer,
        attack=setting.name(attack),
        target=setting.what,
        kind="roc",
        x=tuple(curve.fpr[at].tolist()),
        y=tuple(curve.tpr[at].tolist()),
        n=curve.n_nonmembers,
    )

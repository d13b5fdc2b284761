"""The part `epsilon`: how much privacy was lost at least, beside what the ledgers say at most.

Of canaries that each were in or out by a coin: one run, the guesses of an attack that was fixed
beforehand (`membership.CHOSEN`). Of texts: the rank of one canary, named beforehand: the first that
was put in and that is repeated least. A bound above the ledger's total means that one is wrong.
"""

from __future__ import annotations

import numpy as np

from privacy.asked import RECORD
from privacy.audit.epsilon import Claim, LowerBound, from_rank
from privacy.audit.exposure import exposures
from privacy.audit.membership import ATTACKS
from privacy.audit.one_run import one_run
from scenarios.audit.evidence import Cell
from scenarios.audit.findings import EPSILON, Finding, Found
from scenarios.audit.ledger import accounted
from scenarios.audit.membership import CHOSEN, canary_settings, scores, where
from scenarios.audit.views import Views

SHARES = (0.02, 0.1, 0.25)
"""Of the canaries that are guessed in, and as many out: tested together, by Bonferroni."""


def epsilon(views: Views, rng: np.random.Generator) -> Found:
    """The bounds that the run's canaries allow, for each observer."""
    cell = views.cell
    findings = of_coins(views, rng) if fair(cell) else []
    if by_rank(cell):
        findings = [*findings, _of_rank(cell)]
    return Found(findings)


def fair(cell: Cell) -> bool:
    """Whether each canary was in once or out, by a fair coin of its own."""
    canaries = cell.scenario.canaries
    tossed = canaries is not None and canaries.assign == "coin"
    return tossed and sorted(canaries.repetitions) == [0, 1] and canaries.holders == 1  # type: ignore[union-attr]


def by_rank(cell: Cell) -> bool:
    """Whether a rank bounds epsilon: a proxy set that holds the secret would tell it anyway."""
    planted = any(canary.repetitions for canary in cell.world.canaries)
    secret = cell.world.tokens is not None and cell.world.first_in_proxy is None
    return secret and planted and bool(cell.models)


def of_coins(views: Views, rng: np.random.Generator) -> list[Finding]:
    """One bound for each observer, over the canaries of all clients together."""
    cell = views.cell
    claim = Claim(protects=RECORD, delta=cell.scenario.privacy.delta)
    in_proxy = cell.world.first_in_proxy is not None
    findings = []
    for setting in canary_settings(views):
        name = CHOSEN[setting.observer]
        ways = views.ways(setting.observer, in_proxy)
        if setting.against or setting.way != ("undone" if "undone" in ways else "told"):
            continue  # one an observer, fixed beforehand
        found = scores(ATTACKS[name], setting.cases)
        if found is None:
            continue
        values = np.concatenate(found)
        inside = np.arange(len(values)) < len(found.members)
        counts = sorted({(max(1, round(s * len(values))),) * 2 for s in SHARES})
        bound = one_run(values, inside, counts, claim, rng)
        told = _finding(
            cell, setting.observer, f"one run, {setting.name(name)}", bound, len(values)
        )
        findings.append(told)
    return findings


def _of_rank(cell: Cell) -> Finding:
    canaries = [c for c in cell.world.canaries if c.repetitions and c.client in cell.models]
    named = min(canaries, key=lambda canary: canary.repetitions)
    assert cell.world.tokens is not None
    (found,) = exposures(cell.models[named.client], [named], cell.world.tokens)
    claim = Claim(protects=RECORD, delta=cell.scenario.privacy.delta)
    bound = from_rank(found.rank, found.size, claim, named.repetitions)
    return _finding(cell, "owner", "exposure of one canary", bound, 1)


def _finding(cell: Cell, observer: str, attack: str, bound: LowerBound, n: int) -> Finding:
    total = accounted(cell, observer)
    return Finding(
        part="epsilon",
        observer=observer,
        attack=attack,
        target=where(cell),
        measure=EPSILON,
        value=bound.epsilon,
        null=0.0,
        ceiling=None if total is None else total.epsilon,
        n=n,
        note=f"{bound}" + ("" if total is None else f"; the ledger: {total}"),
    )

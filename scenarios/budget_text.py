"""A forecast as people and programs read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedkd.config import Scenario
from privacy.asked import counts_rounds, most_rounds
from privacy.dpsgd_cost import LOST_ROUNDS
from privacy.forecast import exact
from privacy.knobs import Knob, Turned
from scenarios.budget import Forecast, unit_of
from scenarios.spending import figures


def in_words(found: Forecast) -> list[str]:
    """The forecast as lines of text."""
    scenario = found.scenario
    paid = most_rounds(scenario.training, found.n_clients)
    how = "exactly" if exact(scenario) else "at most"
    lines = [
        f"{scenario.name}: what {paid} round{'s' * (paid != 1)} will cost a client, {how}; "
        f"the larger of PLD and RDP counts"
    ]
    for outlook in found.outlooks:
        spent = outlook.total.spent
        lines += ["", f"{spent.protects}, at delta {spent.delta:g}"]
        for part in outlook.parts:
            lines.append(f"  {part.name:<9} {part}")
        which = f"client {outlook.client}"
        which += f" of seed {outlook.seed}" if len(scenario.seeds) > 1 else ""
        lines.append(f"  {'total':<9} {which}, which pays most: {outlook.total}")
    lines.append("")
    lines += _remarks(found, paid)
    return lines


def _remarks(found: Forecast, paid: int) -> Iterator[str]:
    scenario = found.scenario
    if found.contributed:
        yield (
            f"disclosed in the clear: {found.contributed:,} raw samples go to the proxy set, which "
            "the server and all clients see; no epsilon covers them"
        )
    if found.silent:
        yield (
            f"budget {scenario.privacy.budget:g}: {found.silent} of the clients looked at abstain, "
            f"the first in round {found.first_silent}"
        )
    n_drawn = scenario.training.taking_part(found.n_clients)
    if n_drawn < found.n_clients:
        beyond = (
            "noise is calibrated for that many, and who is drawn for more abstains"
            if counts_rounds(scenario.privacy)
            else "who is drawn for more pays more, or abstains if there is a budget"
        )
        yield (
            f"clients are drawn at random, {n_drawn:,} of {found.n_clients:,} a round: {paid} "
            f"round{'s' * (paid != 1)} of {scenario.training.rounds} are paid for, and a client is "
            f"drawn for more with probability {LOST_ROUNDS:.0%} at most; {beyond}"
        )
    if found.n_looked_at < found.n_clients:
        yield f"looked at the first {found.n_looked_at:,} of {found.n_clients:,} clients"
    if scenario.privacy.server.name == "gnmax":
        rounds = f"{found.rounds_told} of {scenario.training.rounds} rounds"
        spent = f"{found.server}" if found.server else "nothing, since its budget bears no round"
        yield (
            f"gnmax is not counted: in {rounds} the server, which sees the answers, tells labels "
            f"under a guarantee of its own, and spends {spent}"
        )


Ways = list[tuple[Knob, Turned | None]]


def target_in_words(found: Forecast, target: float, ways: Ways) -> list[str]:
    """Which knobs reach a target, each by itself."""
    total = found.asked.total
    goal = f"epsilon {target:g} at delta {total.spent.delta:g} for {total.spent.protects}"
    if total.bare:
        return ["", f"{goal}: out of reach of any noise, since something has no guarantee"]
    if total.epsilon <= target:
        return ["", f"{goal}: reached as it is"]
    lines = ["", f"{goal}: each of these by itself reaches it (PLD and RDP at most)"]
    for knob, way in ways:
        now = f"  {knob.key} {knob.now:.4g}"
        if way is None:
            lines.append(f"{now} -> no value reaches it alone")
        else:
            lines.append(f"{now} -> {way.value:.4g}, then epsilon {way.epsilon:.4g}")
    return lines


def target_table(scenario: Scenario, target: float, ways: Ways) -> dict[str, Any]:
    """The same for JSON; a value is null where the knob cannot reach the target alone."""
    protects = unit_of(scenario)
    return {
        "epsilon": target,
        "delta": scenario.privacy.delta,
        "unit": protects.unit,
        "relation": protects.relation,
        "accountants": "the larger of PLD and RDP",
        "knobs": [
            {
                "key": knob.key,
                "now": knob.now,
                "value": way.value if way else None,
                "epsilon": way.epsilon if way else None,
            }
            for knob, way in ways
        ],
    }


def as_table(found: Forecast) -> dict[str, Any]:
    """The forecast as JSON has it; an epsilon without a guarantee is null, and `bare` says why."""
    return {
        "scenario": found.scenario.name,
        "rounds": most_rounds(found.scenario.training, found.n_clients),
        "exact": exact(found.scenario),
        "contributed_in_the_clear": found.contributed,
        "clients": found.n_clients,
        "clients_looked_at": found.n_looked_at,
        "clients_that_abstain": found.silent,
        "server": figures(found.server) if found.server else None,
        "totals": [
            {
                **figures(outlook.total),
                "client": outlook.client,
                "seed": outlook.seed,
                "parts": [
                    {
                        "part": part.name,
                        "how": part.how,
                        "epsilon": None if part.bare else part.spent.epsilon,
                        "pld": None if part.bare else part.spent.pld,
                        "rdp": None if part.bare else part.spent.rdp,
                        "bare": part.bare,
                    }
                    for part in outlook.parts
                ],
            }
            for outlook in found.outlooks
        ],
    }

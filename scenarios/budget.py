"""`fedkd budget`: what a scenario will cost its clients, before it runs, and how to change that.

The scenario's own row only; each reference row has ledgers of its own. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clients import degrees
from clients.client import Client, ProxySet
from fedkd import protection, training
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.errors import FedkdError
from fedkd.exchange.gate import Own
from privacy.asked import CLIENT, RECORD
from privacy.events import Protects
from privacy.forecast import Planned, Prospect, planned, told_by_server
from privacy.knobs import Cost, Knob, Turned, calibrated, knobs, turned
from privacy.parts import Part, parts
from privacy.totals import Total, at_most, total, totals

MOST_CLIENTS = 1000
"""Of a larger population the first so many are looked at; virtual ones all hold as much."""
MOST_VIRTUAL = 4
ATTEMPTS = 5
"""A search is for the client that pays most, and then tried on all: some pay more by then."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What one unit and relation cost the client that pays most."""

    seed: int
    client: int
    total: Total
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a scenario will cost."""

    scenario: Scenario
    outlooks: tuple[Outlook, ...]
    """One for each unit and relation."""
    contributed: int
    """Raw samples that the clients looked at give away, in the run with most of them."""
    n_clients: int
    n_looked_at: int
    silent: int
    """Of the clients looked at, over seeds: those whose budget makes them abstain."""
    first_silent: int | None
    """The first round in which one does."""
    server: Total | None
    """What the server spends on what it tells, if it has a mechanism of its own."""
    rounds_told: int
    """Rounds in which the server's budget lets it speak; 0 where it has no mechanism."""

    @property
    def asked(self) -> Outlook:
        """The outlook of the unit that the scenario's budget is for."""
        return next(o for o in self.outlooks if o.total.spent.protects == unit_of(self.scenario))


def unit_of(scenario: Scenario) -> Protects:
    """Whom the scenario's budget, and a target, are for."""
    return {"record": RECORD, "client": CLIENT}[scenario.privacy.unit]


def prospects(scenario: Scenario, seed: int) -> list[Prospect]:
    """What the charges of each client depend on, of the clients that are looked at."""
    world = scenario.world(seed)
    virtual = scenario.partition.name == "virtual"
    looked_at = range(min(world.n_clients, MOST_VIRTUAL if virtual else MOST_CLIENTS))
    pool, positions = (0, 1) if not scenario.uses_pool else _pool(world)
    known = _degrees(scenario, world) if scenario.method.exchange == "soft-labels" else None
    found, first = [], 0
    for i in looked_at:
        n_given = len(world.contributed[i])
        mine = slice(first * positions, (first + n_given) * positions)
        first += n_given
        answers = mine if isinstance(scenario.method.gate, Own) else slice(0, pool * positions)
        client = Client(scenario=scenario, seed=seed, id=i, round=0, world=world, device=CPU)
        found.append(
            Prospect(
                client=i,
                n_clients=world.n_clients,
                records=client.n_records,
                contributed=n_given,
                pool=pool,
                samples=pool * positions,
                rows=answers.stop - answers.start,
                n_classes=world.train.n_classes,
                degrees=None if known is None else known[answers],
            )
        )
    return found


def _pool(world: Federation) -> tuple[int, int]:
    """Records of the proxy set, and samples of each."""
    x = world.public_x if world.public_x is not None else world.train.x[:0]
    given = 0 if world.public_x is not None else sum(map(len, world.contributed))
    return len(x) + given, x.shape[3] if world.train.is_text else 1


def _degrees(scenario: Scenario, world: Federation) -> Tensor | None:
    """The degrees of all positions of the proxy set, where Swing uses some that all can compute."""
    row = scenario.privacy.release
    if not isinstance(row, protection.Swing) or row.degree not in protection.PUBLIC_DEGREES:
        return None
    x = world.public_x
    if x is None:
        x = torch.cat([world.contribution(i)[0] for i in range(world.n_clients)])
    positions = x.shape[3] if world.train.is_text else 1
    nobody = torch.full((len(x),), -1, dtype=torch.int32).numpy()
    return degrees.public(ProxySet(training.inputs(x), nobody, positions), row, world.tokens)


def forecast(scenario: Scenario) -> Forecast:
    """What a scenario will cost, over all its seeds. Raises: FedkdError as a run would."""
    dearest: dict[Protects, tuple[int, Planned, Total]] = {}
    given, silent, first_silent = 0, 0, []
    for seed, plans in _planned(scenario):
        given = max(given, sum(p.entries[0].rows for p in plans if _gives(p)))
        silent += sum(bool(plan.silent) for plan in plans)
        first_silent += [plan.silent[0] for plan in plans if plan.silent]
        for plan in plans:
            for one in totals(plan.entries, scenario.privacy.delta):
                before = dearest.get(one.spent.protects)
                if before is None or before[2].epsilon < one.epsilon:
                    dearest[one.spent.protects] = (seed, plan, one)

    def asked_first(found: tuple[Protects, object]) -> tuple[bool, Protects]:
        return found[0] != unit_of(scenario), found[0]

    world = scenario.world(scenario.seeds[0])
    looked_at = prospects(scenario, scenario.seeds[0])
    told = told_by_server(scenario, looked_at[0].samples)
    return Forecast(
        scenario=scenario,
        outlooks=tuple(
            Outlook(
                seed=seed,
                client=plan.client,
                total=one,
                parts=parts(plan.entries, protects, scenario.privacy.delta),
            )
            for protects, (seed, plan, one) in sorted(dearest.items(), key=asked_first)
        ),
        contributed=given,
        n_clients=world.n_clients,
        n_looked_at=len(looked_at),
        silent=silent,
        first_silent=min(first_silent, default=None),
        server=total(told, CLIENT, scenario.privacy.delta) if told else None,
        rounds_told=len(told),
    )


def _planned(scenario: Scenario) -> Iterator[tuple[int, list[Planned]]]:
    for seed in scenario.seeds:
        yield seed, [planned(scenario, prospect) for prospect in prospects(scenario, seed)]


def _gives(plan: Planned) -> bool:
    return bool(plan.entries) and plan.entries[0].what == "raw samples"


def ways_to(scenario: Scenario, target: float) -> list[tuple[Knob, Turned | None]]:
    """Each knob of a scenario, and where it brings the epsilon of `privacy.unit` to the target.

    None where the target is reached as it is, or something has no guarantee at all.
    """
    _check(target)
    unlimited = _unlimited(scenario)
    now = forecast(unlimited).asked.total
    if now.bare or now.epsilon <= target:
        return []
    return [(knob, _tried(knob, unlimited, target)) for knob in knobs(unlimited)]


def on_target(scenario: Scenario, target: float) -> Scenario:
    """The scenario with its noise calibrated to a total; see `privacy.knobs.calibrated`."""
    _check(target)
    unlimited = _unlimited(scenario)
    found = _for_all(unlimited, target, lambda cost, goal: calibrated(unlimited, cost, goal))
    if found is None:
        raise FedkdError("the noise for this target was not found", value=target)
    privacy = found.privacy.model_copy(update={"budget": scenario.privacy.budget})
    return found.model_copy(update={"privacy": privacy})


def _tried(knob: Knob, scenario: Scenario, target: float) -> Turned | None:
    def search(cost: Cost, goal: float) -> Scenario | None:
        found = turned(knob, scenario, cost, goal)
        return found and found.scenario

    changed = _for_all(scenario, target, search)
    if changed is None:
        return None
    return Turned(knob.value(changed), forecast(changed).asked.total.epsilon, changed)


def _for_all(
    scenario: Scenario, target: float, search: Callable[[Cost, float], Scenario | None]
) -> Scenario | None:
    """What a search finds for the client that pays most, and for whoever pays more then."""
    now = forecast(scenario).asked
    payers, goal = {(now.seed, now.client)}, target
    for _ in range(ATTEMPTS):
        found = search(_cost(scenario, payers), goal)
        if found is None:
            return None
        asked = forecast(found).asked
        if asked.total.epsilon <= target:
            return found
        if (asked.seed, asked.client) in payers:  # the search goes by RDP alone
            goal *= 0.999 * target / asked.total.epsilon
        payers.add((asked.seed, asked.client))
    return None


def _unlimited(scenario: Scenario) -> Scenario:
    """Without a budget: a target is about what the settings cost, not about who falls silent."""
    privacy = scenario.privacy.model_copy(update={"budget": None})
    return scenario.model_copy(update={"privacy": privacy})


def _cost(scenario: Scenario, payers: Collection[tuple[int, int]]) -> Cost:
    """Of the clients (seed, client), by RDP: milliseconds where nothing is calibrated."""
    chosen = [
        prospect
        for seed in scenario.seeds
        for prospect in prospects(scenario, seed)
        if (seed, prospect.client) in payers
    ]

    def cost(changed: Scenario) -> float:
        delta, protects = changed.privacy.delta, unit_of(changed)
        return max(at_most(planned(changed, who).entries, protects, delta) for who in chosen)

    return cost


def _check(target: float) -> None:
    if not 0 < target < float("inf"):
        raise FedkdError("a target epsilon must be a number above 0", value=target)

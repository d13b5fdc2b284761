"""What a scenario will cost a client, before it runs: the entries that its ledger will hold.

The charges of a client depend on sizes and settings alone, all of which are public, so its ledger
can be written in advance. It is added up by `privacy.totals` as a real one is. What a client
charges in which order is `clients.app`'s doing; the tests hold this plan against real ledgers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd import protection
from fedkd.config import Scenario
from fedkd.exchange.gate import Open, Own, Soft
from privacy import asked, claims
from privacy.asked import Occasion
from privacy.claims import Claim
from privacy.degrees import Origin
from privacy.ledger import Ledger, Release, SeenBy, What
from privacy.totals import affords


@dataclass(frozen=True, kw_only=True, eq=False)
class Prospect:
    """What the charges of one client depend on besides the scenario."""

    client: int
    n_clients: int
    """Of the run: how many take part in a round follows from it."""
    records: int
    """That it trains on."""
    contributed: int
    """Raw samples that it gives to the proxy set."""
    pool: int
    """Records of the proxy set."""
    samples: int
    """Of the proxy set: as many for images, one a token position for texts."""
    rows: int
    """Samples that it answers in a round, at the most."""
    n_classes: int
    degrees: Tensor | None = None
    """For Swing with public degrees: [rows]."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One client's ledger after the rounds that are paid for."""

    client: int
    entries: tuple[Release, ...]
    silent: tuple[int, ...]
    """Rounds in which its budget will not bear its training, or its answers, so it abstains."""


def exact(scenario: Scenario) -> bool:
    """Whether every client's plan is its ledger to the entry, and not an upper bound.

    A client that is drawn at random takes part in another number of rounds, and one with a filter
    may answer fewer samples than there are, as may all where the server draws some.
    """
    gate, exchange = scenario.method.gate, scenario.method.exchange
    answers_known = isinstance(gate, Open | Own | Soft) or exchange != "soft-labels"
    by_pool = exchange != "label-means"  # a client may not hold every label
    everything = scenario.method.select.name == "all"
    return scenario.training.participation == 1 and answers_known and everything and by_pool


def planned(scenario: Scenario, prospect: Prospect) -> Planned:
    """The ledger of one client that takes part in each of the rounds that are paid for.

    Raises: FedkdError where a setting of the scenario has no mechanism, as a run would.
    """
    ledger, budget = Ledger(), asked.budget_of(scenario.privacy)

    def charge(round_: int, what: What, rows: int, seen_by: SeenBy, claim: Claim) -> bool:
        entry = Release(
            client=prospect.client,
            round=round_,
            what=what,
            rows=rows,
            seen_by=seen_by,
            **claim._asdict(),
        )
        if budget is not None and not affords(ledger, budget, entry):
            return False
        ledger.record(entry)
        return True

    if prospect.contributed:  # never asked of the budget: the scenario has given it away
        given = Release(
            client=prospect.client,
            round=0,
            what="raw samples",
            rows=prospect.contributed,
            seen_by="server and all clients",
        )
        ledger.record(given)
    silent: list[int] = []
    has_mask = False
    for round_ in range(1, asked.most_rounds(scenario.training, prospect.n_clients) + 1):
        for what, rows, seen_by, claim in _charges(scenario, prospect, has_mask):
            if not charge(0 if what == "summary" else round_, what, rows, seen_by, claim):
                silent.append(round_)
                break
            has_mask |= what in ("accept mask", "sample weights")
    return Planned(client=prospect.client, entries=ledger.entries(), silent=tuple(silent))


def told_by_server(scenario: Scenario, samples: int) -> tuple[Release, ...]:
    """The server's own ledger after all rounds, for a proxy set of so many samples.

    Nothing where it has no mechanism of its own. It ends before its budget would be passed.
    """
    row, budget = scenario.privacy.server, asked.server_budget_of(scenario.privacy)
    ledger = Ledger()
    if isinstance(row, protection.GnMax):
        claim = claims.claim_of_labels(row, samples)
        for round_ in range(1, scenario.training.rounds + 1):
            entry = Release(
                client=-1,
                round=round_,
                what="soft labels",
                rows=samples,
                seen_by="server and all clients",
                **claim._asdict(),
            )
            if budget is None or affords(ledger, budget, entry):
                ledger.record(entry)
    return ledger.entries()


def _charges(
    scenario: Scenario, prospect: Prospect, has_mask: bool
) -> Iterator[tuple[What, int, SeenBy, Claim]]:
    """What a round charges, in the order in which a client asks its budget for it."""
    privacy = scenario.privacy
    row = privacy.training
    if not isinstance(row, protection.PlainTraining):
        if isinstance(row, protection.DpSgd):
            row = asked.dp_sgd_of(
                row, prospect.records, prospect.n_clients, scenario.training, privacy.delta
            )
        claim = claims.claim_of_training(row, prospect.records, scenario.training.local)
        yield "training", prospect.records, "no one", claim
    if scenario.method.exchange == "weights":
        yield "weights", 1, "server", claims.claim_of_model(privacy.training)
    if scenario.method.exchange == "label-means":
        yield "label means", prospect.n_classes, "server and all clients", claims.OF_LABELS
    if scenario.method.exchange != "soft-labels":
        return
    if isinstance(privacy.release, protection.SummaryRelease):
        summary = claims.claim_of_summary(privacy.release, privacy.delta)
        yield "summary", prospect.records, "no one", summary
    mask = claims.claim_of_mask(scenario)
    if mask is not None and (not has_mask or asked.mask_changes(scenario)):
        yield claims.what_mask_is(scenario), prospect.pool, asked.readers_of_mask(privacy), mask
    # Of private degrees only their number is charged.
    known = prospect.degrees is not None
    origin: Origin = "public" if known else "private"
    occasion = Occasion(
        temperature=scenario.method.release.temperature,
        most_rows=prospect.samples * asked.most_rounds(scenario.training, prospect.n_clients),
        delta=privacy.delta,
        degrees=prospect.degrees if known else torch.zeros(prospect.rows),
        origin=origin,
    )
    answers = claims.claim_of_release(privacy, occasion, prospect.rows, prospect.n_classes)
    of_sum = claims.claim_of_sum(scenario, answers, prospect.samples)
    yield "soft labels", prospect.rows, asked.readers(privacy), of_sum

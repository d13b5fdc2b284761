"""`fedkd deploy explain`: what would leave a client, to whom, how much, at what cost; nothing runs.

Sizes are those of real payloads, packed as a run packs them. Costs are what `privacy.forecast` puts
into the client's ledger; earlier runs of the client are in ledgers already, and add up with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector

from clients.place import Place
from fedkd import payload, payload_answers, payload_secure, protection
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.data.proxy import Contributed
from fedkd.data.sources import Source
from fedkd.errors import FedkdError
from fedkd.exchange.gate import Own, Soft
from fedkd.models import zoo
from fedkd.rng import stream
from privacy.forecast import Prospect, exact, planned
from privacy.ledger import look
from privacy.totals import totals
from scenarios.deploy.client import source_of
from scenarios.deploy.folder import ClientSettings, client_settings
from scenarios.units import size


@dataclass(frozen=True)
class Leaving:
    """One kind of message."""

    what: str
    to: str
    often: str
    n_bytes: int | None
    """None where it is a few numbers."""
    content: str


def explain(folder: Path, scenario: Scenario, data: str | None = None) -> list[str]:
    """Lines for a client's operator.

    Raises: FedkdError for a folder, data or scenario that cannot be used together.
    """
    settings = client_settings(folder)
    source = settings.data if data is None else source_of(data)
    seed = scenario.seeds[0]
    place = Place(settings.seat, folder / "state", source, settings.consent)
    world = place.world(scenario, seed)
    lines = [
        f"{settings.name}, seat {settings.seat}, would join {settings.server} for {scenario.name}: "
        f"{scenario.training.rounds} rounds, {len(scenario.seeds)} time(s)",
        _consent(settings, scenario),
        "",
        "What would leave, at most:",
    ]
    for one in leaving(scenario, settings, world):
        much = "a few numbers" if one.n_bytes is None else f"{size(one.n_bytes)} each"
        lines.append(f"  {one.what:<12} to {one.to}, {one.often}, {much}")
        lines.append(f"  {'':<12} {one.content}")
    lines += ["", f"What stays in {folder / 'state'}: model, filter, ledger, secret."]
    lines += [f"The data stay where they are: {_data(source)}."] if source else []
    return [*lines, "", *_cost(scenario, settings, world, folder / "state")]


def _consent(settings: ClientSettings, scenario: Scenario) -> str:
    try:
        settings.consent.check(scenario)
    except FedkdError as refused:
        return f"It would refuse: {refused}"
    return "It would take part: the scenario asks for no more than its [consent] allows."


def _data(source: Source) -> str:
    return str(getattr(source, "path", source.name))


def leaving(scenario: Scenario, settings: ClientSettings, world: Federation) -> list[Leaving]:
    """What messages would leave the client; sizes are the most, if all others give as much."""
    seat, rounds = settings.seat, "once a round"
    prospect = prospect_of(scenario, settings, world)
    x, _ = world.contribution(seat)
    hello = payload.Hello(seat, prospect.records, prospect.n_classes, x.numpy())
    given = f"{len(x)} raw records, in the clear, " if len(x) else "no record; "
    found = [
        Leaving(
            "hello",
            "the server, and from there all clients" if len(x) else "the server",
            "once",
            len(payload.encode_hello(hello)),
            f"{given}the number of its records ({prospect.records}) and classes",
        )
    ]
    method = scenario.method
    summed = isinstance(scenario.privacy.server, protection.SecureAggregation)
    if method.exchange == "soft-labels":
        to = "the server, as part of a sum only" if summed else "the server"
        says = f"what its model says of {prospect.rows} samples of the proxy set, and "
        told = says + (
            "for each a weight, which tells how much it looks like its own data"
            if isinstance(method.gate, Soft)
            else "by leaving others out, which of them look like its own data"
        )
        found.append(
            Leaving("soft labels", to, rounds, _answer_bytes(scenario, prospect, summed), told)
        )
    if summed:
        key = payload_secure.encode_key(bytes(32), seat, 1)
        to = "the server, and from there the others"
        found.append(Leaving("key", to, rounds, len(key), "a public key of the round"))
        told = "what it shares with clients that were lost, which takes their masks off"
        found.append(Leaving("secrets", "the server", "where some were lost", None, told))
    if method.exchange == "label-means":
        held = np.arange(prospect.n_classes, dtype=np.int32)
        values = np.full((len(held), len(held)), 1 / len(held), np.float32)
        packed = payload_answers.encode_answer(payload_answers.Answer(seat, 1, held, values))
        told = "what its model says of its own records of each label on average, and which it holds"
        to = "the server, and in a sum all clients"
        found.append(Leaving("label means", to, rounds, len(packed), told))
    if method.exchange == "weights":
        channels, height, width = world.train.x.shape[1:]
        model = zoo.build(
            scenario.model.names[seat % len(scenario.model.names)],
            (channels, height, width),
            prospect.n_classes,
            torch.Generator(),
            world.train.x.dtype,
        )
        vector = parameters_to_vector(model.parameters()).detach().numpy()
        packed = payload.encode_weights(vector, seat, 1, prospect.records)
        found.append(Leaving("weights", "the server", rounds, len(packed), "its whole model"))
    measures = (
        "sizes and times"
        if not settings.consent.tells
        else (
            "losses and accuracies on its own data, uncharged (consent.measures = false keeps "
            "them), sizes and times"
        )
    )
    found.append(Leaving("metrics", "the server", "twice a round", None, measures))
    return found


def _answer_bytes(scenario: Scenario, prospect: Prospect, summed: bool) -> int:
    """Of an answer to every sample that it may answer; under a mask, of the whole table."""
    rows, classes = prospect.rows, prospect.n_classes
    if summed:
        table = np.zeros((prospect.samples, classes + 1), np.uint64)
        return len(payload_secure.encode_blinded(table, prospect.client, 1))
    values = np.full((rows, classes), 1 / classes, np.float32)
    weights = np.ones(rows, np.float32) if isinstance(scenario.method.gate, Soft) else None
    ids = np.arange(rows, dtype=np.int32)
    answer = payload_answers.Answer(prospect.client, 1, ids, values, weights)
    coding, packing = scenario.coding_up, scenario.packing(prospect.samples)
    if coding is None:
        return len(payload_answers.encode_answer(answer, packing))
    draws = stream(0, "client", 1, prospect.client, "coding")
    return len(payload_answers.encode_coded_answer(answer, coding, draws, packing))


def prospect_of(scenario: Scenario, settings: ClientSettings, world: Federation) -> Prospect:
    """What the client's charges depend on.

    How much others give to the proxy set is not known beforehand: as much as this client, it says.
    """
    seat, proxy = settings.seat, scenario.proxy
    n_given, n_clients = len(world.contributed[seat]), len(world.private)
    if not scenario.uses_pool:
        pool = 0
    elif world.public_x is not None:
        pool = len(world.public_x)
    elif isinstance(proxy, Contributed):
        pool = max(sum(map(len, world.contributed)), n_given * n_clients)
    else:
        pool = int(proxy.size or 0) if proxy.name == "foreign" else 0
    positions = int(world.train.x.shape[3]) if world.train.is_text else 1
    own_only = isinstance(scenario.method.gate, Own)
    return Prospect(
        client=seat,
        n_clients=n_clients,
        records=len(world.private[seat]),
        contributed=n_given,
        pool=pool,
        samples=pool * positions,
        rows=(n_given if own_only else pool) * positions,
        n_classes=world.train.n_classes,
    )


def _cost(
    scenario: Scenario, settings: ClientSettings, world: Federation, state: Path
) -> list[str]:
    delta = scenario.privacy.delta
    entries = planned(scenario, prospect_of(scenario, settings, world)).entries
    exactly = "exactly" if exact(scenario) else "at most"
    lines = [f"What the ledger would say of this run, {exactly} (the larger of PLD and RDP):"]
    lines += [f"  {one}" for one in totals(entries, delta)]
    paths = sorted((state / "runs").rglob("ledger.jsonl"))
    before = tuple(entry for path in paths for entry in look(path))
    if before:
        lines.append(f"Together with what it took part in before ({len(paths)}):")
        lines += [f"  {one}" for one in totals((*before, *entries), delta)]
    return lines

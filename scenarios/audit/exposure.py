"""The part `exposure`: how much likelier a canary is than chance would have it, in bits.

Of texts, each secret is ranked among all that it might have been: exactly, where there is a model
to ask, or as far as soft labels at its positions tell. Of images, each canary is ranked among the
controls, canaries that nobody holds, at the label that it was given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkd.data.canaries import FORMATS, Canary
from fedkd.models.zoo import Classifier
from privacy.audit.canary_readout import positions, readout, undo_temperature
from privacy.audit.estimates import extrapolated, interpolated, null_error, ranks
from privacy.audit.exposure import NULL_BITS, exposures
from privacy.audit.intervals import half_width
from privacy.audit.recording import SERVER
from scenarios.audit.evidence import Cell, Source, Way
from scenarios.audit.findings import OBSERVERS, Curve, Finding, Found
from scenarios.audit.membership import named, where
from scenarios.audit.views import Targets, Views, canary_targets, controls

CONTROLS = "controls"
READERS = 2
"""Clients whose models are asked about a canary that they do not hold."""
FEWEST_CONTROLS = 8
"""Below that, a rank among them says next to nothing."""
PART = "exposure"

Bits = NDArray[np.float64]


class Group(NamedTuple):
    """Canaries that are told of together: as many repetitions, one observer, one way to look."""

    observer: str
    attack: str
    adaptive: bool
    repetitions: int


Told = tuple[Group, float, float]
"""A canary's group, its bits, and the most that they could be."""


def exposure(views: Views, rng: np.random.Generator) -> Found:
    """Mean exposure for each observer and number of repetitions, and of the controls."""
    cell = views.cell
    of_text = cell.world.tokens is not None
    found: dict[Group, list[float]] = defaultdict(list)
    caps: dict[Group, float] = {}
    for group, one, most in _of_text(views) if of_text else _of_images(views):
        found[group].append(one)
        caps[group] = max(most, caps.get(group, 0.0))
    target = where(cell)
    shared = None if of_text else _n_controls(cell)
    findings = [
        finding(group, np.array(bits), target, shared, caps[group]) for group, bits in found.items()
    ]
    curves = [
        Curve(
            part=PART,
            observer=group.observer,
            attack=CONTROLS if group.repetitions == 0 else group.attack,
            target=_repeated(target, group.repetitions),
            kind="histogram",
            x=tuple(bits),
            n=len(bits),
        )
        for group, bits in found.items()
    ]
    return Found(findings, curves)


def _repeated(target: str, repetitions: int) -> str:
    if repetitions == 0:
        return CONTROLS
    return f"{target}, {'once' if repetitions == 1 else f'{repetitions} times'}"


def finding(
    group: Group, bits: Bits, target: str, n_references: int | None, most: float | None = None
) -> Finding:
    """The mean of a group's bits, against what chance gives."""
    bits = bits[~np.isnan(bits)]
    n = len(bits)
    mean, half = float(bits.mean()) if n else None, half_width(bits)
    chance = (
        f"chance gives 1.44, standard error {null_error(n, n_references):.2f}"
        if n
        else "never answered"
    )
    return Finding(
        part=PART,
        observer=group.observer,
        attack=group.attack,
        adaptive=group.adaptive,
        target=_repeated(target, group.repetitions),
        measure="exposure",
        value=mean,
        low=None if mean is None or half is None else mean - half,
        high=None if mean is None or half is None else mean + half,
        null=NULL_BITS,
        most=most,
        n=n,
        note=chance,
    )


def _of_text(views: Views) -> Iterator[Told]:
    cell = views.cell
    in_proxy = cell.world.first_in_proxy is not None
    most = math.log2(FORMATS[cell.world.canaries[0].format].size)

    def asked(
        observer: str, attack: str, model: Classifier, canaries: Sequence[Canary]
    ) -> Iterator[Told]:
        assert cell.world.tokens is not None
        for one in exposures(model, canaries, cell.world.tokens):
            yield Group(observer, attack, False, one.canary.repetitions), one.bits, most

    for client, mine in _homes(cell).items():
        if client in cell.models:
            yield from asked("owner", "exact rank", cell.models[client], mine)
        if views.can_stand("student"):
            readers = [i for i in cell.models if all(i not in _home(c) for c in mine)][:READERS]
            for reader in readers:
                yield from asked("student", "exact rank", cell.models[reader], mine)
        for observer, source in _sources(views, client):
            if not in_proxy:
                for model in cell.students(source).models:
                    yield from asked(observer, "exact rank of students", model, mine)
                continue
            for way in views.ways(observer, in_proxy):
                for canary, bits in _read(cell, source, mine, way):
                    name, adaptive = named("readout", way), way == "undone"
                    yield Group(observer, name, adaptive, canary.repetitions), bits, most


def _read(
    cell: Cell, source: Source, canaries: Sequence[Canary], way: Way
) -> Iterator[tuple[Canary, float]]:
    """Bits of each canary by soft labels alone; the source is asked for all of them at once."""
    tokens, first = cell.world.tokens, cell.world.first_in_proxy
    assert tokens is not None
    assert first is not None
    numbers = {canary: number for number, canary in enumerate(cell.world.canaries)}
    n = cell.proxy.positions
    places = [positions(canary, first + numbers[canary], n, tokens) for canary in canaries]
    soft = undo_temperature(*cell.taken(source, np.concatenate(places), way))
    ends = np.cumsum([len(at) for at in places])
    for canary, rows in zip(canaries, np.split(soft, ends[:-1]), strict=True):
        yield canary, readout(rows, canary, tokens).independent.bits


def _sources(views: Views, client: int) -> Iterator[tuple[str, Source]]:
    """Whose answers each observer reads about a client's canaries."""
    if views.can_stand("uploads") and client in views.cell.listened.clients:
        yield "uploads", Source(client)
    if views.can_stand("aggregate"):
        yield "aggregate", Source(SERVER)
    if views.can_stand("peer"):
        yield "peer", Source(SERVER, without=views.peer_of(client))


def _home(canary: Canary) -> tuple[int, ...]:
    return (canary.client, *canary.others)


def _homes(cell: Cell) -> dict[int, list[Canary]]:
    """The canaries made for each client under attack."""
    homes = {
        client: [c for c in cell.world.canaries if c.client == client] for client in cell.clients
    }
    return {client: mine for client, mine in homes.items() if mine}


def _n_controls(cell: Cell) -> int:
    return sum(canary.repetitions == 0 for canary in cell.world.canaries)


def _of_images(views: Views) -> Iterator[Told]:
    cell = views.cell
    in_proxy = cell.world.first_in_proxy is not None
    nobodys = controls(cell)
    rendered = cell.world.canaries[0].format == "rendered"
    size = FORMATS["rendered"].size if rendered else None
    for client in cell.clients:
        targets = canary_targets(cell, client)
        for observer in OBSERVERS:
            if not views.can_stand(observer):
                continue
            for way in views.ways(observer, in_proxy):
                look = views.stand(observer, client, in_proxy, way).view.look
                home = np.broadcast_to(targets.home[:1], nobodys.home.shape)
                losses, references = -look(targets), -look(nobodys._replace(home=home))
                name = named("interpolated among controls", way)
                group = Group(observer, name, way == "undone", 0)
                yield from _ranked(group, cell, targets, losses, references, size)


def _ranked(
    group: Group, cell: Cell, targets: Targets, losses: Bits, references: Bits, size: int | None
) -> Iterator[Told]:
    """The bits of a client's canaries among the controls, and of each control among the others."""
    references = references[~np.isnan(references)]
    known = np.flatnonzero(targets.inside & ~np.isnan(losses))
    if len(references) < FEWEST_CONTROLS or not len(known):
        return
    assert targets.numbers is not None
    times = [cell.world.canaries[number].repetitions for number in targets.numbers[known]]
    most = math.log2(len(references))
    among = group, interpolated(losses[known], references), most
    kinds = [among]
    beyond = extrapolated(losses[known], references, size).bits if size is not None else None
    if size is not None and beyond is not None:
        extended = group._replace(
            attack=group.attack.replace("interpolated among", "extrapolated from")
        )
        kinds.append((extended, beyond, math.log2(size)))
    for one, bits, cap in kinds:
        for repetitions, value in zip(times, bits, strict=True):
            yield one._replace(repetitions=repetitions), float(value), cap
    # `ranks` counts a control itself too, which is the one place more that it has among the others.
    for value in np.log2((len(references) - 1) / (ranks(references, references) - 1)):
        yield group, float(value), most

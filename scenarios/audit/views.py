"""What each observer sees of a record, as one signal a target: the views that attacks compare.

A view is a client's model, recorded answers at the proxy samples that the target is, or, for what
the proxy set does not hold, students distilled from recorded answers. `stand` says which view each
observer has of a client, and which it can hold against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.models.zoo import Classifier
from fedkd.rng import stream
from fedkd.training import inputs
from privacy.audit.membership import Evidence
from privacy.audit.recording import SERVER
from privacy.audit.signals import FLOOR, Doubles, Flags, Ids, agreement, averaged, phi
from privacy.audit.targets import balanced_targets
from scenarios.audit.evidence import Cell, Source, Way, predicted

Made = TypeVar("Made")

MOST_RECORDS = 100
"""Members, and as many others, of each client."""

REFERENCES = 8
"""Students that the consensus is held against."""


class Targets(NamedTuple):
    """Records that are attacked, at one client."""

    x: Tensor
    """[n, c, h, w]"""
    y: NDArray[np.int64]
    """[n], or [n, L] of texts."""
    ids: Ids | None
    """The proxy samples that each is, [n, 1] or [n, L]; None where the proxy set holds none."""
    inside: Flags
    """[n]: whether the client was trained on it."""
    held: Flags
    """[n, clients]: who was."""
    home: Flags
    """[n, clients]: at whom it would be, if it were anywhere."""
    numbers: Ids | None = None
    """Of canaries, [n]."""


Look = Callable[[Targets], Doubles]
"""phi [n]; of texts, the mean over positions."""


@dataclass(frozen=True, eq=False)
class Sight:
    """One view of any target."""

    look: Look
    public: Targets

    @cached_property
    def of_public(self) -> Doubles:
        """The view of the public samples."""
        return self.look(self.public)


class Reference(NamedTuple):
    """A view to hold against the one attacked, and which targets it has learnt."""

    sight: Sight
    members: Callable[[Targets], Flags]


class Stand(NamedTuple):
    """What an observer has of one client."""

    view: Sight
    references: Sequence[Reference]

    def evidence(self, targets: Targets) -> Evidence:
        """What attacks ask for."""
        references = [one.sight.look(targets) for one in self.references]
        population = self.view.of_public if len(self.view.public.y) else None
        compared = [one.sight.of_public for one in self.references]
        is_image = targets.y.ndim == 1
        return Evidence(
            target=self.view.look(targets),
            references=np.stack(references) if references else None,
            members=np.stack([one.members(targets) for one in self.references])
            if references
            else None,
            population=population,
            population_references=np.stack(compared)
            if compared and population is not None
            else None,
            features=_features(targets) if is_image else None,
            population_features=_features(self.view.public)
            if is_image and population is not None
            else None,
        )


class Views:
    """The views that a cell gives, each made once."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.shadows = [Views(shadow) for shadow in cell.shadows]
        self._made: dict[object, Any] = {}

    @cached_property
    def public(self) -> Targets:
        """Public samples that no client holds, with their labels."""
        n_clients = self.cell.world.n_clients
        if not self.cell.soft:
            nothing = self.cell.world.train.rows(np.empty(0, np.int64))
            return _of_nobody(nothing[0], nothing[1].numpy(), None, n_clients)
        x, y, ids = self.cell.population()
        return _of_nobody(x, y, ids, n_clients)

    def model(self, client: int) -> Sight:
        """A client's final model."""
        return self._keep(("model", client), self.of(self.cell.models[client]).look)

    def of(self, model: Classifier) -> Sight:
        """Any model."""
        return Sight(lambda t: _over_places(phi(predicted(model, t.x), t.y)), self.public)

    def others(self, client: int) -> Sight:
        """All final models but those of clients that may hold the target, their mean signal."""

        def look(targets: Targets) -> Doubles:
            seen = np.stack(
                [
                    np.where(targets.home[:, i], np.nan, self.model(i).look(targets))
                    for i in self.cell.models
                    if i != client
                ]
            )
            return averaged(seen)

        return self._keep(("others", client), look)

    def answers(self, source: Source, way: Way) -> Sight:
        """Recorded answers at the target's proxy samples, taken one `Way`."""
        return self._keep((source, way), lambda t: self._answered(source, way, t))

    def _answered(self, source: Source, way: Way, targets: Targets) -> Doubles:
        assert targets.ids is not None
        ids, y = targets.ids.ravel(), targets.y.ravel()
        if way == "undone" and self.cell.hard and source.of != SERVER:
            signal = agreement(np.stack(self.cell.told(source, ids)), y)
        else:
            soft, heat = self.cell.taken(source, ids, way)
            signal = phi(heat[:, None] * np.log(np.maximum(soft, FLOOR)), y)
        return _over_places(signal.reshape(targets.ids.shape))

    def students(self, source: Source) -> Sight:
        """The mean signal of students of recorded answers."""

        def look(targets: Targets) -> Doubles:
            models = self.cell.students(source).models
            seen = np.stack([phi(predicted(model, targets.x), targets.y) for model in models])
            return _over_places(seen.mean(axis=0))

        return self._keep(("students", source), look)

    def _keep(self, key: object, look: Look) -> Sight:
        return self.once(key, lambda: Sight(look, self.public))

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What several parts need, made when it is first asked for."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def told(self, source: Source, in_proxy: bool, way: Way) -> Sight:
        """What a source's answers say: as recorded where the proxy set holds the target."""
        return self.answers(source, way) if in_proxy else self.students(source)

    def ways(self, observer: str, in_proxy: bool) -> tuple[Way, ...]:
        """In which ways an observer attacks. Students learn in one way, the best that is known."""
        if observer not in ("uploads", "aggregate", "peer"):
            return ("told",)
        ways = self.cell.ways
        return ways if in_proxy else ("undone",) if "undone" in ways else ("told",)

    def with_students(self, stand: Stand) -> Stand:
        """The view of the consensus, held against students of half of it each: distillation LiRA.

        Who sees nothing but a consensus has no peers to compare it with, but can make such.
        """
        return Stand(stand.view, self.once("students", self._references))

    def _references(self) -> list[Reference]:
        found = self.cell.teach(Source(SERVER), REFERENCES, 0.5)
        return [
            Reference(self.of(model), self._taught(records))
            for model, records in zip(found.models, found.taught, strict=True)
        ]

    def _taught(self, records: Flags) -> Callable[[Targets], Flags]:
        def members(targets: Targets) -> Flags:
            assert targets.ids is not None
            return np.asarray(records[targets.ids[:, 0] // self.cell.proxy.positions])

        return members

    def peer_of(self, client: int) -> int:
        """The client that attacks another as its peer: the first, fixed beforehand."""
        return next(i for i in self.cell.clients if i != client)

    def stand(self, observer: str, client: int, in_proxy: bool, way: Way) -> Stand:
        """What an observer has of a client; see `can_stand`."""
        cell = self.cell
        match observer:
            case "owner":
                peers = [_peer(self.model(i), i) for i in cell.models if i != client]
                return Stand(self.model(client), peers)
            case "uploads":
                heard = [i for i in cell.clients if i in cell.listened.clients and i != client]
                peers = [_peer(self.told(Source(i), in_proxy, way), i) for i in heard]
                return Stand(self.told(Source(client), in_proxy, way), peers)
            case "aggregate":
                return Stand(self.told(Source(SERVER), in_proxy, way), [])
            case "peer":
                peer = self.peer_of(client)
                own = [_peer(self.model(peer), peer)] if peer in cell.models else []
                source = Source(SERVER, without=peer)
                return Stand(self.told(source, in_proxy, way), own)
            case _:
                return Stand(self.others(client), [])

    def can_stand(self, observer: str) -> bool:
        """Whether the run has what this observer sees."""
        cell = self.cell
        match observer:
            case "owner":
                return bool(cell.models)
            case "uploads":
                return cell.soft and bool(cell.listened.clients)
            case "aggregate":
                return cell.soft
            case "peer":
                return cell.soft and len(cell.clients) > 1
            case _:
                return len(cell.models) > 1 and cell.scenario.method.exchange != "none"


def with_shadows(stand: Stand, shadows: Sequence[tuple[Stand, Cell]]) -> Stand:
    """The same view, held against that of other federations, where others hold the canaries."""
    return Stand(stand.view, [Reference(one.view, _held_in(cell)) for one, cell in shadows])


def _held_in(cell: Cell) -> Callable[[Targets], Flags]:
    copies = cell.world.canary_copies() > 0

    def members(targets: Targets) -> Flags:
        assert targets.numbers is not None
        return np.asarray((copies[targets.numbers] & targets.home).any(axis=1))

    return members


def canary_targets(cell: Cell, client: int) -> Targets:
    """The canaries that a client holds, and those that it might have held."""
    copies = cell.world.canary_copies()
    home = np.zeros(copies.shape, np.bool_)
    for number, canary in enumerate(cell.world.canaries):
        home[number, [canary.client, *canary.others]] = True
    mine = np.flatnonzero(home[:, client])
    x, y = cell.world.canary_records()
    at = cell.world.canary_proxy_ids()
    held = copies[mine] > 0
    rows = torch.from_numpy(mine)
    ids = None if at is None else at[mine]
    return Targets(x[rows], y[rows].numpy(), ids, held[:, client], held, home[mine], mine)


def controls(cell: Cell) -> Targets:
    """All canaries that nobody holds."""
    return _numbered(cell, [i for i, c in enumerate(cell.world.canaries) if c.repetitions == 0])


def planted(cell: Cell) -> Targets:
    """All canaries that somebody holds, whoever that is."""
    return _numbered(cell, [i for i, c in enumerate(cell.world.canaries) if c.repetitions])


def _numbered(cell: Cell, numbers: Sequence[int]) -> Targets:
    x, y = cell.world.canary_records()
    at = cell.world.canary_proxy_ids()
    chosen = np.array(numbers, np.int64)
    ids = None if at is None else at[chosen]
    found = _of_nobody(x[chosen], y[chosen].numpy(), ids, cell.world.n_clients)
    return found._replace(numbers=chosen)


def record_targets(cell: Cell, client: int) -> Targets:
    """A client's own records and as many others, label by label.

    Raises: FedkdError where the test data have none like them.
    """
    world = cell.world
    own = world.train.subset(np.asarray(world.private[client]))
    rng = stream(cell.seed, "audit", client=client, purpose="records")
    chosen = balanced_targets(own, world.test, rng, most=MOST_RECORDS)
    members = np.asarray(world.private[client])[chosen.members]
    x, y = world.train.rows(members)
    more_x, more_y = world.test.rows(chosen.others)
    n = len(members) + len(chosen.others)
    held = np.zeros((n, world.n_clients), np.bool_)
    for other in cell.clients:  # virtual clients may hold the same
        held[: len(members), other] = np.isin(members, world.private[other])
    home = held.copy()
    home[:, client] = True
    inside = np.arange(n) < len(members)
    return Targets(torch.cat([x, more_x]), torch.cat([y, more_y]).numpy(), None, inside, held, home)


def _of_nobody(x: Tensor, y: NDArray[np.int64], ids: Ids | None, n_clients: int) -> Targets:
    nobody = np.zeros((len(x), n_clients), np.bool_)
    return Targets(x, y, ids, np.zeros(len(x), np.bool_), nobody, nobody)


def _peer(sight: Sight, client: int) -> Reference:
    def members(targets: Targets) -> Flags:
        return targets.held[:, client]

    return Reference(sight, members)


def _over_places(signal: Doubles) -> Doubles:
    """[n] of [n] or, with the mean over the places that have a signal, [n, L]."""
    return signal if signal.ndim == 1 else averaged(signal.T)


def _features(targets: Targets) -> Doubles:
    """What everybody knows of images [n, 3]: label, brightness and contrast."""
    pixels = inputs(targets.x).double().flatten(1)
    columns = [torch.from_numpy(targets.y).double(), pixels.mean(dim=1), pixels.std(dim=1)]
    return np.asarray(torch.stack(columns, dim=1).numpy())

"""What a report says of privacy, read out of the clients' ledgers: what was proved, and what not.

The two never mix: a guarantee is an epsilon with its delta, unit, neighbouring relation and both
accountants; whatever is a heuristic, was measured by an attack, or left as it was stands apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from fedkd.protection import GnMax, Privacy
from privacy.asked import CLIENT
from privacy.audit.exposure import NULL_BITS
from privacy.events import Protects
from privacy.ledger import Release, SeenBy, What
from privacy.parts import parts
from privacy.totals import total
from scenarios.report.facts import Disclosure, disclosures, spans
from scenarios.results import Cell, Result
from scenarios.spending import Guaranteed, Spent, most
from server.events import Event

TO: dict[SeenBy, str] = {
    "no one": "nobody: it stays on the client",
    "sum only": "the server, as part of a sum over clients only",
    "server": "the server",
    "server and all clients": "the server and every client",
}
WHAT: dict[What, str] = {
    "raw samples": "raw private samples",
    "summary": "a summary of the private samples",
    "training": "training on private records",
    "accept mask": "the choice of proxy samples that it answers",
    "sample weights": "how far it counts for each proxy sample",
    "soft labels": "answers to proxy samples",
    "label means": "means of answers to private records, by label",
    "weights": "model weights",
}
PART = {"training": "training", "filter": "filter", "release": "answers and weights"}
UNPROVED = {
    "proved": "has a guarantee for another unit only",
    "empirical": "a heuristic, so nothing is proved",
    "none": "nothing protects it",
}
EXPOSURES = {
    "exposure_own": "of secrets in a client's own data",
    "exposure_peers": "of secrets that only other clients hold",
    "exposure_controls": "of secrets that nobody holds",
}


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One guarantee: for whom, how much, and what it is made of."""

    title: str
    total: str
    parts: tuple[tuple[str, str], ...]
    except_for: int
    """Records given away in the clear, which it does not cover."""


@dataclass(frozen=True, kw_only=True)
class ServerPromise:
    """What the server told under a guarantee of its own."""

    rounds: int
    rows: int
    """Labels told, over rounds."""
    total: str
    silent: str
    """The rounds in which its budget made it say nothing."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The privacy section of a report, of one cell."""

    cell: Cell
    clients: list[Disclosure]
    to: Mapping[What, str]
    """Who sees each kind of thing that left."""
    promises: tuple[Promise, ...]
    broken: tuple[tuple[str, tuple[str, ...]], ...]
    """For each unit without a guarantee: its title and the reasons."""
    heuristics: tuple[str, ...]
    """What is empirical, whatever else holds."""
    exposures: tuple[tuple[str, float], ...]
    """In bits, in the last round that measured them."""
    stops: tuple[str, ...]
    """Clients that abstained, and when."""
    server: ServerPromise | None
    """Where the server is trusted with the answers, and protects them itself."""
    columns: tuple[Guaranteed, ...]
    epsilons: Mapping[int, tuple[str, ...]]
    """By client, one for each of `columns`."""

    @property
    def null_bits(self) -> float:
        """Mean exposure of a secret that a model knows nothing of."""
        return NULL_BITS


def statement(result: Result, cell: Cell) -> Statement:
    """What the ledgers and events of a cell say."""
    delta = result.scenario.privacy.delta
    spent = most([(cell.seed, cell.ledgers)], delta)
    entries = [entry for client in cell.ledgers.values() for entry in client if entry.rows]
    promises = tuple(_promise(cell, one) for one in spent if _holds(one))
    columns = tuple(Guaranteed(one.total.spent.protects, delta) for one in spent if _holds(one))
    return Statement(
        cell=cell,
        clients=disclosures(cell),
        to=_recipients(entries),
        promises=promises,
        broken=tuple(
            (_title(one.total.spent.protects), _reasons(one.total.bare))
            for one in spent
            if not one.proved
        ),
        heuristics=tuple(
            sorted({f"{WHAT[e.what]}: {e.reason}" for e in entries if e.guarantee == "empirical"})
        ),
        exposures=_exposures(cell),
        stops=_stops(cell.of("client")),
        server=_server(cell, result.scenario.privacy),
        columns=columns,
        epsilons={
            client: tuple(column.of_ledger(entries) for column in columns)
            for client, entries in cell.ledgers.items()
        },
    )


def _holds(spent: Spent) -> bool:
    return spent.proved and spent.total.spent.epsilon > 0


def _title(protects: Protects) -> str:
    return str(protects).capitalize()


def _promise(cell: Cell, spent: Spent) -> Promise:
    of = spent.total.spent
    return Promise(
        title=_title(of.protects),
        total=f"{of}; of client {spent.client}, which spent most",
        parts=tuple(
            (PART[part.name], str(part))
            for part in parts(cell.ledgers[spent.client], of.protects, of.delta)
        ),
        except_for=spent.total.in_the_clear if of.protects.unit == "record" else 0,
    )


def _server(cell: Cell, settings: Privacy) -> ServerPromise | None:
    if not isinstance(settings.server, GnMax):
        return None
    told = {entry.round for entry in cell.server_ledger}
    silent = [event["round"] for event in cell.of("round") if event["round"] not in told]
    return ServerPromise(
        rounds=len(cell.server_ledger),
        rows=sum(entry.rows for entry in cell.server_ledger),
        total=str(total(cell.server_ledger, CLIENT, settings.delta)),
        silent=spans(silent) if silent else "",
    )


def _reasons(bare: tuple[Release, ...]) -> tuple[str, ...]:
    """Why an epsilon is infinite, a line for each kind of thing that left."""
    found: dict[What, set[str]] = defaultdict(set)
    for entry in bare:
        why = UNPROVED[entry.guarantee]
        found[entry.what].add(f"{why} ({entry.reason})")
    return tuple(f"{WHAT[what]}: {'; '.join(sorted(why))}" for what, why in sorted(found.items()))


def _recipients(entries: list[Release]) -> dict[What, str]:
    seen: dict[What, set[SeenBy]] = defaultdict(set)
    for entry in entries:
        seen[entry.what].add(entry.seen_by)
    return {what: "; ".join(TO[by] for by in sorted(whom)) for what, whom in seen.items()}


def _exposures(cell: Cell) -> tuple[tuple[str, float], ...]:
    for event in reversed(cell.of("round")):
        found = [(text, float(event[key])) for key, text in EXPOSURES.items() if key in event]
        if found:
            return tuple(found)
    return ()


def _stops(events: list[Event]) -> tuple[str, ...]:
    """One line for all clients that abstained in the same rounds."""
    rounds: dict[int, list[int]] = defaultdict(list)
    for event in events:
        if event.get("abstained"):
            rounds[event["client"]].append(event["round"])
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for client, when in rounds.items():
        alike[tuple(when)].append(client)
    return tuple(
        f"client {spans(clients)} in round {spans(when)}" for when, clients in alike.items()
    )

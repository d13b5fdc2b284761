"""`fedkd verify`: does what a deployed run says of itself agree with what its clients have signed?

The chain shows that no line was changed since; signatures, that each answer is its client's and was
given to that question; a client's own copy, that none of its answers was left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from clients.signing import COPY
from fedkd import payload
from fedkd.errors import FedkdError
from fedkd.exchange.consensus import Consensus
from fedkd.transcript import Statement, digest, read, statement_of
from scenarios.deploy.folder import server_settings
from scenarios.deploy.runs import Run
from scenarios.deploy.verify_model import Cell, answers_of_model
from server import checkpoint
from server.events import read as read_events
from server.hearing import Sizes
from server.rounds import POOL
from server.telling import told
from server.transcript import TRANSCRIPT, member, signed_by

Keys = Mapping[int, list[ec.EllipticCurvePublicKey]]


class Check(NamedTuple):
    """One question, and what was found; `ok` is None where there was nothing to look at."""

    what: str
    ok: bool | None
    said: str


def verify(folder: Path, keys: Path | None, state: Path | None) -> Iterator[Check]:
    """Look at every seed of a run; a check that fails ends those of its seed.

    Args: folder: of a deployed run; keys: a server's folder, whose nodes/ has the clients' keys,
        also former ones; by default that in which the run lies; state: of a client that was there.
    Raises: FedkdError for a folder that is no deployed run's, or has no keys.
    """
    run = Run(folder)
    if not (folder / "scenario.toml").exists():
        raise FedkdError("not a run folder: no scenario.toml in it", value=str(folder))
    server = folder.resolve().parents[2] if keys is None else keys
    try:
        known = keys_of(server)
    except FedkdError as error:
        raise FedkdError(
            f"whose keys are the clients'? {error}", fix="--keys FOLDER/server of the deployment"
        ) from None
    for seed in run.scenario.seeds:
        cell = run.cell(seed)
        if not (cell / TRANSCRIPT).exists():
            raise FedkdError(
                "no transcript: deployed runs keep one, simulations do not", value=str(cell)
            )
        yield from _checks(run, seed, known, state)


def keys_of(server: Path) -> Keys:
    """The public keys of each seat, present and former."""
    settings = server_settings(server)
    found: dict[int, list[ec.EllipticCurvePublicKey]] = {}
    for seat, name in enumerate(settings.clients):
        paths = [server / f"nodes/{name}.pub", *(server / "nodes/revoked").glob(f"{name}.*pub")]
        found[seat] = [member(seat, path.read_text()).key for path in paths if path.exists()]
    return found


def _checks(run: Run, seed: int, keys: Keys, state: Path | None) -> Iterator[Check]:
    where = f"seed {seed}: "
    try:
        entries = list(read(run.cell(seed) / TRANSCRIPT))
        statements = [statement_of(entry) for entry in entries]
    except FedkdError as error:
        yield Check(f"{where}chain", False, str(error))
        return
    yield Check(f"{where}chain", True, f"{len(entries)} lines hang together")
    cell = Cell(run.cell(seed), seed, run.scenario, entries, statements)
    looks: list[tuple[str, Callable[[], tuple[bool | None, str]]]] = [
        ("signatures", lambda: _signatures(cell, keys)),
        ("one run", lambda: _one_run(cell)),
        ("rounds", lambda: _rounds(cell)),
        ("questions", lambda: _questions(cell)),
        ("proxy set", lambda: _pool(cell)),
        ("consensus", lambda: _consensus(cell)),
    ]
    if state is not None:
        looks.append(("client's copy", lambda: _copy(cell, state)))
        looks.append(("model", lambda: answers_of_model(cell, state)))
    for what, look in looks:
        ok, said = look()
        yield Check(where + what, ok, said)
        if ok is False:
            return


def _signatures(cell: Cell, keys: Keys) -> tuple[bool, str]:
    for number, (entry, one) in enumerate(zip(cell.entries, cell.statements, strict=True), 1):
        signature = bytes.fromhex(str(entry.get("signature", "")))
        if not any(signed_by(key, one, signature) for key in keys.get(one.client, ())):
            return False, f"line {number}: no key of client {one.client} has signed it"
    seats = {one.client for one in cell.statements}
    return True, f"of {len(seats)} clients, all by their keys"


def _one_run(cell: Cell) -> tuple[bool, str]:
    name = (cell.folder / "name").read_text()
    scenario = digest(cell.scenario.model_dump_json().encode())
    for number, one in enumerate(cell.statements, 1):
        for what, found, expected in (
            ("run", one.job, name),
            ("seed", one.seed, cell.seed),
            ("scenario", one.scenario, scenario),
        ):
            if found != expected:
                return False, f"line {number} is of another {what} than this folder"
    return True, "name, seed and scenario are those that the clients have signed"


def _rounds(cell: Cell) -> tuple[bool, str]:
    """Whom the event log counts, in which round, with how many bytes."""
    sent: dict[tuple[int, int], dict[Statement, int]] = {}
    for entry, one in zip(cell.entries, cell.statements, strict=True):
        if one.step in ("train", "query.keys", "query.reveal"):
            sent.setdefault((one.round, one.client), {})[one] = entry["bytes"]
    steps = {(one.round, one.client, one.step) for one in cell.statements}
    counted = 0
    for event in read_events(cell.folder / "events.jsonl"):
        if event["event"] != "client" or "train_samples" not in event:
            continue
        place = (event["round"], event["client"])
        if place not in sent:
            return False, f"round {place[0]} counts client {place[1]}, which signed nothing there"
        n_bytes = sum(sent[place].values())
        if n_bytes != event["bytes_up"]:
            return False, (
                f"round {place[0]} counts {event['bytes_up']} bytes of client {place[1]}, which "
                f"signed {n_bytes}"
            )
        if "distill_samples" in event and (*place, "evaluate") not in steps:
            return False, f"round {place[0]}: client {place[1]} signed no answer to the consensus"
        counted += 1
    return True, f"{counted} answers are counted, with the bytes that were signed"


def _questions(cell: Cell) -> tuple[bool, str]:
    """Whether all were asked the same in a step; a round that was repeated may ask anew."""
    times = Counter((one.round, one.step, one.client) for one in cell.statements)
    repeated = {round_ for (round_, _, _), n in times.items() if n > 1}
    asked: dict[tuple[int, str], Statement] = {}
    for one in cell.statements:
        if one.round in repeated or one.step not in ("train", "evaluate"):
            continue
        first = asked.setdefault((one.round, one.step), one)
        if (first.asked, first.pool) != (one.asked, one.pool):
            return False, (
                f"round {one.round}, {one.step}: clients {first.client} and {one.client} were not "
                "sent the same"
            )
    more = f"; {len(repeated)} rounds were repeated, and are not compared" if repeated else ""
    return True, f"in each step all clients were sent the same{more}"


def _pool(cell: Cell) -> tuple[bool | None, str]:
    pools = {one.pool for one in cell.statements if one.pool}
    path = cell.folder / POOL
    if not pools or not path.exists():
        return None, "the run has none"
    if pools != {digest(path.read_bytes())}:
        return False, f"{POOL} is not what the clients have answered for"
    return True, f"{POOL} is what the clients have answered for"


def _consensus(cell: Cell) -> tuple[bool | None, str]:
    """The newest one, where it is sent as it is."""
    saved = checkpoint.latest(cell.folder / "checkpoints")
    plain = cell.scenario.coding_down is None and cell.scenario.method.exchange == "soft-labels"
    if saved is None or not plain:
        return None, "not looked at: none is kept as it was sent"
    heard = {
        one.asked for one in cell.statements if (one.round, one.step) == (saved.round, "evaluate")
    }
    pool = payload.decode_pool((cell.folder / POOL).read_bytes())
    positions = pool.x.shape[3] if pool.x.dtype == "int16" else 1
    consensus = Consensus(saved.arrays["ids"], saved.arrays["values"])
    sizes = Sizes(len(pool.x) * positions, consensus.values.shape[1], positions)
    data, _ = told(cell.scenario, cell.seed, saved.round, consensus, sizes)
    if digest(data or b"") not in heard:
        return False, f"that of round {saved.round} is not what the clients learnt from"
    return True, f"that of round {saved.round} is what the clients learnt from"


def _copy(cell: Cell, state: Path) -> tuple[bool, str]:
    """What the client has signed of this run must be there."""
    path = state / COPY
    if not path.exists():
        raise FedkdError("no file of what a client has signed", value=str(path))
    own = [statement_of(json.loads(line)) for line in path.read_text().splitlines()]
    job = cell.statements[0].job if cell.statements else (cell.folder / "name").read_text()
    own = [one for one in own if (one.job, one.seed) == (job, cell.seed)]
    there = set(cell.statements)
    missing = [one for one in own if one not in there]
    if missing:
        first = missing[0]
        return False, (
            f"{len(missing)} of {len(set(own))} answers that the client signed are not in it, lost "
            f"on the way or left out; the first: round {first.round}, {first.step}"
        )
    return True, f"all {len(set(own))} answers that the client signed are in it"

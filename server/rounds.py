"""The server's work, round by round: ask, check, combine, tell, measure, remember."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedkd import payload
from fedkd.errors import PayloadError
from fedkd.files import write
from fedkd.rng import stream
from privacy.ledger import Ledger
from server import attendance, checkpoint, condense, measures
from server.attendance import Unheard
from server.calls import Read, Reply, ask, belated, payload_of
from server.checkpoint import Checkpoint
from server.events import EventLog
from server.exchanges import Exchange, exchange_of
from server.job import Job, Roster
from server.recorder import Recorder
from server.setup import set_up

Report = dict[str, Any]
POOL = "pool.safetensors"
"""In the folder of a deployed run: the proxy set, since who gave to it may have left."""
UNRECORDED = "audit_mb is used up: neither this round nor any later one is recorded"
ABSTAINED = (
    "every client that was heard abstained: it has used up its budget, or the rounds that its "
    "noise was calibrated for"
)


def run(
    grid: Grid,
    job: Job,
    log: EventLog,
    ledger: Ledger,
    recorder: Recorder,
    checkpoints: Path | None,
) -> None:
    """Every round of a job; from the newest checkpoint on, if there is one.

    A round in which too few clients are heard is repeated; who has answered in it answers the same.
    Raises: FedkdError where that does not help; the run can be resumed.
    """
    saved = checkpoint.latest(checkpoints) if checkpoints else None
    log.cut(saved.note["events_bytes"] if saved else 0)
    recorder.cut(saved.round if saved else 0)
    kept = checkpoints.parent / POOL if checkpoints and job.seats is not None else None
    roster = set_up(grid, job, EventLog(None) if saved else log, kept)
    if roster.packed is not None:
        recorder.pool(roster.packed)
        if kept is not None and not kept.exists():
            write(kept, bytes(roster.packed))
    exchange = exchange_of(job, roster, ledger, recorder)
    if saved:
        exchange.restore(saved.arrays)
        roster.holders.update(saved.note["holders"])
    late: dict[str, int] = {}
    # Where no node can leave, what failed once would only fail again.
    repeats = 0 if attendance.steady(grid) else job.scenario.attendance.repeats
    for round_ in range(saved.round + 1 if saved else 1, job.scenario.training.rounds + 1):
        for again in range(repeats, -1, -1):
            try:
                needed = attendance.wait_for(grid, job, roster, log, round_)
                play(grid, job, log, roster, exchange, round_, needed, late)
                break
            except Unheard as missing:
                if not again:
                    raise
                log.emit("repeated", round=round_, reason=str(missing), left=again)
        if recorder.finish():
            log.emit("unrecorded", round=round_, note=UNRECORDED)
        if checkpoints:
            log.sync()
            note = {"events_bytes": log.size(), "holders": sorted(roster.holders)}
            checkpoint.save(checkpoints, Checkpoint(round_, note, exchange.arrays()))


def play(
    grid: Grid,
    job: Job,
    log: EventLog,
    roster: Roster,
    exchange: Exchange,
    round_: int,
    needed: int,
    late: dict[str, int],
) -> None:
    """One round: `train`, then `evaluate`; one event for each who takes part and one for all.

    Where there is nothing to learn from the others and nothing to measure, `evaluate` is left out.
    Who takes part for the first time gets the proxy pool before that.
    Args: needed: how many clients must be heard; late: messages of the round before whose answers
        may still come, by id, with their client; replaced by this round's.
    Raises: Unheard where fewer answer one of the two steps. To abstain is an answer.
    """
    start = time.perf_counter()
    timeout_s = job.scenario.training.timeout_s
    nodes = {client: roster.nodes[client] for client in participants(job, roster, round_)}
    reports: dict[int, Report] = {client: {} for client in nodes}
    failures: list[str] = []
    heard: set[int] = set()
    up = down = pool = 0

    def refuse(step: str, client: int, reason: str) -> None:
        failures.append(reason)
        roster.holders.discard(client)  # it may have lost everything: let it have the pool again
        log.emit("refused", round=round_, client=client, step=step, reason=reason)

    def count(client: int, sent: payload.Bytes | None, n_bytes: int) -> None:
        nonlocal up, down
        up += n_bytes
        down += _size(sent)
        reports[client]["bytes_up"] = reports[client].get("bytes_up", 0) + n_bytes

    def talk(
        name: str,
        data: payload.Bytes | None,
        read: Callable[[int, payload.Bytes], Read],
        clients: Collection[int] | None = None,
    ) -> dict[int, Read]:
        asked = nodes if clients is None else {client: nodes[client] for client in clients}
        content = job.content(round_, roster.digest, data)
        found: dict[int, Read] = {}
        for reply in ask(grid, asked, content, f"query.{name}", timeout_s):
            got = payload_of(reply.content)
            count(reply.client, data, _size(got))
            try:
                if got is None:
                    raise PayloadError(f"no reply: {reply.failure}")
                found[reply.client] = read(reply.client, got)
            except PayloadError as error:
                refuse(name, reply.client, str(error))
        return found

    if roster.packed is not None:
        newcomers = {c: node for c, node in nodes.items() if c not in roster.holders}
        content = job.content(0, roster.digest, roster.packed)
        for reply in ask(grid, newcomers, content, "query.pool", timeout_s):
            pool += len(roster.packed)
            if reply.failure:
                refuse("pool", reply.client, f"did not take the proxy pool: {reply.failure}")
                del nodes[reply.client]
            else:
                roster.holders.add(reply.client)

    question = exchange.ask(round_, talk)
    content = job.content(round_, roster.digest, question)
    sizes = exchange.sums if getattr(grid, "condenses", False) else None
    if sizes is not None:
        condense.ask(content, sizes)
    summed: set[int] = set()
    silent: dict[str, int] = {}
    for reply in ask(grid, nodes, content, "train", timeout_s, silent):
        data = payload_of(reply.content)
        found = condense.heard(reply.content) if sizes is not None else None
        n_bytes = found[condense.BYTES] if found else _size(data)
        count(reply.client, question, n_bytes)
        try:
            reports[reply.client] |= _metrics(reply)
            if found is not None:
                if data is not None:
                    summed.update(exchange.hear_sum(round_, data))
                if reply.client not in summed:
                    raise PayloadError("its answer is in a sum that was not taken")
                reports[reply.client] |= found
            elif "abstained" not in reports[reply.client]:
                reports[reply.client] |= exchange.hear(round_, reply.client, data)
            heard.add(reply.client)
        except PayloadError as error:
            refuse("train", reply.client, str(error))

    if job.scenario.attendance.late == "use":
        for reply in belated(grid, late):
            why = "is heard in this round" if reply.client in heard else None
            try:
                if why is None:
                    exchange.hear(round_ - 1, reply.client, payload_of(reply.content))
            except PayloadError as error:
                why = str(error)
            log.emit("late", round=round_, client=reply.client, used=why is None, reason=why)
        late.clear()
        late |= silent
    if len(heard) < needed:
        raise Unheard(round_, failures, len(heard), needed)

    verdict, said = exchange.tell(round_, talk)
    if all("abstained" in reports[client] for client in heard):
        said["note"] = ABSTAINED
    content = job.content(round_, roster.digest, verdict)
    goes_on = verdict is not None or job.scenario.measures(round_)
    heard.clear()
    for reply in ask(grid, nodes if goes_on else {}, content, "evaluate", timeout_s):
        down += _size(verdict)
        try:
            reports[reply.client] |= _metrics(reply)
            heard.add(reply.client)
        except PayloadError as error:
            refuse("evaluate", reply.client, str(error))
    if goes_on and len(heard) < needed:
        raise Unheard(round_, failures, len(heard), needed)
    liars = job.scenario.hostile.clients(job.n_clients, job.seed)
    for client, report in reports.items():
        log.emit("client", round=round_, client=client, **report)
    log.emit(
        "round",
        round=round_,
        n_clients=len(reports),
        bytes_up=up,
        bytes_down=down,
        bytes_pool=pool,
        n_abstained=sum("abstained" in report for report in reports.values()),
        **said,
        **measures.over_clients([r for c, r in reports.items() if c not in liars]),
        n_learnt=sum(
            int(report.get(f"{phase}_samples", 0))
            for report in reports.values()
            for phase in ("train", "distill")
        ),
        seconds=time.perf_counter() - start,
    )


def participants(job: Job, roster: Roster, round_: int) -> list[int]:
    """Who takes part, drawn from the sorted partition ids; at least one."""
    clients = roster.clients
    n_taking_part = job.scenario.training.taking_part(len(clients))
    draws = stream(job.seed, "server", round_, purpose="participants")
    return sorted(clients[i] for i in draws.choice(len(clients), n_taking_part, replace=False))


def _size(data: payload.Bytes | None) -> int:
    return 0 if data is None else len(data)


def _metrics(reply: Reply) -> Report:
    """What the client reports about itself. Raises: PayloadError if it failed instead."""
    if reply.content is None:
        raise PayloadError(f"no reply: {reply.failure}")
    if "metrics" not in reply.content.metric_records:
        raise PayloadError("a reply without metrics")
    return dict(reply.content.metric_records["metrics"])

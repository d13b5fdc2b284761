"""Who is there: nodes are gathered, greeted, bound to their seats; they leave and come back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from flwr.serverapp import Grid

from fedkd import payload
from fedkd.config import Scenario
from fedkd.errors import FedkdError, PayloadError
from fedkd.models.zoo import Shape
from server.calls import POLL_S, ask, payload_of
from server.events import EventLog
from server.job import Job, Roster

HELLO_TIMEOUT_S = 600.0
LOOK_S = 0.5
"""Between two looks at a grid that others carry; one of ours has all its nodes at once."""

Greeted = dict[int, tuple[int, payload.Hello]]
"""Node id and hello, by client."""


class Kind(NamedTuple):
    """Of samples: clients of one run hold one kind."""

    shape: Shape
    dtype: torch.dtype
    n_classes: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} of {self.shape}, {self.n_classes} classes"


def kind_of(hello: payload.Hello) -> Kind:
    """What a client says that it holds."""
    channels, height, width = hello.contribution.shape[1:]
    dtype = torch.from_numpy(hello.contribution).dtype
    return Kind((channels, height, width), dtype, hello.n_classes)


class Unheard(FedkdError):
    """Too few clients got through a round; it can be repeated."""

    def __init__(self, round_: int, failures: Sequence[str], n_heard: int, needed: int) -> None:
        whom = f"no client got through round {round_}"
        if n_heard:
            whom = f"{n_heard} of {needed} clients got through round {round_}"
        super().__init__(f"{whom}; the first said: {failures[0]}" if failures else whom)
        self.n_heard, self.needed = n_heard, needed


def gather(grid: Grid, n_clients: int, scenario: Scenario) -> Sequence[int]:
    """The node ids, once all are there; after `attendance.gather_s`, if there are enough.

    Raises: FedkdError for fewer than are needed, or more nodes than there are clients.
    """
    deadline = time.monotonic() + scenario.attendance.gather_s
    while len(nodes := _listed(grid)) < n_clients and time.monotonic() < deadline:
        time.sleep(POLL_S if isinstance(nodes, range) else LOOK_S)
    if len(nodes) > n_clients:
        raise FedkdError(
            "the scenario and the grid do not have the same number of clients",
            value=f"{n_clients} clients, {len(nodes)} nodes",
            fix="set partition.clients, or start one node a client "
            f'(flwr run: --federation-config "num-supernodes={n_clients}")',
        )
    require(len(nodes), n_clients, scenario)
    return nodes


def require(n_there: int, n_clients: int, scenario: Scenario, reasons: Sequence[str] = ()) -> None:
    """Raises: FedkdError unless so many clients are enough to begin.

    All are needed unless `attendance.quorum` says how many are enough.
    Args: reasons: why others that are there may not take part.
    """
    rule = scenario.attendance
    needed = rule.needed(n_clients) if rule.quorum else n_clients
    if n_there < needed:
        why = f"; the first that was refused: {reasons[0]}" if reasons else ""
        raise FedkdError(
            f"too few clients are there to begin{why}",
            value=f"{n_there} of {n_clients}",
            allowed=f"{needed} or more",
            fix="start the others; or set attendance.quorum, attendance.gather_s or "
            f'partition.clients (flwr run: --federation-config "num-supernodes={n_clients}")',
        )


class Met(NamedTuple):
    """Who was greeted; why others may not take part, and who was lost on the way, by node id."""

    greeted: Greeted
    refused: dict[int, str]
    lost: dict[int, str]


def assemble(grid: Grid, ids: Sequence[int], job: Job, log: EventLog) -> Greeted:
    """Greet the nodes that are there to begin, and whoever comes while some have not answered.

    Who was lost on the way (a server that is restarted loses sight of its clients) is asked again,
    for at most `attendance.gather_s`. Who holds another kind of samples than most is left out.
    Raises: FedkdError if fewer clients than are needed may take part.
    """
    deadline = time.monotonic() + job.scenario.attendance.gather_s
    met = Met({}, {}, {})
    while True:
        known = {node for node, _ in met.greeted.values()} | met.refused.keys()
        new = [node for node in ids if node not in known]
        met = greet(grid, new, job, log, HELLO_TIMEOUT_S, met)
        whole = not met.lost and len(ids) >= job.n_clients
        if whole or steady(grid) or time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
        ids = _listed(grid)
    kinds = Counter(kind_of(hello) for _, hello in met.greeted.values())
    usual = max(kinds, key=kinds.__getitem__, default=None)  # of equals that of the first client
    reasons = [*met.refused.values(), *met.lost.values()]
    for client, (_, hello) in list(met.greeted.items()):
        if (kind := kind_of(hello)) != usual:
            del met.greeted[client]
            reasons.append(f"holds other samples: {kind}, not {usual}")
            log.emit("refused", round=0, client=client, step="hello", reason=reasons[-1])
    require(len(met.greeted), job.n_clients, job.scenario, reasons)
    return met.greeted


def greet(
    grid: Grid, ids: Sequence[int], job: Job, log: EventLog, timeout_s: float, before: Met
) -> Met:
    """Ask nodes who they are; by client, ascending. Who may not take part is logged and left out.

    A node speaks for its own seat only, and one node for a client: the first by node id.
    Args: before: what others said before them.
    """
    greeted, refused, lost = dict(before.greeted), dict(before.refused), dict[int, str]()
    content, seats = job.content(0), job.seats
    for reply in ask(grid, {node: node for node in ids}, content, "query.hello", timeout_s):
        node = reply.client
        client = -1 if seats is None else seats.get(node, -1)
        try:
            data = payload_of(reply.content)
            if data is None:
                raise PayloadError(f"no hello: {reply.failure}")
            hello = payload.decode_hello(data)
            if seats is not None and client != hello.client:
                raise PayloadError(
                    f"node {node} speaks for a client that is not its own",
                    value=hello.client,
                    allowed=str(seats.get(node, "none: the node has no seat")),
                )
            if hello.client in greeted:
                raise PayloadError("two nodes speak for one client", value=hello.client)
            most = job.scenario.limits.contributed
            if most is not None and len(hello.contribution) > most:
                raise PayloadError(
                    "gives more records to the proxy set than limits.contributed allows",
                    value=len(hello.contribution),
                    allowed=str(most),
                )
            greeted[hello.client] = (node, hello)
        except PayloadError as error:
            (lost if reply.lost else refused)[node] = str(error)
            if before.lost.get(node) != str(error):  # not once a look
                log.emit("refused", round=0, client=client, step="hello", reason=str(error))
    return Met(dict(sorted(greeted.items())), refused, lost)


def look(grid: Grid, job: Job, roster: Roster, log: EventLog, round_: int) -> None:
    """See who is there before a round: forget who has left, greet who has come or come back.

    Whoever comes must hold the same kind of samples; what it would give to the pool is not taken,
    since the pool is what it was when the run began.
    """
    nodes = roster.nodes
    if steady(grid) or isinstance(nodes, range):
        return
    listed = _listed(grid)
    there, known = set(listed), set(nodes.values())
    for client in [client for client, node in nodes.items() if node not in there]:
        del nodes[client]
        log.emit("left", round=round_, client=client)
    new = [node for node in listed if node not in known]
    timeout_s = min(job.scenario.training.timeout_s, HELLO_TIMEOUT_S)
    met = greet(grid, new, job, log, timeout_s, Met({}, {}, {}))
    for client, (node, hello) in met.greeted.items():
        kind, taken = kind_of(hello), client in nodes
        if taken or kind != Kind(roster.shape, roster.dtype, roster.n_classes):
            reason = "another node speaks for it" if taken else f"holds other samples: {kind}"
            log.emit("refused", round=round_, client=client, step="hello", reason=reason)
        else:
            nodes[client] = node
            log.emit("joined", round=round_, client=client)


def wait_for(grid: Grid, job: Job, roster: Roster, log: EventLog, round_: int) -> int:
    """Look until enough clients are there, for at most `attendance.gather_s`.

    Returns: how many a round needs.
    Raises: Unheard if too few come.
    """
    rule = job.scenario.attendance
    needed = rule.needed(job.scenario.training.taking_part(job.n_clients))
    deadline = time.monotonic() + rule.gather_s
    while True:
        look(grid, job, roster, log, round_)
        if len(roster.nodes) >= needed:
            return needed
        if time.monotonic() > deadline:
            raise Unheard(round_, [f"only {len(roster.nodes)} clients are there"], 0, needed)
        time.sleep(LOOK_S)


def steady(grid: Grid) -> bool:
    """Whether nodes neither come nor go, as on the grids of our own."""
    return isinstance(grid.get_node_ids(), range)


def _listed(grid: Grid) -> Sequence[int]:
    """The node ids, ascending; a range stays one."""
    nodes = grid.get_node_ids()
    return nodes if isinstance(nodes, range) else sorted(nodes)

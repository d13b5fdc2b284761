"""Before the first round: who is there, and what is the proxy set?"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedkd import payload
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.errors import FedkdError
from fedkd.models.zoo import Shape
from server.calls import POLL_S, ask, record_of
from server.events import EventLog

HELLO_TIMEOUT_S = 600.0
GATHER_TIMEOUT_S = 60.0
MOST_SHOWN = 1000
"""Clients whose holdings go into the event log, for the report; a population is not listed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run is asked to do."""

    scenario: Scenario
    seed: int
    state_folder: str
    """Where simulated clients keep their state; clients with a folder of their own ignore it."""

    @property
    def world(self) -> Federation:
        """Who holds what: a simulation's server measures by it, and never learns from it."""
        return self.scenario.world(self.seed)

    def content(self, round_: int, pool: str = "", data: payload.Bytes | None = None) -> RecordDict:
        """The content of a message: the scenario, the round, the pool's digest and a payload."""
        config = ConfigRecord(
            {
                "scenario": self.scenario.model_dump_json(),
                "seed": self.seed,
                "round": round_,
                "state-folder": self.state_folder,
                "pool": pool,
            }
        )
        content = RecordDict({"config": config})
        if data is not None:
            content["payload"] = record_of(data)
        return content


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The clients of a run and their proxy set."""

    nodes: Mapping[int, int] | range
    """Node id by client: `nodes[client]`."""
    n_classes: int
    shape: Shape
    """Of one sample: channels, height, width."""
    pool: payload.Pool | None
    truth: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    """Labels [n_samples] and strata [records] of the proxy set, to measure by; None if unknown."""
    packed: payload.Bytes | None
    """The pool as it is sent."""
    digest: str
    holders: set[int]
    """Clients that have the pool: it goes to each once, when it first takes part."""

    @property
    def positions(self) -> int:
        """How many samples a proxy record is: 1 image, or L tokens."""
        text = self.pool is not None and self.pool.x.dtype == np.int16
        return self.shape[2] if text else 1

    @property
    def clients(self) -> Sequence[int]:
        """All clients, ascending; never a list of a million."""
        return range(len(self.nodes)) if isinstance(self.nodes, range) else sorted(self.nodes)


def set_up(grid: Grid, job: Job, log: EventLog) -> Roster:
    """Find out who is there, and make the proxy pool.

    Nodes are greeted where only they know which client they are, or what it gives to the pool;
    a grid of our own names its nodes in partition order, and then nobody is asked for nothing.
    Raises: FedkdError if a node does not answer, or two speak for one client.
    """
    world = job.world
    ids = _gather(grid, world.n_clients)
    hellos: list[payload.Hello] = []
    nodes: Mapping[int, int] | range
    if isinstance(ids, range) and not _gives(job):
        nodes = ids
        channels, height, width = world.train.x.shape[1:]
        shape, n_classes = (channels, height, width), world.train.n_classes
    else:
        hellos, nodes = _greet(grid, job, ids)
        n_classes = hellos[0].n_classes
        channels, height, width = hellos[0].contribution.shape[1:]
        shape = (channels, height, width)
    for client in range(min(world.n_clients, MOST_SHOWN)):
        log.emit(
            "hello",
            client=client,
            n_private=len(world.private[client]),
            contributed=len(world.contributed[client]),
            class_counts=world.counts(client).tolist(),
        )
    if not job.scenario.uses_pool:
        pool, truth, packed, digest = None, None, None, ""
    else:
        pool, found = _pool(world, hellos), world.proxy_truth()
        truth = None if found is None else (found[0].ravel(), found[1])
        packed = payload.encode_pool(pool)
        digest = hashlib.sha256(packed).hexdigest()
        log.emit(
            "pool",
            n_samples=len(pool.x),
            n_contributed=int((pool.contributor >= 0).sum()),
            class_counts=None
            if truth is None
            else np.bincount(truth[1], minlength=world.train.n_strata).tolist(),
            bytes_up=sum(hello.contribution.nbytes for hello in hellos),
            bytes_each=len(packed),
        )
    return Roster(
        nodes=nodes,
        n_classes=n_classes,
        shape=shape,
        pool=pool,
        truth=truth,
        packed=packed,
        digest=digest,
        holders=set(),
    )


def _gives(job: Job) -> bool:
    """Whether clients give samples to the pool."""
    return job.scenario.uses_pool and job.world.public_x is None


def _greet(grid: Grid, job: Job, ids: Sequence[int]) -> tuple[list[payload.Hello], dict[int, int]]:
    """The hellos in partition order, and the node of each client."""
    by_node = {node: node for node in ids}
    hellos: dict[int, payload.Hello] = {}
    nodes: dict[int, int] = {}
    for reply in ask(grid, by_node, job.content(0), "query.hello", HELLO_TIMEOUT_S):
        if reply.content is None:
            raise FedkdError(f"a node did not say hello: {reply.failure}")
        hello = payload.decode_hello(reply.content.array_records["payload"]["bytes"].data)
        if hello.client in hellos:
            raise FedkdError("two nodes speak for one client", value=hello.client)
        hellos[hello.client], nodes[hello.client] = hello, reply.client
    _check_alike(list(hellos.values()))
    return [hellos[client] for client in sorted(hellos)], dict(sorted(nodes.items()))


def _check_alike(hellos: list[payload.Hello]) -> None:
    """Raises: FedkdError if the clients do not hold the same kind of samples."""
    kinds = {(h.contribution.shape[1:], str(h.contribution.dtype), h.n_classes) for h in hellos}
    if len(kinds) > 1:
        raise FedkdError(
            "clients hold samples of different shape, type or number of classes",
            value=sorted(kinds),
            fix="give all clients data of one kind",
        )


def _gather(grid: Grid, n_clients: int) -> Sequence[int]:
    """The node ids, once all are there. Raises: FedkdError if it is not one node a client."""
    deadline = time.monotonic() + GATHER_TIMEOUT_S
    while len(nodes := _listed(grid)) < n_clients and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if len(nodes) != n_clients:
        raise FedkdError(
            "the scenario and the grid do not have the same number of clients",
            value=f"{n_clients} clients, {len(nodes)} nodes",
            fix="set partition.clients, or start one node a client "
            f'(flwr run: --federation-config "num-supernodes={n_clients}")',
        )
    return nodes


def _listed(grid: Grid) -> Sequence[int]:
    """The node ids, ascending; a range stays one."""
    nodes = grid.get_node_ids()
    return nodes if isinstance(nodes, range) else sorted(nodes)


def _pool(world: Federation, hellos: list[payload.Hello]) -> payload.Pool:
    """The proxy set: what the clients gave, or the scenario's public records."""
    if world.public_x is not None:
        contributor = np.full(len(world.public_x), -1, dtype=np.int32)
        return payload.Pool(world.public_x.numpy(), contributor)
    sizes = [len(hello.contribution) for hello in hellos]
    return payload.Pool(
        np.concatenate([hello.contribution for hello in hellos]),
        np.repeat([hello.client for hello in hellos], sizes).astype(np.int32),
    )

"""Before the first round: who is there, and what is the proxy set?"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedkd import payload
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from server.calls import POLL_S, ask
from server.events import EventLog

HELLO_TIMEOUT_S = 600.0
GATHER_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run is asked to do."""

    scenario: Scenario
    seed: int
    state_folder: str
    """Where simulated clients keep their state; clients with a folder of their own ignore it."""

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
            content["payload"] = ArrayRecord({"bytes": Array(data)})
        return content


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The clients of a run and their proxy set."""

    nodes: dict[int, int]
    """Node id by client."""
    class_counts: dict[int, NDArray[np.int64]]
    n_classes: int
    shape: tuple[int, int, int]
    """Of one sample: channels, height, width."""
    pool: payload.Pool | None
    labels: NDArray[np.int64] | None
    """True labels of the proxy set, to measure by; None where they mean nothing (foreign data)."""
    digest: str


def set_up(grid: Grid, job: Job, log: EventLog) -> Roster:
    """Greet every node, make the proxy pool and send it to every client.

    Raises: FedkdError if a node does not answer, or two speak for one client.
    """
    hellos, nodes = _greet(grid, job)
    for hello in hellos:
        log.emit(
            "hello",
            client=hello.client,
            n_private=hello.n_private,
            contributed=len(hello.contribution),
            class_counts=hello.class_counts.tolist(),
        )
    counts = {hello.client: hello.class_counts for hello in hellos}
    known: dict[str, Any] = {
        "nodes": nodes,
        "class_counts": counts,
        "n_classes": hellos[0].n_classes,
        "shape": hellos[0].contribution.shape[1:],
    }
    if not job.scenario.uses_pool:
        return Roster(**known, pool=None, labels=None, digest="")
    pool, labels = _pool(job, hellos)
    data = payload.encode_pool(pool)
    digest = hashlib.sha256(data.tobytes()).hexdigest()
    for reply in ask(grid, nodes, job.content(0, digest, data), "query.pool", HELLO_TIMEOUT_S):
        if reply.failure:
            raise FedkdError(f"client {reply.client} did not take the proxy pool: {reply.failure}")
    log.emit(
        "pool",
        n_samples=len(pool.x),
        n_contributed=int((pool.contributor >= 0).sum()),
        class_counts=None
        if labels is None
        else np.bincount(labels, minlength=hellos[0].n_classes).tolist(),
        bytes_up=sum(hello.contribution.nbytes for hello in hellos),
        bytes_down=len(data) * len(nodes),
    )
    return Roster(**known, pool=pool, labels=labels, digest=digest)


def _greet(grid: Grid, job: Job) -> tuple[list[payload.Hello], dict[int, int]]:
    """The hellos in partition order, and the node of each client."""
    by_node = {node: node for node in _gather(grid, job.scenario.world(job.seed).n_clients)}
    hellos: dict[int, payload.Hello] = {}
    nodes: dict[int, int] = {}
    for reply in ask(grid, by_node, job.content(0), "query.hello", HELLO_TIMEOUT_S):
        if reply.content is None:
            raise FedkdError(f"a node did not say hello: {reply.failure}")
        hello = payload.decode_hello(reply.content.array_records["payload"]["bytes"].numpy())
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


def _gather(grid: Grid, n_clients: int) -> list[int]:
    """The node ids, once all are there. Raises: FedkdError if it is not one node a client."""
    deadline = time.monotonic() + GATHER_TIMEOUT_S
    while len(nodes := sorted(grid.get_node_ids())) < n_clients and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if len(nodes) != n_clients:
        raise FedkdError(
            "the scenario and the grid do not have the same number of clients",
            value=f"{n_clients} clients, {len(nodes)} nodes",
            fix="set partition.clients, or start one node a client "
            f'(flwr run: --federation-config "num-supernodes={n_clients}")',
        )
    return nodes


def _pool(job: Job, hellos: list[payload.Hello]) -> tuple[payload.Pool, NDArray[np.int64] | None]:
    """The proxy set and its labels: what the clients gave, or the scenario's public samples."""
    world = job.scenario.world(job.seed)
    if world.public_x is not None:
        contributor = np.full(len(world.public_x), -1, dtype=np.int32)
        labels = None if world.public_y is None else world.public_y.numpy()
        return payload.Pool(world.public_x.numpy(), contributor), labels
    sizes = [len(hello.contribution) for hello in hellos]
    pool = payload.Pool(
        np.concatenate([hello.contribution for hello in hellos]),
        np.repeat([hello.client for hello in hellos], sizes).astype(np.int32),
    )
    return pool, np.concatenate([hello.labels for hello in hellos])

"""Before the first round: who is there, and what is the proxy set?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import Grid

from fedkd import payload
from fedkd.data.proxy import Foreign
from fedkd.transcript import digest as digest_of
from server import attendance
from server.attendance import Kind, kind_of
from server.events import EventLog
from server.job import Job, Roster

MOST_SHOWN = 1000
"""Clients whose holdings go into the event log, for the report; a population is not listed."""


def set_up(grid: Grid, job: Job, log: EventLog, kept: Path | None = None) -> Roster:
    """Find out who is there, and make the proxy pool.

    Nodes are greeted where only they know which client they are, or what it gives to the pool;
    a grid of our own names its nodes in partition order, and then nobody is asked for nothing.
    Args: kept: the pool of a run that goes on: who gave to it need not be there any more.
    Raises: FedkdError if fewer clients than are needed are there.
    """
    world = job.world
    nodes: dict[int, int] | range
    ids = attendance.gather(grid, job.n_clients, job.scenario)
    hellos: list[payload.Hello] = []
    if isinstance(ids, range) and world is not None and not _gives(job):
        nodes = ids
        channels, height, width = world.train.x.shape[1:]
        kind = Kind((channels, height, width), world.train.x.dtype, world.train.n_classes)
    else:
        greeted = attendance.assemble(grid, ids, job, log)
        nodes = {client: node for client, (node, _) in greeted.items()}
        hellos = [hello for _, hello in greeted.values()]
        kind = kind_of(hellos[0])
    _say_hello(job, hellos, log)
    pool, truth, packed, digest = None, None, None, ""
    if job.scenario.uses_pool:
        if kept is not None and kept.exists():
            packed = kept.read_bytes()
            pool = payload.decode_pool(packed)
        else:
            pool = _labelled(job, _pool(job, hellos, kind))
            packed = payload.encode_pool(pool)
        found = None if world is None else world.proxy_truth
        truth = None if found is None else (found[0].ravel(), found[1])
        digest = digest_of(packed)
        counts = (
            None
            if truth is None or world is None
            else np.bincount(truth[1], minlength=world.train.n_strata).tolist()
        )
        log.emit(
            "pool",
            n_samples=len(pool.x),
            n_contributed=int((pool.contributor >= 0).sum()),
            class_counts=counts,
            bytes_up=sum(hello.contribution.nbytes for hello in hellos),
            bytes_each=len(packed),
        )
    return Roster(
        nodes=nodes,
        n_classes=kind.n_classes,
        shape=kind.shape,
        dtype=kind.dtype,
        pool=pool,
        truth=truth,
        packed=packed,
        digest=digest,
        holders=set(),
    )


def _say_hello(job: Job, hellos: Sequence[payload.Hello], log: EventLog) -> None:
    """One event a client; what a client holds of each class is known of simulated ones only."""
    world = job.world
    if world is None:
        for hello in hellos[:MOST_SHOWN]:
            log.emit(
                "hello",
                client=hello.client,
                n_private=hello.n_private,
                contributed=len(hello.contribution),
            )
        return
    for client in range(min(world.n_clients, MOST_SHOWN)):
        log.emit(
            "hello",
            client=client,
            n_private=len(world.private[client]),
            contributed=len(world.contributed[client]),
            class_counts=world.counts(client).tolist(),
        )


def _gives(job: Job) -> bool:
    """Whether clients give samples to the pool."""
    return job.scenario.uses_pool and job.scenario.proxy.name == "contributed"


def _labelled(job: Job, pool: payload.Pool) -> payload.Pool:
    """With the true labels where clients begin by learning them."""
    if job.scenario.training.pretrain is None:
        return pool
    labels = None if job.world is None else job.world.public_y
    assert labels is not None  # the scenario was checked
    return pool._replace(labels=labels.numpy().astype(np.int32))


def _pool(job: Job, hellos: Sequence[payload.Hello], kind: Kind) -> payload.Pool:
    """The proxy set: what the clients gave, or the scenario's public records."""
    proxy, world = job.scenario.proxy, job.world
    if not _gives(job):
        if world is not None:
            assert world.public_x is not None  # the proxy is public or foreign
            x = world.public_x
        else:
            assert isinstance(proxy, Foreign)  # of `own` partitions nothing else is left
            text = kind.dtype == torch.int16
            x = proxy.images(kind.shape, job.seed, kind.n_classes if text else None)
        return payload.Pool(x.numpy(), np.full(len(x), -1, dtype=np.int32))
    sizes = [len(hello.contribution) for hello in hellos]
    return payload.Pool(
        np.concatenate([hello.contribution for hello in hellos]),
        np.repeat([hello.client for hello in hellos], sizes).astype(np.int32),
    )

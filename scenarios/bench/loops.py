"""The arithmetic of a work alone: no messages, no checks, no state kept. What a grid can reach.

Batches are slices of a permutation and memory is channels-last, as in `fedkd.training`. With
several processes each takes every so-many-th client, with one thread and glibc's memory kept
(`scenarios.memory`): the best plain loop that we know of.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.dataset import as_input
from fedkd.models import zoo
from fedkd.models.zoo import Classifier
from fedkd.rng import stream, torch_stream
from fedkd.training import EVALUATION_BATCH
from scenarios import memory
from scenarios.bench.clock import Clock
from scenarios.bench.work import BATCH, RATE, Work, read

Arrays = dict[str, NDArray[np.float32]]


class Parts(NamedTuple):
    """The arrays of a work's folder."""

    x: Tensor  # uint8 [clients, n, c, h, w]
    y: Tensor  # int64 [clients, n]
    pool: Tensor  # float32 [p, c, h, w]


def load(folder: Path) -> Parts:
    """The arrays of a work's folder; the pool is ready to be looked at."""
    with np.load(folder / "parts.npz") as arrays:
        x, y, pool = (torch.from_numpy(arrays[key]) for key in ("x", "y", "pool"))
    return Parts(x, y, as_input(pool).contiguous(memory_format=torch.channels_last))


def new_model(work: Work, parts: Parts) -> Classifier:
    """The work's model, as drawn from the work's seed."""
    channels, height, width = parts.x.shape[2:]
    draws = torch_stream(work.seed, "bench", purpose="init")
    return zoo.build(work.model, (channels, height, width), 10, draws)


def learn(model: Classifier, x: Tensor, y: Tensor, order: Tensor) -> None:
    """One epoch of SGD on samples x [n, c, h, w] and targets y [n, …], in the `order` [n]."""
    inputs = as_input(x).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for ids in torch.split(order, BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[ids]), y[ids]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def answer(model: Classifier, pool: Tensor) -> Tensor:
    """Soft labels [p, classes] of the proxy set."""
    blocks = [torch.softmax(model(block), dim=1) for block in torch.split(pool, EVALUATION_BATCH)]
    return torch.cat(blocks)


def play(work: Work, parts: Parts, clients: Sequence[int], round_: int, weights: Arrays) -> Arrays:
    """One round of these clients: the sums of their answers [p, classes], or of their weights."""
    model = new_model(work, parts)
    start = {name: torch.from_numpy(array) for name, array in weights.items()}
    total: dict[str, Tensor] = {}
    for client in clients:
        model.load_state_dict(start)  # copied: the model's memory stays channels-last
        draws = stream(work.seed, "bench", round_, client, "batches")
        order = torch.from_numpy(draws.permutation(parts.y.shape[1]))
        learn(model, parts.x[client], parts.y[client], order)
        said = model.state_dict()
        if not work.average:
            answers = answer(model, parts.pool)
            said = {"answers": answers}
            first = torch.arange(2 * BATCH)
            learn(model, parts.pool[first], answers[first], first)
        for name, values in said.items():
            total[name] = total[name] + values if name in total else values.clone()
    return {name: values.numpy() for name, values in total.items()}


def bare(folder: Path, n_processes: int) -> dict[str, Any]:
    """All rounds of a work; see `scenarios.bench.runs`."""
    clock = Clock()
    work, parts = read(folder), load(folder)
    weights = {name: w.numpy() for name, w in new_model(work, parts).state_dict().items()}
    clients = range(work.clients)
    if n_processes == 1:
        clock.tick()
        for round_ in range(1, work.rounds + 1):
            weights = _next(work, weights, [play(work, parts, clients, round_, weights)])
            clock.tick()
        return clock.report(work.clients)
    os.environ.update(memory.VARIABLES)  # read by the processes when they start
    context = multiprocessing.get_context("spawn")
    links: list[Connection] = []
    processes = []
    for share in range(n_processes):
        mine, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(folder, clients[share::n_processes], theirs), daemon=True
        )
        process.start()
        links.append(mine)
        processes.append(process)
    for link in links:
        link.recv()  # it has loaded its data
    clock.tick()
    for round_ in range(1, work.rounds + 1):
        for link in links:
            link.send((round_, weights))
        weights = _next(work, weights, [link.recv() for link in links])
        clock.tick()
    for link, process in zip(links, processes, strict=True):
        link.close()
        process.join()
    return clock.report(work.clients)


def _serve(folder: Path, clients: Sequence[int], link: Connection) -> None:
    torch.set_num_threads(1)
    work, parts = read(folder), load(folder)
    link.send(None)
    try:
        while True:
            round_, weights = link.recv()
            link.send(play(work, parts, clients, round_, weights))
    except EOFError:
        return


def _next(work: Work, weights: Arrays, sums: Sequence[Arrays]) -> Arrays:
    """The weights of the next round: the average, or the same ones if answers were added up."""
    if not work.average:
        return weights
    return {name: np.sum([part[name] for part in sums], axis=0) / work.clients for name in weights}

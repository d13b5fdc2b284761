"""Ray actors as workers: many machines, or GPUs shared in fractions.

Each content is put into Ray's object store once and fetched once by each machine. The clients'
folder must be one that all machines see.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

import clients
import fedkd
import privacy
import scenarios
import server
from fedkd.config import Grid
from fedkd.errors import FedkdError
from scenarios.grids.pool import PoolGrid, Worker, WorkerDied, run_on

ROOMS = (fedkd, privacy, clients, server, scenarios)


class Actor:
    """What runs in the actor's process: the nodes, and nothing else."""

    def __init__(self, app: str, n_clients: int) -> None:
        from scenarios.grids.nodes import Nodes, app_at

        self._nodes = Nodes(app_at(app), n_clients)

    def carry_out(self, metadata: Any, content: RecordDict) -> Message:
        """The reply to a message."""
        from flwr.app.message.message import make_message

        return self._nodes.carry_out(make_message(metadata, content))


class ActorsGrid(PoolGrid[Any]):
    """Carries messages out in Ray actors; a link is an actor's handle."""

    def __init__(self, app: str, n_clients: int, n_workers: int, settings: Grid) -> None:
        """Needs `ray.init` to have been called."""
        import ray

        self._ray = ray
        self._greeting = (app, n_clients)
        options = {"num_cpus": settings.client_cpus, "num_gpus": settings.client_gpus}
        self._make = ray.remote(Actor).options(**options)
        self._replies: dict[Any, list[Any]] = {}
        self._put: tuple[RecordDict | None, Any] = (None, None)
        super().__init__(n_clients, n_workers)

    def _start(self) -> Any:
        actor = self._make.remote(*self._greeting)
        self._replies[actor] = []
        return actor

    def _send(self, worker: Worker[Any], message: Message, *, new_content: bool) -> None:
        if self._put[0] is not message.content:
            self._put = (message.content, self._ray.put(message.content))
        reply = worker.link.carry_out.remote(message.metadata, self._put[1])
        self._replies[worker.link].append(reply)

    def _heard(self, timeout_s: float) -> Iterable[Worker[Any]]:
        oldest = {self._replies[w.link][0]: w for w in self._workers if self._replies[w.link]}
        if not oldest:
            return []
        ready, _ = self._ray.wait(
            list(oldest), num_returns=len(oldest), timeout=timeout_s, fetch_local=False
        )
        if not ready:
            return []
        return [oldest[reply] for reply in ready]

    def _receive(self, worker: Worker[Any]) -> Message:
        try:
            reply: Message = self._ray.get(self._replies[worker.link].pop(0))
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(str(error)) from None
        return reply

    def _end(self, link: Any) -> None:
        self._ray.kill(link)
        del self._replies[link]


def run(server_app: ServerApp, app: str, n_clients: int, settings: Grid, threads: int) -> None:
    """Run a ServerApp against the ClientApp at an address, on a Ray cluster.

    Attaches to `settings.address`, or starts Ray on this machine if that is empty; our own code is
    shipped to the other machines, which need the same Python, Ray and packages.
    Raises: FedkdError if Ray is not installed or the cluster is not there.
    """
    try:
        import ray
    except ImportError:
        raise FedkdError(
            "the ray grid needs Ray", fix='pip install "fedkd[ray]", or grid.name = "workers"'
        ) from None
    variables = {"OMP_NUM_THREADS": str(threads)}
    code: dict[str, Any] = {"env_vars": variables}
    if settings.address:
        code["py_modules"] = [str(Path(str(room.__file__)).parent) for room in ROOMS]
    else:
        variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Ray's notice about accelerators
        try:
            ray.init(
                address=settings.address or "local",
                runtime_env=code,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if not settings.address else None,
            )
        except ConnectionError:
            raise FedkdError(
                "no Ray cluster answers there",
                value=settings.address,
                fix="ray start --head, or leave grid.address empty",
            ) from None
        try:
            total = ray.cluster_resources()  # type: ignore[no-untyped-call]
            most = int(total.get("CPU", 0) // settings.client_cpus)
            if settings.client_gpus:
                most = min(most, int(total.get("GPU", 0) / settings.client_gpus))
            n_workers = min(settings.workers or most, n_clients)
            if n_workers < 1 or most < 1:
                raise FedkdError(
                    "the Ray cluster has no room for a worker",
                    value=f"{total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs",
                    fix="lower grid.client_cpus or grid.client_gpus",
                )
            run_on(ActorsGrid(app, n_clients, min(n_workers, most), settings), server_app)
        finally:
            ray.shutdown()

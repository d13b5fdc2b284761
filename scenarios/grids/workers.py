"""Worker processes on this machine, of one thread each: what many cores are for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from flwr.serverapp import ServerApp

from fedkd.config import Scenario
from fedkd.config_sections import Grid
from scenarios import memory
from scenarios.grids.carrier import Answer, Greeting
from scenarios.grids.dealer import Block
from scenarios.grids.pool import PoolGrid, Worker, WorkerDied, run_on


@dataclass(frozen=True)
class Link:
    """A process and the connection to it."""

    process: subprocess.Popen[bytes]
    connection: Connection


class WorkersGrid(PoolGrid[Link]):
    """Carries messages out in local processes (`scenarios.grids.worker`)."""

    def __init__(
        self, app: str, n_clients: int, n_workers: int, folder: Path, block: int, threads: int
    ) -> None:
        """As `PoolGrid`; `threads`: of each process."""
        super().__init__(app, n_clients, n_workers, folder, block)
        self._threads = threads

    def _start(self, greeting: Greeting) -> Link:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "scenarios.grids.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **process_variables(self._threads), **import_path()},
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the server alone, which ends its workers
            )
        link = Link(process, Connection(ours.detach()))
        with suppress(ConnectionError):
            link.connection.send(greeting)
        return link

    def _send(self, worker: Worker[Link], block: Block, *, new_content: bool) -> None:
        content = block[0].content if new_content else None
        with suppress(ConnectionError):
            worker.link.connection.send(([message.metadata for message in block], content))

    def _heard(self, timeout_s: float) -> Iterable[Worker[Link]]:
        ready = wait([worker.link.connection for worker in self._workers], timeout_s)
        return [worker for worker in self._workers if worker.link.connection in ready]

    def _welcome(self, worker: Worker[Link]) -> str:
        problem: str = _hear(worker)
        return problem

    def _receive(self, worker: Worker[Link]) -> Answer:
        answer: Answer = _hear(worker)
        return answer

    def _end(self, link: Link) -> None:
        link.connection.close()
        link.process.kill()
        link.process.wait()


def _hear(worker: Worker[Link]) -> Any:
    try:
        return worker.link.connection.recv()
    except (EOFError, ConnectionError):
        raise WorkerDied from None


def process_variables(threads: int) -> dict[str, str]:
    """What a worker's process has in its environment, here or under Ray."""
    return {**memory.VARIABLES, "OMP_NUM_THREADS": str(threads)}


def import_path() -> dict[str, str]:
    """The variable that lets another process of this machine import what this one can."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def n_processes(settings: Grid, n_clients: int) -> int:
    """How many workers share `n_clients`: what the settings say, or one a core."""
    return min(settings.workers or len(os.sched_getaffinity(0)), n_clients)


def run(server_app: ServerApp, app: str, n_clients: int, folder: Path, scenario: Scenario) -> None:
    """Run a ServerApp against the ClientApp at an address, in processes that share a folder."""
    n_workers, together = n_processes(scenario.grid, n_clients), scenario.at_once
    grid = WorkersGrid(app, n_clients, n_workers, folder, together, scenario.threads)
    run_on(grid, server_app)

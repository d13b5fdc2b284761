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

from flwr.app import Message
from flwr.serverapp import ServerApp

from scenarios.grids.pool import PoolGrid, Worker, WorkerDied, run_on

# glibc gives every large tensor back to the kernel and asks for it again; kept, a small CNN trains
# up to 1.5 times as fast. Read once, when a process starts.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclass(frozen=True)
class Link:
    """A process and the connection to it."""

    process: subprocess.Popen[bytes]
    connection: Connection


class WorkersGrid(PoolGrid[Link]):
    """Carries messages out in local processes (`scenarios.grids.worker`)."""

    def __init__(self, app: str, n_clients: int, n_workers: int, threads: int) -> None:
        """`app` is the ClientApp's address as "module:attribute"; its store must be a folder."""
        self._greeting = (app, n_clients)
        self._threads = threads
        super().__init__(n_clients, n_workers)

    def _start(self) -> Link:
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            **MALLOC,
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "scenarios.grids.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        connection = Connection(ours.detach())
        connection.send(self._greeting)
        return Link(process, connection)

    def _send(self, worker: Worker[Link], message: Message, *, new_content: bool) -> None:
        with suppress(ConnectionError):
            content = message.content if new_content else None
            worker.link.connection.send((message.metadata, content))

    def _heard(self, timeout_s: float) -> Iterable[Worker[Link]]:
        ready = wait([worker.link.connection for worker in self._workers], timeout_s)
        return [worker for worker in self._workers if worker.link.connection in ready]

    def _receive(self, worker: Worker[Link]) -> Message:
        try:
            reply: Message = worker.link.connection.recv()
        except (EOFError, ConnectionError):
            raise WorkerDied from None
        return reply

    def _end(self, link: Link) -> None:
        link.connection.close()
        link.process.kill()
        link.process.wait()


def run(server_app: ServerApp, app: str, n_clients: int, n_workers: int, threads: int) -> None:
    """Run a ServerApp against the ClientApp at an address, in `n_workers` processes."""
    run_on(WorkersGrid(app, n_clients, min(n_workers, n_clients), threads), server_app)

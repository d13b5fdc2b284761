"""Long-lived worker processes on this machine, one thread each: what many cores are for.

Each worker gets a content once and then only the addresses of the clients that it is for. Who did
longest last time goes first, to whichever worker is free, so the cores end a step together. Clients
keep their state in a folder, by step, so a worker that dies costs only the messages it held: they
go to a new one, and give the same bits.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp

from scenarios.grids.local import LocalGrid, serve

AHEAD = 2
"""Messages a worker may hold: one in work, one to go on with while its reply travels."""
LIVES = 3
"""How often a message may be with a worker that dies; then it fails like a client that crashed."""

# glibc gives every large tensor back to the kernel and asks for it again; kept, a small CNN trains
# up to 1.5 times as fast. Read once, when a process starts.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclass(eq=False)
class _Worker:
    """One process: what it holds, oldest first, and the content that it has."""

    process: subprocess.Popen[bytes]
    connection: Connection
    held: list[Message] = field(default_factory=list)
    content: RecordDict | None = None


class WorkersGrid(LocalGrid):
    """Carries messages out in `n_workers` processes."""

    def __init__(self, app: str, n_clients: int, n_workers: int, threads: int) -> None:
        """`app` is the ClientApp's address as "module:attribute"; its store must be a folder."""
        super().__init__(n_clients)
        self._greeting = (app, n_clients)
        self._threads = threads
        self._queue: list[Message] = []
        self._seconds: dict[tuple[int, str], float] = {}
        self._started: dict[str, float] = {}
        self._deaths: dict[str, int] = {}
        self._failed: list[Message] = []
        self._workers = [self._start() for _ in range(n_workers)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to free workers, longest first; the others wait."""
        pushed = list(messages)
        ids = [self._number(message) for message in pushed]
        self._queue += sorted(pushed, key=lambda m: -self._seconds.get(_kind(m), 0.0))
        for worker in self._workers:
            self._feed(worker)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have arrived; waits a moment if there are none."""
        wanted = set(message_ids)
        replies, self._failed = self._failed, []
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), timeout=0 if replies else 0.05):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                reply = worker.connection.recv()
            except (EOFError, ConnectionError):
                self._replace(worker)
                continue
            message = worker.held.pop(0)
            started = self._started.pop(message.metadata.message_id)
            self._seconds[_kind(message)] = time.monotonic() - started
            self._feed(worker)
            replies.append(reply)
        return [reply for reply in replies if reply.metadata.reply_to_message_id in wanted]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.terminate()
            worker.process.wait()

    def _start(self) -> _Worker:
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
        return _Worker(process, connection)

    def _feed(self, worker: _Worker) -> None:
        while self._queue and len(worker.held) < AHEAD:
            message = self._queue[0]
            known = worker.content is message.content
            if worker.held and not known:
                return  # a content may be large: sent to a worker that is sending, both would wait
            worker.held.append(self._queue.pop(0))
            worker.content = message.content
            self._started[message.metadata.message_id] = time.monotonic()
            try:
                worker.connection.send((message.metadata, None if known else message.content))
            except (BrokenPipeError, ConnectionError):
                return  # it died; pulling will notice, since its connection reads as ended

    def _replace(self, dead: _Worker) -> None:
        """A new worker in a dead one's place; what that held goes back to the queue."""
        dead.connection.close()
        dead.process.kill()
        dead.process.wait()
        for message in dead.held[:1]:  # the one in work; those behind it are not to blame
            message_id = message.metadata.message_id
            self._deaths[message_id] = self._deaths.get(message_id, 0) + 1
            if self._deaths[message_id] == LIVES:
                reason = f"its worker process died {LIVES} times"
                error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
                self._failed.append(Message(error, reply_to=message))
                dead.held.remove(message)
        self._queue = dead.held + self._queue
        self._workers[self._workers.index(dead)] = worker = self._start()
        self._feed(worker)


def _kind(message: Message) -> tuple[int, str]:
    """What takes about as long each round: a client and a type of message."""
    return message.metadata.dst_node_id, message.metadata.message_type


@contextmanager
def _grid(app: str, n_clients: int, n_workers: int, threads: int) -> Iterator[WorkersGrid]:
    grid = WorkersGrid(app, n_clients, n_workers, threads)
    try:
        yield grid
    finally:
        grid.close()


def run(server_app: ServerApp, app: str, n_clients: int, n_workers: int, threads: int) -> None:
    """Run a ServerApp against the ClientApp at an address, in `n_workers` processes."""
    with _grid(app, n_clients, min(n_workers, n_clients), threads) as grid:
        serve(server_app, grid)

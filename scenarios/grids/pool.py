"""A pool of long-lived workers that carry messages out: who gets what, and what if one dies.

Each worker gets a content once and then only the addresses of the clients that it is for. Who did
longest last time goes first, to whichever worker is free, so the workers end a step together.
Clients keep their state in a folder, by step, so a worker that dies costs only the messages it
held: they go to a new one, and give the same bits.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp

from scenarios.grids.local import LocalGrid, serve

AHEAD = 2
"""Messages a worker may hold: one in work, one to go on with while its reply travels."""
LIVES = 3
"""How often a message may be with a worker that dies; then it fails like a client that crashed."""
WAIT_S = 0.05

Link = TypeVar("Link")


@dataclass(eq=False)
class Worker(Generic[Link]):
    """One worker: how it is reached, what it holds, oldest first, and the content that it has."""

    link: Link
    held: list[Message] = field(default_factory=list)
    content: RecordDict | None = None


class WorkerDied(Exception):
    """The worker is gone, and what it held with it."""


class PoolGrid(LocalGrid, Generic[Link]):
    """Deals messages to workers; a subclass starts, feeds, hears and ends them."""

    def __init__(self, n_clients: int, n_workers: int) -> None:
        super().__init__(n_clients)
        self._queue: list[Message] = []
        self._seconds: dict[tuple[int, str], float] = {}
        self._started: dict[str, float] = {}
        self._deaths: dict[str, int] = {}
        self._failed: list[Message] = []
        self._workers = [Worker(self._start()) for _ in range(n_workers)]

    @abstractmethod
    def _start(self) -> Link:
        """A new worker."""

    @abstractmethod
    def _send(self, worker: Worker[Link], message: Message, *, new_content: bool) -> None:
        """Give a worker a message; it may be dead, which is noticed when it is heard."""

    @abstractmethod
    def _heard(self, timeout_s: float) -> Iterable[Worker[Link]]:
        """The workers that have a reply, or have died."""

    @abstractmethod
    def _receive(self, worker: Worker[Link]) -> Message:
        """The oldest reply of a worker that was heard. Raises: WorkerDied."""

    @abstractmethod
    def _end(self, link: Link) -> None:
        """End a worker, dead or alive."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to free workers, longest first; the others wait."""
        pushed = list(messages)
        ids = [self._number(message) for message in pushed]
        self._queue += sorted(pushed, key=lambda m: -self._seconds.get(_kind(m), 0.0))
        for _ in range(AHEAD):  # one each before anyone gets a second
            for worker in self._workers:
                self._feed(worker)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have arrived; waits a moment if there are none."""
        wanted = set(message_ids)
        replies, self._failed = self._failed, []
        for worker in list(self._heard(0 if replies else WAIT_S)):
            try:
                reply = self._receive(worker)
            except WorkerDied:
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
            self._end(worker.link)

    def _feed(self, worker: Worker[Link]) -> None:
        if not self._queue or len(worker.held) == AHEAD:
            return
        message = self._queue[0]
        known = worker.content is message.content
        if worker.held and not known:
            return  # a content may be large: sent to a worker that is sending, both would wait
        worker.held.append(self._queue.pop(0))
        worker.content = message.content
        self._started[message.metadata.message_id] = time.monotonic()
        self._send(worker, message, new_content=not known)

    def _replace(self, dead: Worker[Link]) -> None:
        """A new worker in a dead one's place; what that held goes back to the queue."""
        self._end(dead.link)
        for message in dead.held[:1]:  # the one in work; those behind it are not to blame
            message_id = message.metadata.message_id
            self._deaths[message_id] = self._deaths.get(message_id, 0) + 1
            if self._deaths[message_id] == LIVES:
                reason = f"its worker process died {LIVES} times"
                error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
                self._failed.append(Message(error, reply_to=message))
                dead.held.remove(message)
        self._queue = dead.held + self._queue
        self._workers[self._workers.index(dead)] = worker = Worker(self._start())
        self._feed(worker)


def _kind(message: Message) -> tuple[int, str]:
    """What takes about as long each round: a client and a type of message."""
    return message.metadata.dst_node_id, message.metadata.message_type


def run_on(grid: PoolGrid[Link], server_app: ServerApp) -> None:
    """Run a ServerApp on a pool, and end the pool with it."""
    with closing(grid):
        serve(server_app, grid)

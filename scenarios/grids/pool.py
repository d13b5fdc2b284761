"""A pool of long-lived workers that carry messages out: their life, and what if one dies.

Each worker gets a content once and then only the addresses of the clients that it is for, a block
of them at a time (`scenarios.grids.dealer` says which), and replies to the block as one. Clients
keep their state in a folder, by step, so a worker that dies costs only the blocks that it held:
others carry them out again, and get the same bits.
"""

from __future__ import annotations

import dataclasses
import os
import time
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp

from fedkd.errors import FedkdError
from scenarios.grids.carrier import Answer, Greeting, not_shared
from scenarios.grids.dealer import Block, Dealer
from scenarios.grids.local import LocalGrid, serve

AHEAD = 2
"""Blocks a worker may hold: one in work, one to go on with while its reply travels."""
LIVES = 3
"""How often a message may be with a worker that dies; then it fails like a client that crashed."""
WAIT_S = 0.5
START_S = 180.0
"""How long a pool may be without any worker that is ready."""

Link = TypeVar("Link")


@dataclass(eq=False)
class Worker(Generic[Link]):
    """One worker: how it is reached, what it holds, oldest first, and the content that it has."""

    link: Link
    greeting: Greeting
    ready: bool = False
    held: list[Block] = field(default_factory=list)
    content: RecordDict | None = None


class WorkerDied(Exception):
    """The worker is gone, and what it held with it; says why if that is known."""


class PoolGrid(LocalGrid, Generic[Link]):
    """Keeps workers busy; a subclass starts, feeds, hears and ends them."""

    condenses = True
    """A worker adds up what its clients answer, if the server asks for it."""

    def __init__(self, app: str, n_clients: int, n_workers: int, folder: Path, block: int) -> None:
        """Workers are started by `open`.

        Args: app: the ClientApp's address as "module:attribute"; folder: the run's, which every
            worker must see; block: clients that a worker advances together.
        """
        super().__init__(n_clients)
        token = f".workers-{os.getpid()}-{time.time_ns()}"
        self._greeting = Greeting(
            app=app, n_clients=n_clients, folder=folder.resolve(), token=token
        )
        self._n_wanted = n_workers
        self._n_started = 0
        self._n_stillborn = 0
        self._workers: list[Worker[Link]] = []
        self._dealer = Dealer(block)
        self._deaths: dict[str, int] = {}
        self._failed: list[Message] = []
        self._ready_at = time.monotonic()

    @abstractmethod
    def _start(self, greeting: Greeting) -> Link:
        """A new worker that is given the greeting."""

    @abstractmethod
    def _send(self, worker: Worker[Link], block: Block, *, new_content: bool) -> None:
        """Give a worker a block; it may be dead, which is noticed when it is heard."""

    @abstractmethod
    def _heard(self, timeout_s: float) -> Iterable[Worker[Link]]:
        """The workers that have said something, or have died."""

    @abstractmethod
    def _welcome(self, worker: Worker[Link]) -> str:
        """What a worker says to the greeting: why it cannot work, or "". Raises: WorkerDied."""

    @abstractmethod
    def _receive(self, worker: Worker[Link]) -> Answer:
        """A worker's answer to the oldest block that it holds. Raises: WorkerDied."""

    @abstractmethod
    def _end(self, link: Link) -> None:
        """End a worker, dead or alive."""

    def open(self) -> None:
        """Start the workers; they are fed as they get ready."""
        self._greeting.folder.mkdir(parents=True, exist_ok=True)
        self._greeting.asked.write_text(self._greeting.token)
        self._ready_at = time.monotonic()
        for _ in range(self._n_wanted):
            self._hire()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            self._end(worker.link)
            worker.greeting.answered.unlink(missing_ok=True)
        self._greeting.asked.unlink(missing_ok=True)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to free workers; the others wait."""
        pushed = list(messages)
        ids = [self._number(message) for message in pushed]
        self._dealer.add(pushed)
        for n_held in range(AHEAD):  # one each before anyone gets a second
            for worker in self._workers:
                if len(worker.held) == n_held:
                    self._feed(worker)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have arrived; waits a moment if there are none.

        Raises: FedkdError if no worker can work.
        """
        wanted = set(message_ids)
        replies, self._failed = self._failed, []
        for worker in list(self._heard(0 if replies else WAIT_S)):
            try:
                if worker.ready:
                    replies += self._take_answer(worker)
                else:
                    self._take_welcome(worker)
            except WorkerDied as death:
                self._bury(worker, str(death))
            else:
                self._feed(worker)
        self._check_alive()
        return [reply for reply in replies if reply.metadata.reply_to_message_id in wanted]

    def _take_welcome(self, worker: Worker[Link]) -> None:
        problem = self._welcome(worker)
        if problem:
            raise FedkdError(problem)
        if not worker.greeting.answered.exists():
            raise not_shared(worker.greeting.folder, "another machine")
        worker.greeting.answered.unlink()
        worker.ready = True
        self._n_stillborn = 0
        self._dealer.join(worker)

    def _take_answer(self, worker: Worker[Link]) -> list[Message]:
        answer = self._receive(worker)
        self._dealer.done(worker, worker.held.pop(0), answer.seconds)
        return answer.replies

    def _feed(self, worker: Worker[Link]) -> None:
        n_ready = sum(worker.ready for worker in self._workers)
        if not worker.ready or len(worker.held) == AHEAD:
            return
        if worker.held and self._dealer.n_waiting <= n_ready:
            return  # the last blocks are for whoever is free first
        # A content may be large: sent to a worker that is sending, both would wait for ever.
        only = worker.content if worker.held else None
        block = self._dealer.take(worker, n_ready, only)
        if block:
            new_content = worker.content is not block[0].content
            worker.held.append(block)
            worker.content = block[0].content
            self._send(worker, block, new_content=new_content)

    def _hire(self) -> None:
        self._n_started += 1
        greeting = dataclasses.replace(self._greeting, worker=self._n_started)
        self._workers.append(Worker(self._start(greeting), greeting))

    def _bury(self, dead: Worker[Link], reason: str) -> None:
        """What a dead worker held goes back to the queue, and another takes its place.

        Where it cannot, the others do its work: no new one is tried after `LIVES` in a row that
        died before they were ready.
        """
        self._end(dead.link)
        self._workers.remove(dead)
        dead.greeting.answered.unlink(missing_ok=True)
        self._n_stillborn += not dead.ready
        if self._n_stillborn < LIVES:
            self._hire()
        if not self._workers:
            raise FedkdError(
                "the workers die before they can work",
                value=reason or None,
                fix="see what they print above, or use grid.name = 'inline' to debug",
            )
        self._dealer.leave(dead)
        if dead.held:
            self._dealer.put_back(dead.held[1:])  # those behind the one in work are not to blame
            self._try_again(dead.held[0], reason)
        for worker in self._workers:
            if not worker.held:
                self._feed(worker)

    def _try_again(self, block: Block, reason: str) -> None:
        """Queue a block that was in work as it was, or at last one by one: who is to blame?"""
        again: Block = []
        for message in block:
            message_id = message.metadata.message_id
            n_deaths = self._deaths[message_id] = self._deaths.get(message_id, 0) + 1
            if n_deaths < LIVES - 1:
                again.append(message)
            elif n_deaths < LIVES:
                self._dealer.put_back([[message]], alone=True)
            else:
                what = f"its worker process died {LIVES} times{': ' if reason else ''}{reason}"
                error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, what)
                self._failed.append(Message(error, reply_to=message))
        if again:
            self._dealer.put_back([again])

    def _check_alive(self) -> None:
        if any(worker.ready for worker in self._workers):
            self._ready_at = time.monotonic()
        elif time.monotonic() > self._ready_at + START_S:
            raise FedkdError(
                f"no worker got ready within {START_S:g} s",
                value=f"{len(self._workers)} asked for",
                fix="see whether the machines are busy with other work (ray status), or lower "
                "grid.client_cpus or grid.client_gpus",
            )


def run_on(grid: PoolGrid[Link], server_app: ServerApp) -> None:
    """Run a ServerApp on a pool, and end the pool with it."""
    with closing(grid):
        grid.open()
        serve(server_app, grid)

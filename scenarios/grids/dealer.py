"""Who carries out what next: blocks of messages, long ones first, to who knows their clients.

A worker that is free takes clients that it had last time, whose data and models it may still hold;
when none of those is left, it takes from whoever has most left, so no worker waits while another
has a queue. Clients that take a good part of a worker's time go first, longest before all; the
others go in the order that they were pushed, since the server adds up in that order and keeps what
comes too early. The first block of a step holds one client; once the pace is known, a block holds
`BLOCK_S` of work, and less towards the end (guided self-scheduling). Where each worker advances
several clients together (`together` > 1), a block is `together` clients as they were pushed: what
learns together decides the last bits, so no clock may have a say in it.

Source: C. Polychronopoulos and D. Kuck, "Guided self-scheduling", IEEE Trans. Computers 36 (1987);
a block there is 1 / workers of what is left, here half of that, since clients differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from itertools import groupby

from flwr.app import Message, RecordDict

BLOCK_S = 0.25
"""Work in a block of small clients: a hundred times what it costs to hand it over."""
SHARE = 2
"""A block is at most one part in `SHARE` of each worker's share of what is left."""
LONG = 16
"""A block is long if it takes more than one part in `LONG` of a worker's share of a step."""

Block = list[Message]


class Dealer:
    """The queue of a pool. Times and owners are remembered by client and type of message."""

    def __init__(self, together: int) -> None:
        self._together = together
        self._queues: dict[Hashable | None, deque[Block]] = {None: deque()}
        self._alone: set[str] = set()
        self._owner: dict[int, Hashable] = {}
        self._seconds: dict[tuple[int, str], float] = {}
        self._pace: dict[str, float] = {}

    @property
    def n_waiting(self) -> int:
        """How many blocks wait, as long as none is joined to another."""
        return sum(map(len, self._queues.values()))

    def join(self, worker: Hashable) -> None:
        """A worker that can be dealt to from now on."""
        self._queues[worker] = deque()

    def leave(self, worker: Hashable) -> None:
        """A worker is gone: anyone may take what was meant for it."""
        self._queues[None].extend(self._queues.pop(worker, ()))

    def add(self, messages: Sequence[Message]) -> None:
        """Queue messages ahead of what waits from before, which may be too late by now."""
        blocks: list[Block] = []
        for _, alike in groupby(messages, _kind):
            group = list(alike)
            cuts = range(0, len(group), self._together)
            blocks += [group[i : i + self._together] for i in cuts]
        n_workers = max(1, len(self._queues) - 1)
        long_s = sum(map(self._expected, blocks)) / n_workers / LONG

        def rank(block: Block) -> float:
            seconds = self._expected(block)
            return seconds if seconds > long_s else 0.0

        for block in sorted(reversed(blocks), key=rank):  # the last of the queue comes first
            owner = self._owner.get(block[0].metadata.dst_node_id)
            queue = self._queues.get(owner, self._queues[None])
            queue.appendleft(block)

    def put_back(self, blocks: Sequence[Block], *, alone: bool = False) -> None:
        """Queue what a dead worker held for anyone; not joined to other blocks if `alone`."""
        self._queues[None].extendleft(reversed(blocks))
        if alone:
            self._alone |= {message.metadata.message_id for block in blocks for message in block}

    def take(self, worker: Hashable, n_workers: int, only: RecordDict | None = None) -> Block:
        """The next block for a worker, of the content `only` if that is given; may be empty."""
        queue = self._queue_for(worker)
        if not queue or (only is not None and queue[0][0].content is not only):
            return []
        n_waiting = self.n_waiting
        block = list(queue.popleft())
        if self._together > 1 or block[0].metadata.message_id in self._alone:
            return block
        left_s = BLOCK_S - self._expected(block)
        most = n_waiting // (SHARE * n_workers)
        while queue and len(block) < most and self._fits(queue[0], block):
            left_s -= self._expected(queue[0])
            if left_s < 0:
                break
            block += queue.popleft()
        return block

    def done(self, worker: Hashable, block: Block, seconds: float) -> None:
        """A worker took `seconds` to carry a block out."""
        each = seconds / len(block)
        self._pace[block[0].metadata.message_type] = each
        for message in block:
            self._owner[message.metadata.dst_node_id] = worker
            self._seconds[_job(message)] = each

    def _queue_for(self, worker: Hashable) -> deque[Block]:
        own, free = self._queues[worker], self._queues[None]
        if own and free:
            return max(own, free, key=lambda queue: self._expected(queue[0]))
        return own or free or max(self._queues.values(), key=len)

    def _fits(self, more: Block, block: Block) -> bool:
        return _kind(more[0]) == _kind(block[0]) and more[0].metadata.message_id not in self._alone

    def _expected(self, block: Block) -> float:
        """Seconds that a block will take: infinite while no client has done its like."""
        pace = self._pace.get(block[0].metadata.message_type, float("inf"))
        return sum(self._seconds.get(_job(message), pace) for message in block)


def _job(message: Message) -> tuple[int, str]:
    """What takes about as long each round: a client and a type of message."""
    return message.metadata.dst_node_id, message.metadata.message_type


def _kind(message: Message) -> tuple[int, str]:
    """What the messages of one block share: content and type."""
    return id(message.content), message.metadata.message_type

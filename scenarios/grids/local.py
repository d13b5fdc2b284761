"""What our two grids on one machine share: numbering, waiting messages, Flower's abstract parts."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from scenarios.grids.nodes import FIRST_NODE_ID, RUN_ID, identify


class LocalGrid(Grid):
    """A Flower Grid of nodes that are always there. A subclass carries the messages."""

    def __init__(self, n_clients: int) -> None:
        identify()
        self._run = Run.create_empty(RUN_ID)
        self._nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + n_clients)
        self._numbers = itertools.count(1)

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._run = run

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid`; deprecated there, but abstract."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """All nodes; none ever leaves. A range says that node i of it holds partition i."""
        return self._nodes

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid`; our own server hears clients one by one instead (`server.calls`)."""
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        missing = set(self.push_messages(messages))
        replies: list[Message] = []
        while missing and time.monotonic() < deadline:
            arrived = list(self.pull_messages(missing))
            missing -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
        return replies

    def _number(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = f"m{next(self._numbers)}"
        return message.metadata.message_id


def serve(server_app: ServerApp, grid: Grid) -> None:
    """Run a ServerApp on a grid, in this thread."""
    server_app(
        grid,
        Context(
            run_id=RUN_ID,
            node_id=SUPERLINK_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config={},
        ),
    )

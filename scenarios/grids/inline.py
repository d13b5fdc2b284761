"""The in-process grid: messages are function calls, one client after another.

It is the default and the oracle that every other grid must equal. A message is carried out when
its reply is asked for, so a server that hears clients one by one holds one reply at a time.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE_ID = 1000


class InlineGrid(Grid):
    """A Flower Grid of `n_clients` nodes; node 1000 + i holds partition i."""

    def __init__(self, client_app: ClientApp, n_clients: int) -> None:
        self._app = client_app
        self._run = Run.create_empty(1)
        # Flower refuses to build a Message in a process that has no task identity.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1
        self._contexts = {
            FIRST_NODE_ID + i: Context(
                run_id=1,
                node_id=FIRST_NODE_ID + i,
                node_config={"partition-id": i, "num-partitions": n_clients},
                state=RecordDict(),
                run_config={},
            )
            for i in range(n_clients)
        }
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Message] = {}

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

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; none ever leaves."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are pulled."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{next(self._numbers)}"
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Carry out the first of these messages that still waits; its reply is all there is yet."""
        for message_id in message_ids:
            if message_id in self._waiting:
                return [self._carry_out(self._waiting.pop(message_id))]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid`; calls do not time out here."""
        ids = self.push_messages(messages)
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]

    def _carry_out(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            reply = self._app(_isolated(message), context)
        except Exception as error:
            # As Flower's own engines do: a client that fails answers with an error.
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        reply.metadata.__dict__["_message_id"] = f"r{next(self._numbers)}"
        return reply


def _isolated(message: Message) -> Message:
    """The message with records of its own; the bytes of arrays are immutable and stay shared."""
    own: dict[str, Any] = {}
    for key, record in message.content.items():
        fields: Any = dict(record)
        own[key] = type(record)(fields)
    return make_message(copy.copy(message.metadata), RecordDict(own))


def run(server_app: ServerApp, client_app: ClientApp, n_clients: int) -> None:
    """Run a ServerApp against a ClientApp in this process."""
    grid = InlineGrid(client_app, n_clients)
    context = Context(
        run_id=1,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    server_app(grid, context)

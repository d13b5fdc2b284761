"""The client side of our own grids: nodes that carry messages out by function calls."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from flwr.app import Context, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity

from clients.carry import carry_out

RUN_ID = 1
FIRST_NODE_ID = 1000
"""Node 1000 + i holds partition i."""


def identify() -> None:
    """Give this process the task identity without which Flower builds no Message."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK_NODE_ID, 1


def partition_of(node: int) -> int:
    """The partition that a node holds."""
    return node - FIRST_NODE_ID


def app_at(address: str) -> ClientApp:
    """The ClientApp at "module:attribute"."""
    module, _, name = address.partition(":")
    app: ClientApp = getattr(import_module(module), name)
    return app


class Nodes:
    """All nodes of a federation in one process.

    A node's context is made anew for each message, and kept only if the app left state in it: what
    a round costs must not depend on how many nodes there are or ever took part.
    """

    def __init__(self, app: ClientApp, n_clients: int) -> None:
        identify()
        self._app = app
        self._n_clients = n_clients
        self._contexts: dict[int, Context] = {}
        self._numbers = itertools.count(1)

    def carry_out_together(self, messages: Sequence[Message]) -> list[Message]:
        """The replies to messages of one type, in one call of the app if it can.

        A call that fails fails for all its clients, so each is then carried out alone: the one
        with the error answers with it.
        """
        together = getattr(self._app, "together", {}).get(messages[0].metadata.message_type)
        if together is not None:
            deliveries = [(_isolated(m), self._context(m.metadata.dst_node_id)) for m in messages]
            with suppress(Exception):
                replies = [self._numbered(reply) for reply in together(deliveries)]
                for _, context in deliveries:
                    self._keep(context)
                return replies
        return [self.carry_out(message) for message in messages]

    def carry_out(self, message: Message) -> Message:
        """The reply to a message: the app's, or an error with what the app raised."""
        context = self._context(message.metadata.dst_node_id)
        reply = carry_out(self._app, _isolated(message), context)
        self._keep(context)
        return self._numbered(reply)

    def _numbered(self, reply: Message) -> Message:
        reply.metadata.__dict__["_message_id"] = f"r{next(self._numbers)}"
        return reply

    def _context(self, node: int) -> Context:
        return self._contexts.get(node) or Context(
            run_id=RUN_ID,
            node_id=node,
            node_config={
                "partition-id": partition_of(node),
                "num-partitions": self._n_clients,
            },
            state=RecordDict(),
            run_config={},
        )

    def _keep(self, context: Context) -> None:
        if len(context.state):
            self._contexts[context.node_id] = context


def _isolated(message: Message) -> Message:
    """The message with records of its own; the bytes of arrays are immutable and stay shared."""
    own = message.content.copy()
    for key, record in message.content.items():
        own[key] = record.copy()
    return make_message(copy.copy(message.metadata), own)

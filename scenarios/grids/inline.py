"""The in-process grid: messages are function calls, one client after another.

It is the default and the oracle that every other grid must equal. A message is carried out when
its reply is asked for, so a server that hears clients one by one holds one reply at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from scenarios.grids.local import LocalGrid, serve
from scenarios.grids.nodes import Nodes


class InlineGrid(LocalGrid):
    """Carries a message out in the caller's thread when its reply is pulled."""

    def __init__(self, client_app: ClientApp, n_clients: int) -> None:
        super().__init__(n_clients)
        self._clients = Nodes(client_app, n_clients)
        self._waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are pulled."""
        pushed = {self._number(message): message for message in messages}
        self._waiting |= pushed
        return list(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Carry out the first of these messages that still waits; its reply is all there is yet."""
        for message_id in message_ids:
            if message_id in self._waiting:
                return [self._clients.carry_out(self._waiting.pop(message_id))]
        return []


def run(server_app: ServerApp, client_app: ClientApp, n_clients: int) -> None:
    """Run a ServerApp against a ClientApp in this process."""
    serve(server_app, InlineGrid(client_app, n_clients))

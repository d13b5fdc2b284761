"""The in-process grids: messages are function calls, one client, or a block of them, at a time.

One at a time (`inline`) is the default and the oracle that every other grid must equal to the bit.
A block at a time (`cohort`) is for many clients with one small model each, on one device; it
equals the first up to rounding (`fedkd.cohort`). A message is carried out when its reply is asked
for, so a server that hears clients one by one holds a block of replies at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from scenarios.grids.local import LocalGrid, serve
from scenarios.grids.nodes import Nodes


class InlineGrid(LocalGrid):
    """Carries messages out in the caller's thread when their replies are pulled."""

    def __init__(self, client_app: ClientApp, n_clients: int, block: int = 1) -> None:
        super().__init__(n_clients)
        self._clients = Nodes(client_app, n_clients)
        self._block = block
        self._waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are pulled."""
        pushed = {self._number(message): message for message in messages}
        self._waiting |= pushed
        return list(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Carry out the first block of these messages that still wait: all there is yet."""
        waiting = (message_id for message_id in message_ids if message_id in self._waiting)
        taken = [self._waiting.pop(message_id) for message_id in islice(waiting, self._block)]
        if len(taken) == 1:
            return [self._clients.carry_out(taken[0])]
        return self._clients.carry_out_together(taken) if taken else []


def run(server_app: ServerApp, client_app: ClientApp, n_clients: int, block: int = 1) -> None:
    """Run a ServerApp against a ClientApp in this process, `block` clients at a time."""
    serve(server_app, InlineGrid(client_app, n_clients, block))

"""What Flower's `Grid` asks for besides carrying messages, by no more than push and pull."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.calls import POLL_S


class PlainGrid(Grid):
    """A Grid whose subclass pushes and pulls messages, and says who is there and which run it is.

    Our own server hears clients one by one (`server.calls`) and needs none of this.
    """

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

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid`."""
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        missing = set(self.push_messages(messages))
        replies: list[Message] = []
        while missing and time.monotonic() < deadline:
            arrived = list(self.pull_messages(missing))
            missing -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
            if missing and not arrived:
                time.sleep(POLL_S)
        return replies

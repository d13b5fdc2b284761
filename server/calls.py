"""Asking many clients at once, and hearing them in partition order, whatever arrives first."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, Protocol, TypeVar

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedkd.payload import Bytes
from fedkd.wire import STYPE
from server.link import pull

POLL_S = 0.02
GRACE_S = 600.0
"""How much longer than the server waits a message lives, for the sake of late answers."""
LOST = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)
"""What a SuperLink says in place of a client that it has lost sight of."""
Read = TypeVar("Read")


class Reply(NamedTuple):
    """What came back from one client: its content, or why there is none."""

    client: int
    content: RecordDict | None
    failure: str | None
    lost: bool = False
    """Whether the client itself said nothing: it was silent, or its line broke."""


class Talk(Protocol):
    """Asks clients of a round for something besides `train` and `evaluate`: `query.NAME`."""

    def __call__(
        self,
        name: str,
        data: Bytes | None,
        read: Callable[[int, Bytes], Read],
        clients: Collection[int] | None = None,
    ) -> dict[int, Read]:
        """What `read` makes of each reply, by client; who fails or breaks the contract is left out.

        Args: read: of the client and its payload, raises a PayloadError for a bad one; clients:
            who is asked, everyone who takes part if None.
        """


def ask(
    grid: Grid,
    nodes: Mapping[int, int],
    content: RecordDict,
    message_type: str,
    timeout_s: float,
    silent: dict[str, int] | None = None,
) -> Iterator[Reply]:
    """Send one content to the clients in `nodes` (client -> node id); yield replies by client.

    Each reply is yielded as soon as all clients before it are settled, so a caller that adds them
    up holds few at a time. A client that is silent until `timeout_s` is a failure. A message that
    nobody has fetched by then is not delivered any more: who comes back starts with what is new.
    Args: silent: gets the id of each message without a reply, and its client.
    """
    clients = sorted(nodes)
    ttl = timeout_s + GRACE_S
    outgoing = [Message(content, nodes[c], message_type, ttl=ttl, group_id="") for c in clients]
    ids = dict(zip(grid.push_messages(outgoing), clients, strict=True))
    arrived: dict[int, Reply] = {}
    deadline = time.monotonic() + timeout_s
    for client in clients:
        while client not in arrived:
            pulled = pull(grid, ids)
            for message in pulled:
                sender = ids.pop(message.metadata.reply_to_message_id)
                arrived[sender] = _reply(sender, message)
            if client not in arrived and time.monotonic() > deadline:
                arrived[client] = Reply(client, None, f"silent for {timeout_s:g} s", True)
            elif not pulled:
                time.sleep(POLL_S)
        yield arrived.pop(client)
    if silent is not None:
        silent |= ids


def belated(grid: Grid, silent: dict[str, int]) -> Iterator[Reply]:
    """Replies to `silent` messages of an earlier round that have come by now; each comes once."""
    if not silent:
        return
    came = {m.metadata.reply_to_message_id: m for m in pull(grid, silent)}
    for id_ in sorted(came, key=lambda id_: silent[id_]):
        yield _reply(silent.pop(id_), came[id_])


def payload_of(content: RecordDict | None) -> Bytes | None:
    """The payload of a message, if it has one."""
    if content is None or "bytes" not in content.array_records.get("payload", {}):
        return None
    return content.array_records["payload"]["bytes"].data


def record_of(data: Bytes) -> ArrayRecord:
    """The record that carries a payload."""
    return ArrayRecord({"bytes": Array("uint8", (len(data),), STYPE, data)})


def _reply(client: int, message: Message) -> Reply:
    if message.has_error():
        lost = message.error.code in LOST
        return Reply(client, None, f"failed: {message.error.reason}", lost)
    return Reply(client, message.content, None)

"""Fetching replies from a real SuperLink without Flower's one-second pauses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from flwr.app import Error, Message
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid import HttpGrid

BACK_OFF_S = 0.02
CAP_S = 0.2
PATIENCE_S = 60.0
"""For the rest of a reply whose beginning is there: its client may have died while it sent it."""


def pull(grid: Grid, message_ids: Iterable[str]) -> Sequence[Message]:
    """The replies that have come to messages of these ids; an error for one that never came whole.

    A grid of Flower's deployment runtime finds a reply while it is still being sent, and then
    sleeps for a second, in `pull_messages` as in nothing that its caller could set; so for that
    grid its steps are taken here, with the client that it holds and a shorter pause.
    """
    if not isinstance(grid, HttpGrid):
        return list(grid.pull_messages(message_ids))
    client, node, run = grid._runtime_client, grid.node, grid.run.run_id
    found = client.PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
    pull_one = make_pull_object_fn_protobuf(client.PullObject, node, run)
    replies = []
    for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        ids = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        try:
            parts = pull_objects(
                ids,
                pull_one,
                max_time=PATIENCE_S,
                initial_backoff=BACK_OFF_S,
                backoff_cap=CAP_S,
            )
        except ObjectPullError as error:
            lost = Error(ErrorCode.MESSAGE_UNAVAILABLE, f"its reply did not come whole: {error}")
            replies.append(make_message(message_from_proto(head).metadata, error=lost))
            continue
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=tree.object_id)
        )
        replies.append(cast(Message, inflate_object_from_contents(tree.object_id, parts)))
    return replies

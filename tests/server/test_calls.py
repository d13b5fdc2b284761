"""Replies are heard in partition order, whatever arrives first; silence ends at the deadline."""

from __future__ import annotations

import random
from collections.abc import Iterable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from scenarios.grids.inline import InlineGrid
from scenarios.grids.nodes import FIRST_NODE_ID
from server.calls import ask


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        who = ConfigRecord({"who": context.node_config["partition-id"]})
        return Message(RecordDict({"config": who}), reply_to=message)

    return app


class ShuffledGrid(InlineGrid):
    """An inline grid that delivers in random order and loses what one node says."""

    lost = FIRST_NODE_ID + 3

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        random.Random(len(ids)).shuffle(ids)
        replies = list(super().pull_messages(ids))
        return [reply for reply in replies if reply.metadata.src_node_id != self.lost]


def test_replies_come_in_partition_order_and_silence_is_a_failure() -> None:
    n_clients = 8
    grid = ShuffledGrid(echo_app(), n_clients)
    nodes = {client: FIRST_NODE_ID + client for client in reversed(range(n_clients))}
    content = RecordDict({"config": ConfigRecord({"x": 1})})
    replies = list(ask(grid, nodes, content, "train", timeout_s=0.2))
    assert [reply.client for reply in replies] == list(range(n_clients))
    for reply in replies:
        if reply.client == 3:
            assert reply.failure == "silent for 0.2 s"
        else:
            assert reply.content is not None
            assert reply.content["config"]["who"] == reply.client


def test_a_client_cannot_change_what_the_next_one_gets() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        config["x"] = int(str(config["x"])) + 1
        return Message(message.content, reply_to=message)

    grid = InlineGrid(app, 3)
    content = RecordDict({"config": ConfigRecord({"x": 1})})
    nodes = {client: FIRST_NODE_ID + client for client in range(3)}
    seen = [r.content["config"]["x"] for r in ask(grid, nodes, content, "train", 5) if r.content]
    assert seen == [2, 2, 2]

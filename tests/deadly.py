"""A ClientApp whose client 1 takes its whole process with it whenever it is to train."""

from __future__ import annotations

import os
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.app import app as honest


def _die(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
    if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
        os._exit(9)
    return call_next(message, context)


app = ClientApp(mods=[_die])
app.query("hello")(lambda message, context: honest(message, context))
app.query("pool")(lambda message, context: honest(message, context))
app.train()(lambda message, context: honest(message, context))
app.evaluate()(lambda message, context: honest(message, context))

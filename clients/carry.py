"""Handing a message to an app, as Flower's own engines do."""

from __future__ import annotations

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode


def carry_out(app: ClientApp, message: Message, context: Context) -> Message:
    """The app's reply, or an error with what it raised: a client that fails says so."""
    try:
        return app(message, context)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

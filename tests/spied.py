"""A run whose messages a test looks at, and whose clients fail where it says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.app import make_app
from clients.store import ClientStore, FolderStore, MemoryStore
from fedkd import payload
from fedkd.config import Scenario
from fedkd.exchange.consensus import Consensus
from scenarios.grids import inline
from server.app import make_app as make_server
from server.events import Event

Fails = Callable[[str, int, int], bool]
"""Of a message's type, its client and its round."""


class Seen(NamedTuple):
    """What a run showed: payloads by message type, client and round, and the events."""

    asked: dict[tuple[str, int, int], payload.Bytes | None]
    replied: dict[tuple[str, int, int], payload.Bytes | None]
    events: list[Event]
    store: ClientStore

    def of(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    def consensus(self, round_: int, n_samples: int, n_classes: int = 10) -> Consensus | None:
        """What the clients were told in a round; None if nothing."""
        told = [d for (kind, _, r), d in self.asked.items() if (kind, r) == ("evaluate", round_)]
        assert told
        if told[0] is None:
            return None
        assert all(data == told[0] for data in told)
        return payload.decode_consensus(
            told[0], round_=round_, n_samples=n_samples, n_classes=n_classes
        )


def payload_of(message: Message) -> payload.Bytes | None:
    """The payload of a message, if it has one."""
    if "payload" not in message.content:
        return None
    return message.content.array_records["payload"]["bytes"].data


def play(
    scenario: Scenario,
    n_clients: int,
    *,
    fails: Fails = lambda kind, client, round_: False,
    mute: Fails = lambda kind, client, round_: False,
    folder: Path | None = None,
) -> Seen:
    """Run the scenario in this process, one client after another.

    Args: fails: messages that a client answers with an error, before it does anything; mute:
        those whose reply loses its payload on the way.
    """
    store: ClientStore = MemoryStore() if folder is None else FolderStore(folder / "clients")
    honest = make_app(lambda config: store)
    seen = Seen({}, {}, [], store)

    def look(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        client = int(context.node_config["partition-id"])
        round_ = int(str(message.content.config_records["config"]["round"]))
        kind = message.metadata.message_type
        if fails(kind, client, round_):
            raise RuntimeError("no such device")
        seen.asked[kind, client, round_] = payload_of(message)
        reply = honest(message, context)
        if mute(kind, client, round_):
            del reply.content["payload"]
        seen.replied[kind, client, round_] = payload_of(reply)
        return reply

    app = ClientApp(mods=[look])
    names = ("hello", "pool", "keys", "reveal")
    for route in (*[app.query(name) for name in names], app.train(), app.evaluate()):
        route(lambda message, context: honest(message, context))
    inline.run(make_server(scenario, 1, folder, seen.events.append), app, n_clients)
    return seen

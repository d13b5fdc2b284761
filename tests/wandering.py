"""A grid whose nodes come, go, and answer late: what a deployment's do, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.app import app as client_app
from clients.carry import carry_out
from clients.signing import Signer
from fedkd import config
from fedkd.config import Scenario
from privacy.ledger import Ledger
from scenarios.grids.local import LocalGrid, serve
from scenarios.grids.nodes import RUN_ID
from server.app import make_app
from server.events import Event

FIRST = 5000
"""Node 5000 + i is the i-th of the list of configs; no range, since nodes may leave."""


class Wandering(LocalGrid):
    """Carries messages to the nodes in `here`; replies of `late` (node, round) come later."""

    def __init__(
        self,
        configs: Sequence[Mapping[str, Any]],
        app: ClientApp = client_app,
        signers: Mapping[int, Signer] | None = None,
    ) -> None:
        super().__init__(0)
        self._signers = signers or {}
        self._configs = {FIRST + i: dict(each) for i, each in enumerate(configs)}
        self._app = app
        self._waiting: dict[str, Message] = {}
        self._held: dict[str, tuple[int, Message]] = {}
        self.here = set(self._configs)
        self.late: set[tuple[int, int]] = set()
        self.unseen: set[int] = set()
        """Nodes whose next message is answered by the SuperLink, which has lost sight of them."""
        self.round = 0
        self.delivered: list[tuple[str, int, int]] = []
        """Type, node and round of each message that was carried out."""

    def get_node_ids(self) -> list[int]:
        return sorted(self.here)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = {self._number(message): message for message in messages}
        for message in pushed.values():
            self.round = int(str(message.content.config_records["config"]["round"])) or self.round
        self._waiting |= pushed
        return list(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for id_ in list(message_ids):
            if id_ in self._held and self.round > self._held[id_][0]:
                replies.append(self._held.pop(id_)[1])
            if id_ not in self._waiting:
                continue
            message = self._waiting.pop(id_)
            node = message.metadata.dst_node_id
            if node not in self.here:
                continue  # silence
            if node in self.unseen:
                self.unseen.remove(node)
                gone = Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable")
                replies.append(Message(gone, reply_to=message))
                continue
            reply = self._carried_out(message)
            if (node, self.round) in self.late and message.metadata.message_type == "train":
                self._held[id_] = (self.round, reply)
            else:
                replies.append(reply)
        return replies

    def _carried_out(self, message: Message) -> Message:
        metadata = message.metadata
        self.delivered.append((metadata.message_type, metadata.dst_node_id, self.round))
        context = Context(
            run_id=RUN_ID,
            node_id=metadata.dst_node_id,
            node_config=self._configs[metadata.dst_node_id],
            state=RecordDict(),
            run_config={},
        )
        own = message.content.copy()
        for key, record in message.content.items():
            own[key] = record.copy()
        given = make_message(metadata, own)
        reply = carry_out(self._app, given, context)
        if metadata.dst_node_id in self._signers:
            self._signers[metadata.dst_node_id].sign(given, reply)
        return reply


def owned(folder: Path, clients: int = 3) -> tuple[list[dict[str, Any]], Scenario]:
    """Digits shared out by class to folders of their own, and the node configs of their owners.

    Returns: the configs, and the same federation as a simulation of the same files.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x * (255 / 16)).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for i in range(clients):
        mine = np.flatnonzero((y[:1400] % clients) == i)
        tests = {"x_test": x[1400:], "y_test": y[1400:]}
        np.savez(data / f"{i}.npz", x=x[mine], y=y[mine], **tests)
    configs: list[dict[str, Any]] = [
        {
            "seat": i,
            "state": str(folder / f"state-{i}"),
            "data": json.dumps({"name": "npz", "path": str(data / f"{i}.npz")}),
        }
        for i in range(clients)
    ]
    return configs, simulated(data)


def simulated(data: Path) -> Scenario:
    """All files as one federation whose owners are known."""
    return config.parse(
        {
            "name": "owned",
            "validation": 0,
            "data": {"name": "npz", "path": str(data)},
            "partition": {"name": "natural"},
            "training": {"rounds": 3, "distill": {"epochs": 2}},
        }
    )


def deployed(of: Scenario, clients: int = 3, **changes: Any) -> Scenario:
    """The same scenario where each client brings its own data."""
    table = of.model_dump()
    partition = {"name": "own", "clients": clients, "classes": 10}
    return config.parse({**table, "data": {"name": "digits"}, "partition": partition, **changes})


def seats(grid: Wandering) -> dict[int, int]:
    return {node: each["seat"] for node, each in grid._configs.items()}


def play(
    grid: Wandering, scenario: Scenario, folder: Path | None, listener: Any = None
) -> list[Event]:
    """Run a scenario on the grid as a deployment would; the events as they were told."""
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if listener is not None:
            listener(event)

    serve(make_app(scenario, 1, folder, hear, Ledger(), seats(grid)), grid)
    return events

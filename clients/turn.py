"""One client's part in one step of a round, and what its message brings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor

from clients.client import Client, ProxySet
from clients.guard import Guard
from clients.store import ClientStore
from fedkd import payload
from fedkd.errors import FedkdError
from fedkd.models.zoo import Classifier
from privacy.ledger import Receipt, Sealed, seal


class Turn(NamedTuple):
    """One client's part in one step of a round."""

    message: Message
    client: Client
    store: ClientStore
    step: int
    state: dict[str, Tensor]
    model: Classifier

    @property
    def guard(self) -> Guard:
        """What charges the client's ledger."""
        return Guard(self.store, self.client)


def config_of(message: Message) -> ConfigRecord:
    """The scenario, the round, the run: see `server.job.Job.content`."""
    return message.content.config_records["config"]


def payload_of(message: Message) -> payload.Bytes:
    """What the server has packed for this step."""
    return message.content.array_records["payload"]["bytes"].data


def payload_if_any(message: Message) -> payload.Bytes | None:
    """The same, where there is something."""
    return payload_of(message) if "payload" in message.content else None


_PROXY_SETS: dict[tuple[str, torch.device], ProxySet] = {}
"""The proxy set of this process's run, decoded and converted once and not once a message."""


def proxy_of(turn: Turn) -> ProxySet:
    """The proxy set. Raises: FedkdError for a client that never received it."""
    digest = str(config_of(turn.message)["pool"])
    key = (digest, turn.client.device)
    if key not in _PROXY_SETS:
        data = turn.store.load_pool(digest)
        if data is None:
            raise FedkdError("this client never received the proxy pool", value=digest[:16])
        pool = payload.decode_pool(data)
        _PROXY_SETS.clear()
        _PROXY_SETS[key] = ProxySet.of(pool, turn.client.device)
    return _PROXY_SETS[key]


def sealed_by(client: Client, data: payload.Bytes, *receipts: Receipt) -> Sealed:
    """What leaves, with the receipts of its charges. Raises: as `privacy.ledger.seal`."""
    return seal(data, *receipts, client=client.id, round_=client.round)

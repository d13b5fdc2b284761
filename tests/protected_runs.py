"""Small runs and clients under privacy settings, that several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients import guard
from clients.client import Client, ProxySet
from clients.store import FolderStore
from fedkd.config import Scenario
from fedkd.payload import Pool
from fedkd.rng import torch_stream
from privacy import claims
from privacy.ledger import Release
from server.events import Event
from small_runs import small

CPU = torch.device("cpu")
TWO = {"partition": {"name": "iid", "clients": 2}}
ROUNDS = {"rounds": 2, "local": {"batch_size": 256}}
PUBLIC = {"proxy": {"name": "public", "size": 60}}
OPEN = {"method": {"name": "no-filter"}}

PROTECTIONS: dict[str, dict[str, Any]] = {
    "noise": {
        "training": {"name": "dp-sgd"},
        "filter": {"name": "dp-kmeans"},
        "release": {"name": "gaussian"},
    },
    "part": {
        "training": {"name": "nfdp"},
        "filter": {"name": "dp-class-means"},
        "release": {"name": "laplace"},
    },
    "feedback": {
        "training": {"name": "dp-sgd", "error_clip": 0.1},
        "filter": {"name": "dp-kernel"},
        "release": {"name": "sampled-label"},
    },
    "answers": {"release": {"name": "randomised-response"}},
    "arg-max": {"training": {"name": "dp-sgd", "epsilon": 8.0}, "release": {"name": "top-1"}},
    "swing": {"release": {"name": "swing", "degree": "density", "noise": "gaussian"}},
    "summary": {"filter": {"name": "dp-kmeans"}, "release": {"name": "summary"}},
    "classes": {
        "filter": {"name": "dp-kmeans"},
        "release": {"name": "swing", "degree": "classes", "private_classes": [3, 8]},
    },
}
"""Every row of training, filter and release at least once."""


def protected(name: str, **changes: Any) -> Scenario:
    return small(**{**TWO, "training": ROUNDS, "privacy": PROTECTIONS[name], **changes})


def cell(folder: Path, scenario: Scenario | None = None) -> Path:
    method = scenario.method.name if scenario else "edgefd"
    return folder / method / "seed-1"


def entries(folder: Path, client: int) -> list[Release]:
    store = FolderStore(folder / "clients")
    return list(store.ledger(client).entries())


def abstained(events: Sequence[Event]) -> list[tuple[int, int]]:
    return [
        (e["round"], e["client"]) for e in events if e["event"] == "client" and "abstained" in e
    ]


def client_of(scenario: Scenario, client: int = 0, round_: int = 1) -> Client:
    world = scenario.world(1)
    return Client(scenario=scenario, seed=1, id=client, round=round_, world=world, device=CPU)


def proxy_of(client: Client) -> ProxySet:
    x = client.world.public_x
    assert x is not None
    return ProxySet.of(Pool(x.numpy(), np.full(len(x), -1, np.int32)), CPU)


def told(scenario: Scenario) -> tuple[Tensor, claims.Claim]:
    client = client_of(scenario)
    proxy = proxy_of(client)
    records = torch.arange(0, len(proxy.x), 2)
    logits = torch.randn(len(records) * proxy.positions, 10, generator=torch_stream(1, "z"))
    return guard.told(client, proxy, records, logits)

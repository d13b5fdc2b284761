"""A work in a folder: its data, its scenario, and the same data as plain arrays for plain loops.

```
FOLDER/
  scenario.toml   for the engines that are grids of ours
  data.npz        what the scenario reads
  parts.npz       x uint8 [clients, n, c, h, w], y int64 [clients, n], pool uint8 [p, c, h, w]
  work.json       model, clients, rounds, batch, rate, average, seed
```

A round: one local epoch of SGD in batches of 64 for each client, then its answers to the whole
proxy set, then two batches of distillation; or, to compare with engines that average weights, one
local epoch and the average. Clients are measured in the last round only, on few test samples.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd import config
from fedkd.config import Scenario
from fedkd.data.dataset import Dataset
from fedkd.data.idx import Idx
from fedkd.data.sources import Digits, load
from fedkd.errors import FedkdError
from fedkd.rng import stream

BATCH, RATE = 64, 0.05
N_TEST = 100


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each client does in a round, and how many of both there are."""

    model: str
    clients: int
    samples: int
    """Private samples a client."""
    proxy: int
    """Samples that each client answers; 0 if weights are averaged instead."""
    rounds: int
    """The first of them warms up."""
    seed: int = 1

    @property
    def average(self) -> bool:
        """Whether this is FedAvg."""
        return self.proxy == 0


def fashion() -> bool:
    """Whether Fashion-MNIST is on this machine, where the scenarios look for it."""
    return Path(Idx().path).is_dir()


@cache
def images() -> Dataset:
    """Every image of Fashion-MNIST, or of scikit-learn's digits if that is not there."""
    both = load(Idx() if fashion() else Digits())
    x = torch.cat([both.train.x, both.test.x])
    return Dataset(x, torch.cat([both.train.y, both.test.y]), both.train.n_classes)


def prepare(work: Work, folder: Path) -> Path:
    """Write a work's folder. Raises: FedkdError if there are too few images for it."""
    everything = images()
    n_train = work.clients * work.samples + work.proxy
    if n_train + N_TEST > len(everything):
        raise FedkdError(
            "too few images for this many clients",
            value=work.clients,
            allowed=f"at most {(len(everything) - N_TEST - work.proxy) // work.samples}",
        )
    order = stream(work.seed, "bench", purpose="images").permutation(len(everything))
    x, y = (part.numpy() for part in everything.rows(order[: n_train + N_TEST]))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "data.npz", x=x[:n_train], y=y[:n_train], x_test=x[n_train:], y_test=y[n_train:]
    )
    scenario = _scenario(work, folder)
    (folder / "scenario.toml").write_text(config.dump(scenario), encoding="utf-8")
    world = scenario.world(work.seed)
    parts = [world.client(client) for client in range(work.clients)]
    pool = x[:0] if world.public_x is None else world.public_x.numpy()
    np.savez(
        folder / "parts.npz",
        x=np.stack([own.numpy() for own, _ in parts]),
        y=np.stack([labels.numpy() for _, labels in parts]),
        pool=pool,
    )
    note = {**asdict(work), "average": work.average, "batch": BATCH, "rate": RATE}
    (folder / "work.json").write_text(json.dumps(note), encoding="utf-8")
    return folder


def read(folder: Path) -> Work:
    """The work of a folder."""
    note = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    return Work(**{key: note[key] for key in Work.__dataclass_fields__})


def _scenario(work: Work, folder: Path) -> Scenario:
    table: dict[str, Any] = {
        "name": "bench",
        "seeds": [work.seed],
        "validation": 0,
        "data": {"name": "npz", "path": str(folder.resolve() / "data.npz")},
        "partition": {"name": "iid", "clients": work.clients},
        "model": {"names": [work.model]},
        "method": {"name": "fedavg" if work.average else "no-filter"},
        "training": {
            "rounds": work.rounds,
            "evaluate_every": work.rounds,
            "local": {"optimizer": "sgd", "learning_rate": RATE, "batch_size": BATCH},
        },
    }
    if not work.average:
        table["proxy"] = {"name": "public", "size": work.proxy}
        table["training"]["distill"] = {
            "optimizer": "sgd",
            "learning_rate": RATE,
            "batch_size": BATCH,
            "epochs": 2 * BATCH / work.proxy,
        }
    return config.parse(table)

"""The folder of a cell as an audit opens it: who held what, which models there are, what was spent.

Everything here is read; nothing of a run is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scenarios import quiet  # noqa: F401  # before anything that imports flwr

from clients.client import Client  # isort: skip
from clients.place import Place
from clients.store import FolderStore
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.data.partition import Own
from fedkd.models.zoo import Classifier, build
from privacy import ledger
from privacy.audit.recording import Recording, recorded
from scenarios.audit import keys
from scenarios.spending import Ledgers
from server.app import NAME, UPLOADS
from server.events import read as read_events

MOST_CLIENTS = 20
"""Of a larger population the first so many are attacked."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """One row with one seed of a run, finished or not."""

    row: str
    seed: int
    scenario: Scenario
    folder: Path
    keys: tuple[Place, ...] = ()
    """Clients of a deployment that let themselves be audited: their data, models and ledgers."""

    @cached_property
    def world(self) -> Federation:
        """Who holds what; of clients with their own data, what those with a key hold.

        Raises: FedkdError as `keys.world`.
        """
        if not self.owned:
            return self.scenario.world(self.seed)
        pool = self.recording.pool() if self.recording else None
        return keys.world(self.scenario, self.n_clients, self.seed, self.keys, pool)

    @property
    def owned(self) -> bool:
        """Whether each client brought its own data, so that only they know who holds what."""
        return isinstance(self.scenario.partition, Own)

    @property
    def n_clients(self) -> int:
        """How many there may be."""
        partition = self.scenario.partition
        return partition.clients if isinstance(partition, Own) else self.world.n_clients

    @cached_property
    def homes(self) -> Mapping[int, Path]:
        """Where each client that keeps anything here, or handed in its key, keeps it."""
        found = {int(path.name): path for path in (self.folder / "clients").glob("[0-9]*")}
        name = self.folder / NAME
        job = name.read_text() if name.exists() else ""
        for key in self.keys:
            store = key.store(job)
            if store is not None and store.home(key.seat).is_dir():
                found[key.seat] = store.home(key.seat)
        return dict(sorted(found.items()))

    @cached_property
    def rounds(self) -> int:
        """The last round that is finished; 0 before any is."""
        events = read_events(self.folder / "events.jsonl")
        return max((int(e["round"]) for e in events if e["event"] == "round"), default=0)

    @cached_property
    def recording(self) -> Recording | None:
        """What the server heard and told; None where nothing was recorded."""
        folder = self.folder / UPLOADS
        return Recording.open(folder) if recorded(folder) else None

    @cached_property
    def ledgers(self) -> Ledgers:
        """What the clients have recorded as leaving."""
        return {
            client: ledger.look(home / "ledger.jsonl")
            for client, home in self.homes.items()
            if (home / "ledger.jsonl").exists()
        }

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """Whom an audit attacks: the first `MOST_CLIENTS` that have a model or were heard.

        Of a deployment, only those that handed in a key.
        """
        heard = self.recording.clients if self.recording else ()
        known = {*self.models, *heard}
        if self.owned:
            known &= {key.seat for key in self.keys}
        return tuple(sorted(known)[:MOST_CLIENTS])

    @cached_property
    def models(self) -> dict[int, Classifier]:
        """The newest model of each of the first clients that has one, in evaluation mode.

        None in the folder of a server whose clients are elsewhere.
        """
        ids = [i for i, home in self.homes.items() if any(home.glob("step-*.safetensors"))]
        last = 2 * self.scenario.training.rounds + 2
        return {i: self._model(i, last) for i in ids[:MOST_CLIENTS]}

    def model_that_answered(self, client: int) -> Classifier:
        """The model of a client as it answered in the last round, before it heard the consensus."""
        return self._model(client, 2 * self.rounds + 1)

    def _model(self, client: int, before: int) -> Classifier:
        state = FolderStore(self.homes[client].parent).load(client, before)
        return self._client(client).model(state).eval()

    def _client(self, client: int) -> Client:
        return Client(
            scenario=self.scenario,
            seed=self.seed,
            id=client,
            round=self.rounds,
            world=self.world,
            device=CPU,
        )

    def new_model(self, client: int, generator: torch.Generator) -> Classifier:
        """An untrained model of a client's architecture, or of the first for the SERVER."""
        train = self.world.train
        channels, height, width = train.x.shape[1:]
        name = self._client(max(client, 0)).architecture
        return build(name, (channels, height, width), train.n_classes, generator, train.x.dtype)

    def proxy_truth(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """As `Federation.proxy_truth`; None where it hangs on clients that handed in no key."""
        return None if self.untold else self.world.proxy_truth

    @property
    def untold(self) -> list[int]:
        """Clients of a deployment that gave to the proxy set and handed in no key."""
        pool = self.recording.pool() if self.owned and self.recording else None
        gave = set() if pool is None else set(pool.contributor[pool.contributor >= 0].tolist())
        return sorted(gave - {key.seat for key in self.keys})

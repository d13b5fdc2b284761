"""What a run is asked to do, and who takes part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedkd import payload
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.data.partition import Own
from fedkd.models.zoo import Shape
from server.calls import record_of

Seats = Mapping[int, int]
"""Client by node id: whom a node may speak for."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run is asked to do."""

    scenario: Scenario
    seed: int
    state_folder: str
    """Where simulated clients keep their state; clients with a folder of their own ignore it."""
    name: str = ""
    """Of the run among all that a deployed client takes part in."""
    seats: Seats | None = None
    """The client that each node may speak for; None: whichever it says."""

    @property
    def world(self) -> Federation | None:
        """Who holds what: a simulation's server measures by it, and never learns from it.

        None where each client brings its own data.
        """
        if isinstance(self.scenario.partition, Own):
            return None
        return self.scenario.world(self.seed)

    @property
    def n_clients(self) -> int:
        """How many clients there may be."""
        if isinstance(self.scenario.partition, Own):
            return self.scenario.partition.clients
        return self.scenario.world(self.seed).n_clients

    def content(self, round_: int, pool: str = "", data: payload.Bytes | None = None) -> RecordDict:
        """The content of a message: the scenario, the round, the pool's digest and a payload."""
        config = ConfigRecord(
            {
                "scenario": self.scenario.model_dump_json(),
                "seed": self.seed,
                "round": round_,
                "state-folder": self.state_folder,
                "job": self.name,
                "pool": pool,
            }
        )
        content = RecordDict({"config": config})
        if data is not None:
            content["payload"] = record_of(data)
        return content


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The clients of a run and their proxy set."""

    nodes: dict[int, int] | range
    """Node id by client, of those who are there: `nodes[client]`."""
    n_classes: int
    shape: Shape
    """Of one sample: channels, height, width."""
    dtype: torch.dtype
    """Of the samples' values."""
    pool: payload.Pool | None
    truth: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    """Labels [n_samples] and strata [records] of the proxy set, to measure by; None if unknown."""
    packed: payload.Bytes | None
    """The pool as it is sent."""
    digest: str
    holders: set[int]
    """Clients that have the pool: it goes to each once, when it first takes part."""

    @property
    def positions(self) -> int:
        """How many samples a proxy record is: 1 image, or L tokens."""
        text = self.pool is not None and self.pool.x.dtype == np.int16
        return self.shape[2] if text else 1

    @property
    def clients(self) -> Sequence[int]:
        """All clients, ascending; never a list of a million."""
        return range(len(self.nodes)) if isinstance(self.nodes, range) else sorted(self.nodes)

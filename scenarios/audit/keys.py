"""Answer keys: what a deployed client held, from its own folder, if it lets itself be audited.

A server's recording says what was sent, and nothing of who holds what. A client that hands in its
folder says so for itself: its data, and the models and ledgers that it kept of the run. Nothing
else can be found against, so a client without a key is not attacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clients.place import Place
from fedkd.config import Scenario
from fedkd.data.federation import Federation, joined
from fedkd.data.proxy import Contributed
from fedkd.errors import FedkdError
from fedkd.payload import Pool
from scenarios.deploy.folder import client_settings

MISSING = "only the clients know who holds what: hand in their folders with --key"


def read(folders: Iterable[Path]) -> tuple[Place, ...]:
    """The keys in folders of clients, as `fedkd deploy` makes them; by seat.

    Raises: FedkdError for a folder that is no client's, or two of one seat.
    """
    found: dict[int, Place] = {}
    for folder in folders:
        settings = client_settings(folder)
        if settings.seat in found:
            raise FedkdError("two keys of one client", value=str(folder), fix="give one of them")
        found[settings.seat] = Place(settings.seat, folder / "state", settings.data, None)
    return tuple(found[seat] for seat in sorted(found))


def world(
    scenario: Scenario, seats: int, seed: int, keys: Sequence[Place], pool: Pool | None
) -> Federation:
    """Who holds what, as far as the keys say, where each client brought its own data.

    Args: seats: how many clients there may be; pool: the proxy set of the run.
    Raises: FedkdError without a key, for one without data, or data that are not those of the run.
    """
    if not keys:
        raise FedkdError(MISSING)
    parts = {}
    for key in keys:
        if key.data is None:
            raise FedkdError(
                "the client's folder does not say which data it held",
                value=str(key.state),
                fix="write its section [data] into client.toml",
            )
        parts[key.seat] = scenario.held(seed, key.seat, key.data)
    gives = scenario.uses_pool and isinstance(scenario.proxy, Contributed)
    if gives and pool is not None:
        parts = {seat: _as_given(seat, part, pool) for seat, part in parts.items()}
    public = torch.from_numpy(pool.x) if pool is not None and not gives else None
    return joined(parts, seats, public, seed)


def _as_given(seat: int, part: Federation, pool: Pool) -> Federation:
    """A client's part with what it gave to this proxy set: nothing, if it came after that was made.

    Raises: FedkdError for other samples than those that it gave.
    """
    given = pool.x[pool.contributor == seat]
    if not len(given):
        return replace(part, contributed=tuple(ids[:0] for ids in part.contributed))
    if not np.array_equal(part.contribution(seat)[0].numpy(), given):
        raise FedkdError(
            "these are not the data that the client took part with: it gave other samples",
            value=f"client {seat}",
            fix="the [data] of client.toml at the time of the run",
        )
    return part

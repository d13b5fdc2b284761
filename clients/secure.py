"""A client's side of secure aggregation: its key, its blinded table, what it reveals of others.

Keys and noise come from the house's streams, as in `clients.guard`, so a repeated message gives the
same bytes. Whoever knows the seed can take every mask off, the server of a simulation too; a
deployed client draws from a secret of its own, and whoever steals that can take off all its masks,
of earlier rounds too.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.client import Client
from clients.store import ClientStore
from fedkd import payload, payload_secure, protection
from fedkd.errors import FedkdError
from privacy import secagg
from privacy.secagg import Cohort, Keys

REVEALED = "revealed"
"""In a client's state: int64 [1 + n], a round and the clients whose secrets it gave away then."""


def keys(client: Client) -> Keys:
    """The client's key pair of this round."""
    return secagg.keys(client.private_draws("secagg").bytes(32))


def cohort(client: Client, data: payload.Bytes) -> tuple[Cohort, frozenset[int]]:
    """The clients of this round as the server sent them, and who of them was lost."""
    public, lost = payload_secure.decode_cohort(data, round_=client.round)
    return secagg.cohort(client.round, public), lost


def blind(client: Client, cohort: Cohort, full: NDArray[np.float64]) -> payload.Bytes:
    """The client's table [samples, classes + 1] as it leaves: with its noise and under its mask."""
    row = client.scenario.privacy.server
    assert isinstance(row, protection.SecureAggregation)
    if row.sigma:
        full = secagg.add_noise(full, row.sigma, cohort.least, client.private_draws("sum noise"))
    rows, columns = full.shape
    mask = secagg.mask(client.id, keys(client), cohort, (rows, columns))
    blinded = secagg.blind(full, mask, len(cohort.public))
    return payload_secure.encode_blinded(blinded, client.id, client.round)


def reveal(client: Client, store: ClientStore, data: payload.Bytes) -> payload.Bytes:
    """The client's secrets with those that were lost; it says so once a round, and keeps it first.

    Raises: FedkdError if others were lost before: both answers together could uncover a client.
    """
    whole, lost = cohort(client, data)
    asked = torch.tensor([client.round, *sorted(lost)])
    before = remembered(client, store).get(REVEALED)
    if before is not None and not torch.equal(before, asked):
        raise FedkdError(
            "other clients were lost in this round before",
            value=sorted(lost),
            allowed=str(before[1:].tolist()),
            fix="go on with the next round",
        )
    secrets = secagg.reveal(client.id, keys(client), whole, lost)
    step = 2 * client.round
    state = store.load(client.id, before=step + 1) or {}
    store.save(client.id, step, {**state, REVEALED: asked})
    return payload_secure.encode_secrets(secrets, client.id, client.round)


def remembered(client: Client, store: ClientStore) -> dict[str, Tensor]:
    """What the client revealed in this round, if it did: a repeated `train` must not forget it."""
    state = store.load(client.id, before=2 * client.round + 1) or {}
    kept = state.get(REVEALED)
    return {} if kept is None or kept[0] != client.round else {REVEALED: kept}

"""A client's cache of soft labels: what it was told, and may learn again without being told.

Source: SCARLET, arXiv 2504.19602; see `fedkd.exchange.selection.Draw.cache`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.client import Client
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.selection import Draw

DRAWN, IDS, VALUES, TOLD_IN = (f"cache.{name}" for name in ("drawn", "ids", "values", "told_in"))
"""In a client's state: the round that it was last asked in, then the records drawn there, int64;
the samples that it keeps, int32 [m], float32 [m, classes], and the round of each, int64 [m]."""


def note(state: dict[str, Tensor], round_: int, drawn: NDArray[np.int32]) -> None:
    """Remember which records a round draws."""
    state[DRAWN] = torch.from_numpy(np.concatenate([[round_], drawn]).astype(np.int64))


def recalled(
    client: Client, state: dict[str, Tensor], told: Consensus, positions: int
) -> Consensus:
    """What a round teaches: what was told, and of the other records drawn what still stands.

    The state keeps what was told, and drops what stands no more.
    """
    row, round_ = client.scenario.method.select, client.round
    assert isinstance(row, Draw)  # else there is no cache
    ids, values = told.ids, told.values
    told_in = np.full(len(ids), round_, np.int64)
    if IDS in state:
        kept = [state[key].numpy() for key in (IDS, VALUES, TOLD_IN)]
        stands = row.fresh(kept[2], round_) & ~np.isin(kept[0], ids)
        ids = np.concatenate([ids, kept[0][stands]])
        values = np.concatenate([values, kept[1][stands]])
        told_in = np.concatenate([told_in, kept[2][stands]])
    order = np.argsort(ids)
    ids, values, told_in = ids[order], values[order], told_in[order]
    state |= {
        IDS: torch.from_numpy(ids),
        VALUES: torch.from_numpy(values),
        TOLD_IN: torch.from_numpy(told_in),
    }
    last = state[DRAWN].numpy() if DRAWN in state else np.zeros(1, np.int64)
    drawn = last[1:] if last[0] == round_ else last[:0]
    learnt = (told_in == round_) | np.isin(ids // positions, drawn)
    return Consensus(ids[learnt], values[learnt])

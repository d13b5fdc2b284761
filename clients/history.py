"""What a client was asked so far, in one digest, so that it answers a question once.

A repeated message gets the same answer again, under the same noise and without a new charge: that
is how a round survives a crash. So a server must not get a *second* answer that way, by asking for
the same round after it has taught the client something else, or from another scenario: two answers
under one noise tell their difference. Each state therefore keeps the digest of all that led to it,
and a step that has been taken is taken again only if that is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from clients.store import ClientStore
from fedkd.errors import FedkdError
from fedkd.payload import Bytes

HISTORY = "history"
"""In a state: uint8 [32]."""


def after(state: Mapping[str, Tensor] | None, step: int, asked: str, data: Bytes | None) -> Tensor:
    """The digest after a step. Args: asked: the scenario and the pool; data: the payload."""
    before = b"" if state is None or HISTORY not in state else state[HISTORY].numpy().tobytes()
    parts = [before, str(step).encode(), asked.encode(), b"" if data is None else data]
    whole = b"".join(hashlib.sha256(part).digest() for part in parts)
    return torch.frombuffer(bytearray(hashlib.sha256(whole).digest()), dtype=torch.uint8)


def check(store: ClientStore, client: int, step: int, history: Tensor) -> None:
    """Raises: FedkdError where the step was taken before, after another history."""
    taken = store.at(client, step)
    if taken is None and (store.newest(client) or -1) < step:
        return
    if taken is None or HISTORY not in taken or not torch.equal(taken[HISTORY], history):
        raise FedkdError(
            "this client has answered in this round before, and to another question",
            value=f"round {step // 2}",
            allowed="the same question again, or a later round",
            fix="go on with the next round, or start a new run",
        )

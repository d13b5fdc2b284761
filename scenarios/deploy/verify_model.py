"""Do a client's answers come from the model that it announced? For who may see the client's folder.

With each answer a client signs the hash of the model that gave it. Whoever checks recomputes the
recorded answers from the model in the client's folder: another model has another hash, or other
answers. TOPLOC (arXiv 2501.16007) does so from a few activations, since a language model's answers
do not show its logits; here the soft labels themselves are what can be recomputed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clients.client import ProxySet, model_part
from clients.place import Place
from clients.store import FolderStore
from fedkd import training
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from fedkd.models import zoo
from fedkd.protection import PlainRelease
from fedkd.transcript import Entry, Statement, model_digest
from privacy.audit.recording import Recording
from server.app import UPLOADS

TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "int8": 1e-2}
"""By codec: how far a probability may be off, for another machine's sums and the codec's bound."""


class Cell(NamedTuple):
    """One seed of a deployed run."""

    folder: Path
    seed: int
    scenario: Scenario
    entries: list[Entry]
    statements: list[Statement]


def answers_of_model(cell: Cell, state: Path) -> tuple[bool | None, str]:
    """Recompute the recorded answers of the rounds whose model the client still keeps."""
    scenario = cell.scenario
    plain = isinstance(scenario.privacy.release, PlainRelease)
    if not plain or scenario.method.release.name != "probabilities":
        return None, "not looked at: what leaves is not the model's probabilities as they are"
    if scenario.wire.up not in TOLERANCE or not (cell.folder / UPLOADS).exists():
        return None, "not looked at: the answers are not recorded (audit = true, wire.up)"
    job = cell.statements[0].job
    store = Place(0, state, None, None).store(job)
    assert store is not None
    recording = Recording.open(cell.folder / UPLOADS)
    own = {seat for seat in recording.clients if store.newest(seat) is not None}
    if len(own) != 1:
        raise FedkdError("no client of this run has kept its models there", value=str(state))
    (seat,) = own
    rounds = []
    for one in cell.statements:
        kept = store.at(seat, 2 * one.round)
        if (one.client, one.step) != (seat, "train") or kept is None or one.round in rounds:
            continue
        if model_digest(model_part(kept)) != one.model:
            return False, f"round {one.round}: the model there is not the one that was announced"
        off = _off(cell, recording, store, seat, one.round)
        if off > TOLERANCE[scenario.wire.up]:
            return False, (
                f"round {one.round}: the answers are not those of the announced model, off by up "
                f"to {off:.2g}; allowed: {TOLERANCE[scenario.wire.up]:g}"
            )
        rounds.append(one.round)
    if not rounds:
        return None, "not looked at: the client keeps no model of a recorded round"
    said = ", ".join(map(str, rounds))
    return True, f"rounds {said}: the answers are those of the model that was announced"


def _off(cell: Cell, recording: Recording, store: FolderStore, seat: int, round_: int) -> float:
    """The largest gap between a recorded answer of a round and the model's own."""
    pool, rows, state = recording.pool(), recording.answer(round_, seat), store.at(seat, 2 * round_)
    if rows is None or pool is None or state is None:
        return 0.0
    ids, values = rows
    proxy = ProxySet.of(pool, torch.device("cpu"))
    names = cell.scenario.model.names
    channels, height, width = pool.x.shape[1:]
    model = zoo.build(
        names[seat % len(names)],
        (channels, height, width),
        values.shape[1],
        torch.Generator(),
        torch.from_numpy(pool.x).dtype,
    )
    model.load_state_dict(model_part(state))
    records = np.unique(ids // proxy.positions)
    logits = training.predict(model.eval(), proxy.x[torch.from_numpy(records)])
    told: NDArray[np.float32] = (
        cell.scenario.method.release.release(logits.flatten(0, -2)).cpu().numpy()
    )
    if told.shape != values.shape:
        return 1.0
    return float(np.abs(told - values).max(initial=0.0))

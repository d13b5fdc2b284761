"""The server's own model: it learns the consensus round after round, and may speak for all.

Guarantee: its lessons are the consensus and the pool, so what it tells is post-processing of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd import device, training
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.student import ServerStudent
from fedkd.lesson import lesson, target_of
from fedkd.models.zoo import build
from fedkd.rng import stream, torch_stream
from server.job import Job, Roster

PREFIX = "student."
"""Of its weights in a checkpoint."""


class Student:
    """The model as it is before a round and after it, since a round may be played again."""

    def __init__(self, job: Job, roster: Roster) -> None:
        assert roster.pool is not None  # every method with a student uses a pool
        self._job, self._scenario = job, job.scenario
        self._positions = roster.positions
        row = job.scenario.method.student
        assert isinstance(row, ServerStudent)
        self._row = row
        self._device = device.resolve(job.scenario.device)
        name = row.model or job.scenario.model.names[0]
        init = torch_stream(job.seed, "server", purpose="student init")
        model = build(name, roster.shape, roster.n_classes, init, roster.dtype)
        self._model = model.to(self._device)
        self._x = training.inputs(torch.from_numpy(roster.pool.x).to(self._device))
        self._before = self._weights()
        self._learnt = 0
        """The last round that it learnt."""

    def learn(self, round_: int, consensus: Consensus) -> tuple[Consensus, dict[str, Any]]:
        """Learn a round's consensus; return what the clients are to be told, and what to log.

        The same round again begins with what it began with. Without a consensus nothing changes.
        """
        torch.set_num_threads(self._scenario.threads)
        if round_ > self._learnt:
            self._before, self._learnt = self._weights(), round_
        else:
            self._model.load_state_dict(self._before)
        said: dict[str, Any] = {}
        if len(consensus.ids):
            said["server_loss"] = self._fit(round_, consensus)
            if self._row.tells == "student":
                consensus = self._says(consensus)
        world = self._job.world
        if world is not None and self._scenario.measures(round_):
            x, y = (some.to(self._device) for some in (world.test.x, world.test.y))
            graded = training.grades(self._model, training.inputs(x), y)
            said["server_accuracy"] = float(graded.hits.sum() / graded.positions.sum())
        return consensus, said

    def _fit(self, round_: int, consensus: Consensus) -> float:
        method, phase = self._scenario.method, self._scenario.training.student
        ids = torch.from_numpy(consensus.ids).long()
        rows, targets, weight = lesson(ids, target_of(method, consensus), self._positions)
        return training.fit(
            self._model,
            self._x,
            targets.to(self._device),
            method.distill.loss,
            phase,
            stream(self._job.seed, "server", round_, purpose="student"),
            rows=rows.to(self._device),
            weight=None if weight is None else weight.to(self._device),
        )

    def _says(self, consensus: Consensus) -> Consensus:
        """What the model releases for the samples of a consensus, as a client would."""
        ids = torch.from_numpy(consensus.ids).long()
        records, place = torch.unique(ids // self._positions, return_inverse=True)
        self._model.eval()
        logits = training.predict(self._model, self._x[records.to(self._device)])
        if self._positions > 1:
            logits = logits[place.to(self._device), (ids % self._positions).to(self._device)]
        values = self._scenario.method.release.release(logits)
        return Consensus(consensus.ids, values.cpu().numpy())

    def _weights(self) -> dict[str, Tensor]:
        return {k: weight.detach().clone() for k, weight in self._model.state_dict().items()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The weights, for a checkpoint."""
        return {PREFIX + k: np.asarray(w.cpu(), order="C") for k, w in self._weights().items()}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take them back."""
        kept = {k.removeprefix(PREFIX): w for k, w in arrays.items() if k.startswith(PREFIX)}
        self._model.load_state_dict({k: torch.from_numpy(w) for k, w in kept.items()})


def student_of(job: Job, roster: Roster) -> Student | None:
    """The server's model, where the method has one."""
    return Student(job, roster) if job.scenario.method.student.name == "server" else None

"""Students of one client's uploads: a copy of its model, and references that lack a given target.

Whoever records a client's answers can distil models of its own from them, and ask those about any
record, also outside the proxy set. Two uses:

* the *copy*: the mean signal of a client's students stands in for its model, which the observer
  does not have; the copies of other clients are its references.
* *references*: each student learns from its own random part of the answered samples, so a target in
  the proxy set is unknown to some students (`Students.taught`). Shi, Ouyang, Wang 2025 hold these
  against the client's own model.

Empirical: what one way to distil brings out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fedkd.cohort import Cohort
from fedkd.config_sections import Phase
from fedkd.errors import FedkdError
from fedkd.models.zoo import Classifier
from fedkd.rng import stream, torch_stream
from fedkd.training import Loss, fit, grades, predict
from privacy.audit.signals import Doubles, Flags, Ids, phi

SHARE = 0.8
"""Of the answered samples, for each student."""

Build = Callable[[torch.Generator], Classifier]
"""A new model with weights drawn from the generator: `fedkd.models.zoo.build`, the rest given."""


def logit_l1(logits: Tensor, target: Tensor) -> Tensor:
    """Mean |logits - target| over classes, [n]: the paper's loss, where raw logits are uploaded.

    For soft labels take `fedkd.exchange.distill.KL`, at the temperature of their release.
    """
    return (logits - target).abs().mean(dim=1)


@dataclass(frozen=True, eq=False)
class Students:
    """Models distilled from the uploads of one client."""

    models: Sequence[Classifier]
    taught: Flags
    """bool [students, records]: which proxy records each was taught."""

    def signals(self, x: Tensor, y: ArrayLike) -> Doubles:
        """phi [students, n] of records x [n, c, h, w] with labels y int64 [n]; [students, n, L]."""
        return np.stack([phi(predict(model, x).cpu().numpy(), y) for model in self.models])

    def members(self, records: Ids) -> Flags:
        """bool [students, targets]: who was taught which of the proxy records, -1 for none."""
        return self.taught[:, records] & (records >= 0)


def distilled(
    build: Build,
    x: Tensor,
    answers: ArrayLike,
    loss: Loss,
    phase: Phase,
    *,
    n: int,
    seed: int,
    client: int,
    share: float = SHARE,
) -> Students:
    """`n` students, each taught a random `share` of the answered records.

    Shapes: x [records, c, h, w], the proxy set on the device to learn on; answers
    [records, classes], or [records, L, classes] of texts: what the client has uploaded, such as
    `signals.averaged` of `uploads.rows_at` over rounds, NaN where it never answered.
    Weights, parts and batches come from streams of (seed, client); so students of the same client
    are the same, whoever else is attacked.
    Raises: FedkdError where the client answered nothing, or share is not in (0, 1].
    Source: Shi, Ouyang, Wang 2025, arXiv:2502.08001, with n = 16, share 0.8, Adam at 1e-3 for 20
    passes, L1 on logits. Deviation: their students ask the client's model; ours have its uploads.
    """
    values = np.asarray(answers, dtype=np.float32)
    known: Flags = ~np.isnan(values[..., 0])
    answered = np.flatnonzero(known.reshape(len(known), -1).any(axis=1))
    if not 0 < share <= 1:
        raise FedkdError("share of a student", value=share, allowed="above 0, at most 1")
    if not len(answered):
        raise FedkdError("the client answered nothing, so there is nothing to distil", value=client)
    size = max(1, round(share * len(answered)))
    parts = [
        np.sort(_stream(seed, client, "part", i).permutation(answered)[:size]) for i in range(n)
    ]
    models = [
        build(torch_stream(seed, "student", client=client, purpose=f"weights-{i}")).to(x.device)
        for i in range(n)
    ]
    draws = [_stream(seed, client, "batches", i) for i in range(n)]
    _teach(models, x, torch.from_numpy(values), parts, loss, phase, draws)
    taught = np.zeros((n, len(values)), dtype=np.bool_)
    for row, part in zip(taught, parts, strict=True):
        row[part] = True
    return Students(models, taught)


def _stream(seed: int, client: int, purpose: str, student: int) -> np.random.Generator:
    return stream(seed, "student", client=client, purpose=f"{purpose}-{student}")


def _teach(
    models: Sequence[Classifier],
    x: Tensor,
    answers: Tensor,
    parts: Sequence[Ids],
    loss: Loss,
    phase: Phase,
    draws: Sequence[np.random.Generator],
) -> None:
    """Teach each model the rows `parts[i]` of x and answers; a position without one counts nothing.

    Stacked, eight MLPs of 784-128-10 took 0.3 of the time on one CPU thread; convolutions took
    twice as long, and texts with missing positions need weights of their own. So those go alone.
    """
    known = ~answers[..., 0].isnan().to(x.device)
    targets = answers.nan_to_num().to(x.device)
    rows = [torch.from_numpy(part).to(x.device) for part in parts]
    convolves = any(isinstance(module, nn.Conv2d) for module in models[0].modules())
    complete = all(bool(known[ids].all()) for ids in rows)
    if complete and not (convolves and x.device.type == "cpu"):
        own = [x[ids] for ids in rows]
        Cohort(models).fit(own, [targets[ids] for ids in rows], loss, phase, draws)
        return
    for model, ids, rng in zip(models, rows, draws, strict=True):
        weight = None if complete else known[ids].float()
        fit(model, x, targets[ids], loss, phase, rng, rows=ids, weight=weight)


class Theft(NamedTuple):
    """How good a copy is, over the positions that have a label."""

    agreement: float
    """Share on which the copy and the client's model name the same class."""
    accuracy: float
    """Share on which the copy is right."""
    accuracy_of_client: float
    """Share on which the client's model is right: what there was to steal."""


def clone(
    build: Build,
    x: Tensor,
    answers: ArrayLike,
    loss: Loss,
    phase: Phase,
    *,
    seed: int,
    client: int,
) -> Classifier:
    """Model stealing: one student of all that the client has uploaded; see `distilled`."""
    return distilled(
        build, x, answers, loss, phase, n=1, seed=seed, client=client, share=1.0
    ).models[0]


def theft(copy: Classifier, client: Classifier, x: Tensor, y: Tensor) -> Theft:
    """What the copy is worth on records x [n, c, h, w] with labels y int64 [n] or [n, L]."""
    stolen, own = grades(copy, x, y), grades(client, x, y)
    labelled = (y >= 0).flatten()
    named = [predict(model, x).argmax(dim=-1).flatten()[labelled] for model in (copy, client)]
    n = int(stolen.positions.sum())
    same = int((named[0] == named[1]).sum())
    return Theft(same / n, int(stolen.hits.sum()) / n, int(own.hits.sum()) / n)

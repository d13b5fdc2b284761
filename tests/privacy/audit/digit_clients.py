"""Ten real clients that have learnt thirty digits each by heart, and what each says of anything."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd.cohort import Cohort
from fedkd.config_sections import Phase
from fedkd.data.dataset import Dataset
from fedkd.data.sources import Digits
from fedkd.models.zoo import Classifier, build
from fedkd.rng import stream, torch_stream
from fedkd.training import cross_entropy, predict
from privacy.audit.signals import Doubles, Flags, phi
from privacy.audit.targets import balanced_targets

CLIENTS, RECORDS, PUBLIC = 10, 30, 600


class Attacked(NamedTuple):
    """What a client is attacked on: its own thirty digits and thirty that nobody has."""

    x: Tensor
    y: Tensor
    member: Flags


class Federation(NamedTuple):
    models: list[Classifier]
    attacked: list[Attacked]
    proxy: Dataset
    test: Dataset

    def signals(self, x: Tensor, y: Tensor) -> Doubles:
        """phi [clients, n] of the clients' models."""
        return np.stack([phi(predict(model, x).numpy(), y.numpy()) for model in self.models])


def mlp(generator: torch.Generator) -> Classifier:
    return build("mlp", (1, 8, 8), 10, generator)


@lru_cache
def federation() -> Federation:
    splits = Digits().load()
    order = stream(1, "deal").permutation(len(splits.train))
    hands = np.split(order[: CLIENTS * RECORDS], CLIENTS)
    owns = [splits.train.subset(hand) for hand in hands]
    models = [mlp(torch_stream(1, "model", client=i)) for i in range(CLIENTS)]
    Cohort(models).fit(
        [own.x for own in owns],
        [own.y for own in owns],
        cross_entropy,
        Phase(epochs=60, batch_size=16, learning_rate=0.003),
        [stream(1, "fit", client=i) for i in range(CLIENTS)],
    )
    attacked = []
    for i, own in enumerate(owns):
        chosen = balanced_targets(own, splits.test, stream(1, "targets", client=i))
        (x, y), (others, labels) = own.rows(chosen.members), splits.test.rows(chosen.others)
        member = np.arange(2 * len(x)) < len(x)
        attacked.append(Attacked(torch.cat([x, others]), torch.cat([y, labels]), member))
    proxy = splits.train.subset(order[CLIENTS * RECORDS :][:PUBLIC])
    return Federation(models, attacked, proxy, splits.test)

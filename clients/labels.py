"""A client's side of FD: what it says of each label, and learning by what the others say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clients.client import Client
from fedkd import payload, training
from fedkd.exchange.label_means import Own, Peers, means_of, of_others, regularised
from fedkd.exchange.regulariser import Labels
from fedkd.models.zoo import Classifier

SAID, HELD = "label-means", "labels"
"""In a client's state: what it said last, float32 [m, classes], and of which labels, int32 [m]."""


def peers(client: Client, state: Mapping[str, Tensor], data: payload.Bytes | None) -> Peers | None:
    """What the others said of each label in the round before; None where nothing is known."""
    if data is None:
        return None
    n_classes = client.world.train.n_classes
    said = payload.decode_label_means(data, round_=client.round, n_classes=n_classes)
    own = Own(state[HELD].numpy(), state[SAID].numpy()) if SAID in state else None
    return of_others(said, client.id, own)


def lesson(
    clients: Sequence[Client], ys: Sequence[Tensor], others: Sequence[Peers]
) -> tuple[training.Loss, list[Tensor]]:
    """The private loss with its second term, and each client's labels as it reads them."""
    method, device = clients[0].scenario.method, clients[0].device
    row, n_classes = method.regulariser, clients[0].world.train.n_classes
    assert isinstance(row, Labels)
    values = torch.cat([torch.from_numpy(one.values) for one in others])
    target = values if method.distill.raw else method.release.target(values)
    known = torch.cat([torch.from_numpy(one.known) for one in others])
    loss = regularised(target.to(device), known.to(device), method.distill.loss, row.gamma)
    coded = [torch.where(y < 0, y, y + i * n_classes) for i, y in enumerate(ys)]
    return loss, coded


def say(client: Client, model: Classifier) -> Own:
    """The mean of what the model releases for the client's records of each label."""
    x, y = client.world.client(client.id)
    logits = training.predict(model.eval(), training.inputs(x.to(client.device)))
    release = client.scenario.method.release
    return means_of(release.release(logits.flatten(0, -2)), y.flatten().to(client.device))


def remembered(own: Own) -> dict[str, Tensor]:
    """What a state keeps of it."""
    return {HELD: torch.from_numpy(own.ids), SAID: torch.from_numpy(own.values)}

"""FD's exchange: what clients say of a label on average, and what the others say of it.

Source: Jeong et al., arXiv 1811.11479. Deviations: the means are of the model as it is after its
private learning, and not along the way; a label counts the clients that hold it, and no others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.dataset import NO_LABEL
from fedkd.training import Loss, cross_entropy


class LabelMeans(NamedTuple):
    """What clients said of each label together, of those that any of them holds."""

    clients: NDArray[np.int32]  # [k] ascending: whose means are in it
    ids: NDArray[np.int32]  # [m] ascending: labels
    total: NDArray[np.float64]  # [m, classes]
    voters: NDArray[np.int32]  # [m] from 1 to k


class Own(NamedTuple):
    """What one client said."""

    ids: NDArray[np.int32]  # [m] the labels that it holds, ascending
    values: NDArray[np.float32]  # [m, classes]


class Peers(NamedTuple):
    """What the others say of each label."""

    values: NDArray[np.float32]  # [classes, classes]; rows of unknown labels are 0
    known: NDArray[np.bool_]  # [classes]


def means_of(values: Tensor, labels: Tensor) -> Own:
    """The mean of the values [n, classes] of each label; positions without one do not count."""
    values, labels = values[labels != NO_LABEL], labels[labels != NO_LABEL]
    n_classes = values.shape[1]
    total = values.new_zeros(n_classes, n_classes, dtype=torch.float64)
    total.index_add_(0, labels, values.double())
    count = torch.bincount(labels, minlength=n_classes)
    held = count.nonzero().squeeze(1)
    means = (total[held] / count[held, None]).float()
    return Own(held.cpu().numpy().astype(np.int32), means.cpu().numpy())


def of_others(said: LabelMeans, client: int, own: Own | None) -> Peers:
    """The mean of what the others said of each label: the client's own share is taken out.

    A label that nobody else holds is unknown; so is all, if the client's share is in it and it has
    lost what it said.
    """
    n_classes = said.total.shape[1]
    total, voters = np.zeros((n_classes, n_classes)), np.zeros(n_classes, np.int64)
    if client not in said.clients:
        own = Own(np.empty(0, np.int32), np.empty((0, n_classes), np.float32))
    if own is not None:
        total[said.ids], voters[said.ids] = said.total, said.voters
        total[own.ids] -= own.values
        voters[own.ids] -= 1
    known = voters > 0
    total[~known] = 0
    return Peers((total / np.maximum(voters, 1)[:, None]).astype(np.float32), known)


def regularised(target: Tensor, known: Tensor, loss: Loss, gamma: float) -> Loss:
    """Cross-entropy of labels, and gamma times a loss to the others' target of the label.

    Args: target: [clients * classes, classes]; known: bool [clients * classes]. Labels are coded as
        client * classes + label, so that clients with different targets can learn together.
    """
    n_classes = target.shape[1]

    def whole(logits: Tensor, coded: Tensor) -> Tensor:
        there = coded != NO_LABEL
        at = coded.clamp_min(0)
        private = cross_entropy(logits, torch.where(there, at % n_classes, NO_LABEL))
        return private + gamma * loss(logits, target[at]) * (known[at] & there)

    return whole

"""The partitions that give each client a few classes only: strong, weak, pathological.

flwr-datasets' PathologicalPartitioner does not serve: it leaves classes without a client and
takes seconds for 60,000 samples. The tests hold these rows against it where both can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from fedkd.data.split import Counted, Ids
from fedkd.errors import FedkdError


class Strong(Counted):
    """EdgeFD's strong non-IID: one class a client."""

    name: Literal["strong"] = "strong"

    def _deal(self, labels: Ids, rng: np.random.Generator) -> list[Ids]:
        return _by_class(labels, _ring(np.unique(labels), self.clients, 1), rng)


class Weak(Counted):
    """EdgeFD's weak non-IID: two classes a client."""

    name: Literal["weak"] = "weak"

    def _deal(self, labels: Ids, rng: np.random.Generator) -> list[Ids]:
        return _by_class(labels, _ring(np.unique(labels), self.clients, 2), rng)


class Pathological(Counted):
    """A set number of classes a client: the first in turn, the others at random.

    Source: Li et al. 2022, arXiv:2102.02079, "#C = k".
    """

    name: Literal["pathological"] = "pathological"
    classes_per_client: int = Field(default=2, ge=1)

    def _deal(self, labels: Ids, rng: np.random.Generator) -> list[Ids]:
        classes = np.unique(labels)
        _check_owners(classes, self.clients, self.classes_per_client, needed=len(classes))
        first = [classes[client % len(classes)] for client in range(self.clients)]
        others = self.classes_per_client - 1
        owned = [
            {int(c), *rng.choice(classes[classes != c], others, replace=False).tolist()}
            for c in first
        ]
        return _by_class(labels, owned, rng)


def _ring(classes: Ids, clients: int, width: int) -> list[set[int]]:
    """The classes of each client: `width` neighbours on a ring, at starts evenly spread.

    For as many clients as classes, client i starts at class i.
    """
    _check_owners(classes, clients, width, needed=-(-len(classes) // width))
    starts = np.arange(clients) * len(classes) // clients
    around = np.arange(width)
    return [set(classes[(start + around) % len(classes)].tolist()) for start in starts]


def _check_owners(classes: Ids, clients: int, width: int, needed: int) -> None:
    if width > len(classes):
        raise FedkdError(
            f"{width} classes a client, but the data have {len(classes)}",
            fix="fewer classes a client, or another partition",
        )
    if clients < needed:
        raise FedkdError(
            f"{clients} clients would leave some of {len(classes)} classes without an owner",
            allowed=f"this partition needs at least {needed} clients",
            fix=f"set partition.clients to {needed} or more",
        )


def _by_class(labels: Ids, owned: Sequence[set[int]], rng: np.random.Generator) -> list[Ids]:
    """Each class's samples, shuffled, in equal pieces to the clients that own it."""
    hands: list[list[Ids]] = [[] for _ in owned]
    for label in np.unique(labels).tolist():
        owners = [hand for hand, mine in zip(hands, owned, strict=True) if label in mine]
        samples = rng.permutation(np.flatnonzero(labels == label))
        for hand, piece in zip(owners, np.array_split(samples, len(owners)), strict=True):
            hand.append(piece)
    return [np.concatenate(hand) for hand in hands]

"""What the rows of the partition table share: the stream they draw from, and the checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.errors import FedkdError
from fedkd.rng import stream
from fedkd.section import Section

Ids = NDArray[np.int64]
LEAST = 2  # samples of a client: one to train on, one to hold out


class Counted(Section, ABC):
    """A row that is told how many clients there are."""

    clients: int = Field(default=10, ge=1)

    def split(self, labels: Ids, client_ids: Ids | None, seed: int) -> list[Ids]:
        """One sorted index array a client, disjoint, covering all n samples, two or more each.

        Shapes: `labels` int64 [n]; `client_ids` int64 [n], the natural owners, or None.
        Raises: FedkdError where this split of these samples is impossible.
        """
        if len(labels) < LEAST * self.clients:
            raise FedkdError(
                f"{len(labels)} samples are too few for {self.clients} clients",
                allowed=f"{LEAST} or more samples a client",
                fix=f"set partition.clients to at most {len(labels) // LEAST}",
            )
        return checked(self._deal(labels, stream(seed, "data", purpose="partition")))

    @abstractmethod
    def _deal(self, labels: Ids, rng: np.random.Generator) -> list[Ids]:
        """As `split`, unsorted and unchecked."""


def checked(parts: Sequence[Ids]) -> list[Ids]:
    """The parts, sorted.

    Raises: FedkdError where a client gets fewer than two samples.
    """
    for client, part in enumerate(parts):
        if len(part) < LEAST:
            raise FedkdError(
                f"client {client} would get too few samples to train and hold out",
                value=len(part),
                allowed=f"{LEAST} or more",
                fix="fewer clients, a milder partition or more data",
            )
    return [np.sort(part) for part in parts]

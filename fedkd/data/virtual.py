"""Any number of clients: what one holds is drawn when it is looked at, and never kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
from pydantic import Field

from fedkd.data.split import LEAST, Ids
from fedkd.errors import FedkdError
from fedkd.rng import stream
from fedkd.section import Section


class Virtual(Section):
    """Any number of clients, each with its own random samples of the whole set; made when needed.

    Clients overlap, since a data set has no million disjoint parts. Nothing is kept a client.
    """

    name: Literal["virtual"] = "virtual"
    clients: int = Field(default=1000, ge=1)
    samples: int = Field(default=100, ge=LEAST)
    """Of each client."""
    alpha: float | None = Field(default=None, ge=0.001)
    """Class shares of each client from Dirichlet(alpha); without it, those of the whole set."""

    def draw(self, rest: Ids, labels: Ids, seed: int) -> Sequence[Ids]:
        """One sorted int64 array [samples] of distinct ids out of `rest` a client.

        Shapes: `rest` int64 [n] indexes `labels`. With `alpha`, a class that has too few samples
        for a client's share of it gives what it has, and others the remainder.
        Raises: FedkdError where there are fewer than `samples` to draw from.
        """
        if self.samples > len(rest):
            raise FedkdError(
                "a virtual client cannot draw more samples than there are",
                value=self.samples,
                allowed=f"{LEAST} to {len(rest)}",
                fix="lower partition.samples",
            )
        by_class = np.split(
            rest[np.argsort(labels[rest], kind="stable")],
            np.cumsum(np.unique(labels[rest], return_counts=True)[1])[:-1],
        )
        return Draws(self, tuple(by_class), rest, seed)


@dataclass(frozen=True, eq=False)
class Draws(Sequence[Ids]):
    """What each client holds; the same client gives the same ids for ever."""

    row: Virtual
    by_class: tuple[Ids, ...]
    rest: Ids
    seed: int

    def __len__(self) -> int:
        return self.row.clients

    @overload
    def __getitem__(self, client: int) -> Ids: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[Ids]: ...
    def __getitem__(self, client: int | slice) -> Ids | Sequence[Ids]:
        if isinstance(client, slice):
            return [self[i] for i in range(*client.indices(len(self)))]
        if not 0 <= client < len(self):
            raise IndexError(client)
        rng = stream(self.seed, "data", client=client, purpose="partition")
        if self.row.alpha is None:
            return np.sort(rng.choice(self.rest, self.row.samples, replace=False))
        sizes = np.array([len(ids) for ids in self.by_class])
        counts = _fitted(rng, self.row.samples, sizes, self.row.alpha)
        drawn = [
            rng.choice(ids, n, replace=False)
            for ids, n in zip(self.by_class, counts.tolist(), strict=True)
        ]
        return np.sort(np.concatenate(drawn))


@dataclass(frozen=True)
class Nobody(Sequence[Ids]):
    """As many clients as asked for, each with no samples."""

    clients: int

    def __len__(self) -> int:
        return self.clients

    @overload
    def __getitem__(self, client: int) -> Ids: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[Ids]: ...
    def __getitem__(self, client: int | slice) -> Ids | Sequence[Ids]:
        if isinstance(client, slice):
            return Nobody(len(range(*client.indices(len(self)))))
        if not 0 <= client < len(self):
            raise IndexError(client)
        return np.zeros(0, np.int64)


def _fitted(rng: np.random.Generator, n: int, sizes: Ids, alpha: float) -> Ids:
    """How many of n samples come from each class: multinomial, none above the class's size."""
    counts = np.zeros(len(sizes), np.int64)
    shares = rng.dirichlet(np.full(len(sizes), alpha))
    while (left := n - int(counts.sum())) > 0:
        open_ = counts < sizes
        mass = np.where(open_, shares, 0.0)
        mass = mass if mass.sum() > 0 else np.where(open_, 1.0, 0.0)
        counts = np.minimum(counts + rng.multinomial(left, mass / mass.sum()), sizes)
    return counts

"""The table of partitions: each row splits the training samples among clients, IID or not.

A split is one sorted int64 index array a client; the arrays are disjoint and cover all samples,
and each holds at least two, so that every client can both train and hold out. `Virtual` is apart:
its clients draw from all samples, so that there can be any number of them.

flwr-datasets deals the Dirichlet split. Its other partitioners do not serve: shards drop what
is left over, natural ids draw a progress bar, pathological is told in `by_class`; and IID and
size are one line of NumPy, not worth the seconds that importing flwr_datasets takes.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedkd.data.by_class import Pathological, Strong, Weak
from fedkd.data.split import LEAST, Counted, Ids, checked
from fedkd.data.virtual import Virtual
from fedkd.errors import FedkdError
from fedkd.section import Section, table

__all__ = [
    "PARTITIONS",
    "Dirichlet",
    "Iid",
    "Natural",
    "Own",
    "Partition",
    "Pathological",
    "Quantity",
    "Shards",
    "Strong",
    "Virtual",
    "Weak",
]


class Iid(Counted):
    """Every client draws from all samples alike, in equal parts."""

    name: Literal["iid"] = "iid"

    def _deal(self, labels: Ids, rng: np.random.Generator) -> list[Ids]:
        return np.array_split(rng.permutation(len(labels)), self.clients)


class Quantity(Counted):
    """Labels IID, sizes not: shares of the samples drawn from Dirichlet(alpha)."""

    name: Literal["quantity"] = "quantity"
    alpha: float = Field(default=0.5, ge=0.001)

    def _deal(self, labels: Ids, rng: np.random.Generator) -> list[Ids]:
        spare = len(labels) - LEAST * self.clients
        shares = rng.dirichlet(np.full(self.clients, self.alpha))
        ends = np.rint(np.cumsum(shares) * spare).astype(np.int64)
        ends += LEAST * np.arange(1, self.clients + 1)
        return np.split(rng.permutation(len(labels)), ends[:-1])


class Dirichlet(Counted):
    """Each class is shared out by Dirichlet(alpha): the smaller alpha, the less IID.

    Source: Yurochkin et al. 2019, arXiv:1905.12022, as flwr-datasets implements it.
    """

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(default=0.5, ge=0.001)

    def _deal(self, labels: Ids, rng: np.random.Generator) -> list[Ids]:
        from datasets import Dataset
        from flwr_datasets.partitioner import DirichletPartitioner

        # It cuts each class in the order of the rows, so the rows must be shuffled first.
        order = rng.permutation(len(labels))
        partitioner = DirichletPartitioner(
            self.clients,
            "label",
            self.alpha,
            min_partition_size=LEAST,
            shuffle=False,
            seed=int(rng.integers(2**63)),
        )
        partitioner.dataset = Dataset.from_dict({"label": labels[order], "row": order})
        try:
            with warnings.catch_warnings():  # one for every failed attempt
                warnings.simplefilter("ignore", UserWarning)
                n_parts = partitioner.num_partitions
        except ValueError:
            raise FedkdError(
                f"Dirichlet left one of {self.clients} clients under {LEAST} samples, 11 times",
                value=self.alpha,
                fix="raise partition.alpha or lower partition.clients",
            ) from None
        parts = (partitioner.load_partition(part) for part in range(n_parts))
        return [part.with_format("numpy")[:]["row"] for part in parts]


class Shards(Counted):
    """Samples sorted by class and cut into equal shards, dealt at random.

    Source: McMahan et al. 2017, arXiv:1602.05629.
    """

    name: Literal["shards"] = "shards"
    shards_per_client: int = Field(default=2, ge=1)

    def _deal(self, labels: Ids, rng: np.random.Generator) -> list[Ids]:
        by_class = np.lexsort((rng.random(len(labels)), labels))
        shards = np.array_split(by_class, self.clients * self.shards_per_client)
        hands = rng.permutation(len(shards)).reshape(self.clients, self.shards_per_client)
        return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]


class Natural(Section):
    """One client for each natural owner that the data name, in the order of their ids."""

    name: Literal["natural"] = "natural"

    def split(self, labels: Ids, client_ids: Ids | None, seed: int) -> list[Ids]:
        """As `Counted.split`; nothing is drawn.

        Raises: FedkdError where there are no ids, or an owner has fewer than two samples.
        """
        if client_ids is None:
            raise FedkdError(
                "partition natural needs data that name each sample's owner",
                fix="a folder of .npz files, an array client, or data.client_key",
            )
        order = np.argsort(client_ids, kind="stable")
        starts = np.unique(client_ids[order], return_index=True)[1]
        return checked(np.split(order, starts[1:]))


class Own(Section):
    """Each client holds the data that it was started with: of deployments."""

    name: Literal["own"] = "own"
    clients: int = Field(default=2, ge=1)
    """Seats: how many clients there may be."""
    classes: int = Field(default=10, ge=2)
    """Labels are below it, though a client may have few of them; of texts, the vocabulary."""

    def split(self, labels: Ids, client_ids: Ids | None, seed: int) -> list[Ids]:
        """Raises: FedkdError, as nobody has all the data."""
        raise FedkdError(
            "partition own has no data to share out: each client brings its own",
            fix="fedkd deploy submit; or another partition.name, to simulate",
        )


Partition = Annotated[
    Iid | Strong | Weak | Dirichlet | Pathological | Shards | Quantity | Natural | Virtual | Own,
    Field(discriminator="name"),
]
PARTITIONS = table(
    Iid, Strong, Weak, Dirichlet, Pathological, Shards, Quantity, Natural, Virtual, Own
)

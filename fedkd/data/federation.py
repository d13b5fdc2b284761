"""Who holds which samples: the one value that a simulation is built on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedkd.data.canaries import Canaries, Canary, insert, sentences
from fedkd.data.dataset import Dataset, stratified
from fedkd.data.partition import Partition
from fedkd.data.proxy import Contributed, Foreign, Proxy, Public
from fedkd.data.sources import Source, load
from fedkd.data.split import Ids
from fedkd.data.text import Reading
from fedkd.data.tokens import Tokens
from fedkd.data.virtual import Nobody, Virtual
from fedkd.errors import FedkdError
from fedkd.rng import stream


@dataclass(frozen=True, eq=False)
class Federation:
    """A training set shared out among clients, and what was set aside before that.

    Every id is an index into `train`; the id arrays are sorted, and disjoint unless the clients
    are virtual. What is said by client may be made when it is looked at: its cost must not grow
    with the population.
    Shapes: `validation_ids` int64 [v], for the choice of hyper-parameters only; `private` and
    `contributed`, int64 [k_i] for each client i, the latter empty unless clients contribute the
    proxy; `public_x` [p, c, h, w], `public_y` int64 [p] or [p, L] and `public_strata` int64 [p],
    or None where there is no public or foreign proxy; of a foreign one only `public_x` is known.
    `canaries` are sentences that their clients' data hold besides what `private` says.
    """

    train: Dataset
    test: Dataset
    validation_ids: Ids
    private: Sequence[Ids]
    contributed: Sequence[Ids]
    public_x: Tensor | None
    public_y: Tensor | None
    public_strata: Ids | None
    canaries: tuple[Canary, ...]
    tokens: Tokens | None
    """How the texts were read; None for images."""
    seed: int

    @property
    def n_clients(self) -> int:
        """How many clients hold data."""
        return len(self.private)

    def counts(self, i: int) -> Ids:
        """How many records of each stratum client i holds, contributed ones too: int64 [strata].

        Strata are the classes of images, and the topics of texts.
        """
        held = np.concatenate([self.private[i], self.contributed[i]])
        return np.bincount(self.train.strata[held], minlength=self.train.n_strata)

    def client(self, i: int) -> tuple[Tensor, Tensor]:
        """Client i's private (x [k, c, h, w], y int64 [k] or [k, L]), x in the dtype of `train`.

        The records of its canaries are among them.
        """
        x, y = self.train.rows(self.private[i])
        mine = [canary for canary in self.canaries if canary.client == i]
        if not mine or self.tokens is None:
            return x, y
        return insert(
            x, y, mine, self.tokens, stream(self.seed, "data", client=i, purpose="canaries")
        )

    def proxy_truth(self) -> tuple[Ids, Ids] | None:
        """Labels [p] or [p, L] and strata [p] of the proxy set, for a simulation to measure by.

        None where they mean nothing (foreign data). Contributions come client after client.
        """
        if self.public_x is not None:
            if self.public_y is None or self.public_strata is None:
                return None
            return self.public_y.numpy(), self.public_strata
        given = np.concatenate([self.contributed[i] for i in range(self.n_clients)])
        return self.train.y.numpy()[given], self.train.strata[given]

    def contribution(self, i: int) -> tuple[Tensor, Tensor]:
        """As `client`, of the samples that client i gives to the proxy; k may be 0."""
        return self.train.rows(self.contributed[i])


@lru_cache(maxsize=4)
def build(
    source: Source,
    partition: Partition,
    proxy: Proxy | None,
    validation: float,
    seed: int,
    canaries: Canaries | None = None,
) -> Federation:
    """Load, hold out, partition: the same arguments give the same federation.

    `validation` is the fraction of the training set, in [0, 1), to hold out, stratified by
    class. It goes first, then a public proxy, then the partition; without a proxy nothing more
    is set aside. The result is kept and shared, so nobody may write to its arrays.
    Raises: FedkdError as the parts do, where a foreign proxy is the private data itself, and for
        canaries in images, or in a proxy set that is not public.
    """
    splits = load(source)
    train = splits.train
    count = _validation_count(validation, len(train))
    validation_ids = stratified(train.strata, count, stream(seed, "data", purpose="validation"))
    rest = np.setdiff1d(np.arange(len(train)), validation_ids)

    public_x = public_y = public_strata = None
    if isinstance(proxy, Public):
        public_ids = rest[proxy.hold_out(train.strata[rest], seed)]
        public_x, public_y = train.rows(public_ids)
        public_strata = train.strata[public_ids]
        rest = np.setdiff1d(rest, public_ids)
    elif isinstance(proxy, Foreign):
        if proxy.source == source:
            raise FedkdError(
                "the foreign proxy is the private data itself",
                value=source.name,
                fix="another proxy.source, or proxy public or contributed",
            )
        channels, height, width = train.x.shape[1:]
        vocabulary = train.n_classes if train.is_text else None
        public_x = proxy.images((channels, height, width), seed, vocabulary)

    private, contributed = _share_out(rest, train, partition, proxy, seed)
    tokens = source.tokens if isinstance(source, Reading) else None
    planted: tuple[Canary, ...] = ()
    if canaries is not None:
        if tokens is None:
            raise FedkdError(
                "canaries are sentences, so the data must be text",
                value=source.name,
                fix='data.name = "pydoc" or "text", or drop the section canaries',
            )
        if canaries.in_proxy and isinstance(proxy, Contributed | Foreign):
            raise FedkdError(
                "only a public proxy set can hold the canaries",
                value=proxy.name,
                fix='proxy.name = "public", or canaries.in_proxy = false',
            )
        planted = canaries.draw(range(len(private)), seed)
        if canaries.in_proxy and public_x is not None and public_y is not None:
            homes = np.array([train.strata[private[c.client][0]] for c in planted], np.int64)
            x, y = sentences(planted, tokens, train.x.shape[3])
            public_x, public_y = torch.cat([public_x, x]), torch.cat([public_y, y])
            public_strata = np.concatenate([public_strata, homes])
    return Federation(
        train=train,
        test=splits.test,
        validation_ids=validation_ids,
        private=private,
        contributed=contributed,
        public_x=public_x,
        public_y=public_y,
        public_strata=public_strata,
        canaries=planted,
        tokens=tokens,
        seed=seed,
    )


def _share_out(
    rest: Ids, train: Dataset, partition: Partition, proxy: Proxy | None, seed: int
) -> tuple[Sequence[Ids], Sequence[Ids]]:
    """What each client keeps, and what it gives to the proxy."""
    labels = train.strata
    if isinstance(partition, Virtual):
        if isinstance(proxy, Contributed):
            raise FedkdError(
                "virtual clients draw from one set of samples, so none of them can give any away",
                fix='proxy.name = "public" or "foreign"',
            )
        return partition.draw(rest, labels, seed), Nobody(partition.clients)
    owners = None if train.client_ids is None else train.client_ids[rest]
    parts = tuple(rest[part] for part in partition.split(labels[rest], owners, seed))
    if isinstance(proxy, Contributed):
        kept, given = proxy.divide(parts, labels, seed)
        return tuple(kept), tuple(given)
    return parts, Nobody(len(parts))


def _validation_count(fraction: float, n: int) -> int:
    if not 0 <= fraction < 1:
        raise FedkdError("wrong validation fraction", value=fraction, allowed="0 <= fraction < 1")
    return min(round(fraction * n), n - 1)

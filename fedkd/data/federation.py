"""Who holds which samples: the one value that a simulation is built on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from fedkd.data.canaries import IMAGES, TEXTS, Canaries, Canary, insert, sentences
from fedkd.data.canary_images import HELD_OUT, hold_out, images
from fedkd.data.dataset import NO_LABEL, Dataset, stratified
from fedkd.data.partition import Natural, Own, Partition
from fedkd.data.proxy import Contributed, Foreign, Proxy, Public
from fedkd.data.sources import Source, load
from fedkd.data.split import LEAST, Ids
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
    `canaries` are records that their clients' data hold besides what `private` says.
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
    planted: tuple[Tensor, Tensor] | None = None
    """The records of the canaries, see `canary_records`; None without canaries."""
    first_in_proxy: int | None = None
    """The proxy record that is the first canary, the others follow; None if none is there."""

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
        if self.planted is None:
            return x, y
        numbers = np.arange(len(self.canaries))
        copies = torch.from_numpy(numbers.repeat([each.copies(i) for each in self.canaries]))
        more_x, more_y = self.planted
        rng = stream(self.seed, "data", client=i, purpose="canaries")
        return insert(x, y, more_x[copies], more_y[copies], rng)

    def canary_records(self) -> tuple[Tensor, Tensor]:
        """The record of each of the m canaries, controls too, in the order of `canaries`.

        Shapes: x [m, c, h, w] in the dtype of `train`; y int64 [m] or [m, L], what it is taught as.
        """
        if self.planted is None:
            return self.train.rows(np.empty(0, np.int64))
        return self.planted

    def canary_copies(self) -> Ids:
        """How often each client's data hold each canary: int64 [m, clients]; controls are rows of
        zeros."""
        copies = np.zeros((len(self.canaries), self.n_clients), np.int64)
        for number, canary in enumerate(self.canaries):
            copies[number, [canary.client, *canary.others]] = canary.repetitions
        return copies

    def canary_proxy_ids(self) -> Ids | None:
        """The proxy samples that are each canary: int64 [m, 1] of images, [m, L] of texts; None
        where the proxy set does not hold them."""
        if self.first_in_proxy is None:
            return None
        positions = self.train.x.shape[3] if self.train.is_text else 1
        start, n = self.first_in_proxy * positions, len(self.canaries)
        return np.arange(start, start + n * positions).reshape(n, positions)

    @cached_property
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
    class. It goes first, then images that canaries are made of, so that these do not hang on the
    proxy, then a public proxy, then the partition; else nothing is set aside.
    The result is kept and shared, so nobody may write to its arrays.
    Raises: FedkdError as the parts do, where a foreign proxy is the private data itself, and for
        canaries of another kind than the data, that do not fit into a record, or are to be in a
        proxy set that is not public.
    """
    splits = load(source)
    train = splits.train
    count = _validation_count(validation, len(train))
    validation_ids = stratified(train.strata, count, stream(seed, "data", purpose="validation"))
    rest = np.setdiff1d(np.arange(len(train)), validation_ids)
    tokens = source.tokens if isinstance(source, Reading) else None

    held_out = np.empty(0, np.int64)
    if canaries is not None:
        _check(canaries, source, proxy)
        if canaries.format in HELD_OUT:
            n_canaries = canaries.per_client * _n_clients(partition, train, rest)
            held_out = hold_out(rest, n_canaries, seed)
            rest = np.setdiff1d(rest, held_out)

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
    planted: tuple[Canary, ...] = ()
    planted_records, first_in_proxy = None, None
    if canaries is not None:
        planted = canaries.draw(range(len(private)), seed)
        if canaries.format in HELD_OUT and len(planted) != len(held_out):
            raise FedkdError(
                "the canaries' images took all that an owner has",
                value=f"{len(private)} owners left",
                fix='fewer canaries, or canaries.format = "noise"',
            )
        if tokens is None:
            planted_records = images(planted, train, held_out, seed)
        else:
            planted_records = sentences(planted, tokens, train.x.shape[3])
        if canaries.in_proxy and public_x is not None and public_y is not None:
            first_in_proxy = len(public_x)
            x, y = planted_records
            # A label that was made up is nothing to measure by, or to teach as the truth.
            truth = y if train.is_text else torch.full_like(y, NO_LABEL)
            strata = (
                np.array([train.strata[private[c.client][0]] for c in planted], np.int64)
                if train.is_text
                else y.numpy()
            )
            public_x, public_y = torch.cat([public_x, x]), torch.cat([public_y, truth])
            public_strata = np.concatenate([public_strata, strata])
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
        planted=planted_records,
        first_in_proxy=first_in_proxy,
    )


@lru_cache(maxsize=4)
def held(source: Source, seat: int, partition: Own, proxy: Proxy | None, seed: int) -> Federation:
    """What one client of a deployment knows: its own data under its seat, of the others nothing.

    Its test set is the one that came with its data. Nothing is held out for validation.
    Raises: FedkdError for labels or a vocabulary that the partition does not allow, or a seat.
    """
    if not 0 <= seat < partition.clients:
        raise FedkdError(
            "no such seat",
            value=seat,
            allowed=f"0 to {partition.clients - 1}",
            fix="partition.clients",
        )
    splits = load(source)
    train, test = (_among(part, partition.classes) for part in (splits.train, splits.test))
    if len(train) < LEAST:
        raise FedkdError("too few records to train and hold out", value=len(train), allowed="2")
    everything = np.arange(len(train))
    given = nothing = np.empty(0, np.int64)
    if isinstance(proxy, Contributed):
        given = proxy.give(everything, train.strata, seat, seed)
    kept = np.setdiff1d(everything, given)
    return Federation(
        train=train,
        test=test,
        validation_ids=nothing,
        private=tuple(kept if i == seat else nothing for i in range(partition.clients)),
        contributed=tuple(given if i == seat else nothing for i in range(partition.clients)),
        public_x=None,
        public_y=None,
        public_strata=None,
        canaries=(),
        tokens=source.tokens if isinstance(source, Reading) else None,
        seed=seed,
    )


def joined(
    parts: Mapping[int, Federation], n_clients: int, public_x: Tensor | None, seed: int
) -> Federation:
    """What is known where some clients of a deployment, by seat, say what they hold.

    The others hold nothing here. `parts` as `held` gives them; `public_x`: of a proxy set that no
    client gave to. Two clients' topics are not the same, whatever their numbers.
    Raises: FedkdError where nobody says anything, or the parts are not of one kind.
    """
    sets = [parts[seat].train for seat in sorted(parts)]
    if len({(one.x.dtype, one.x.shape[1:], one.n_classes) for one in sets}) != 1:
        raise FedkdError("clients' data are not of one kind, or there are none", value=len(sets))
    starts = np.cumsum([0, *map(len, sets)])
    at = dict(zip(sorted(parts), starts, strict=False))
    nothing = np.empty(0, np.int64)
    any_part = next(iter(parts.values()))
    return Federation(
        train=_concatenated(sets),
        test=_concatenated([parts[seat].test for seat in sorted(parts)]),
        validation_ids=nothing,
        private=tuple(
            at[i] + parts[i].private[i] if i in parts else nothing for i in range(n_clients)
        ),
        contributed=tuple(
            at[i] + parts[i].contributed[i] if i in parts else nothing for i in range(n_clients)
        ),
        public_x=public_x,
        public_y=None,
        public_strata=None,
        canaries=(),
        tokens=any_part.tokens,
        seed=seed,
    )


def _concatenated(sets: Sequence[Dataset]) -> Dataset:
    x, y = torch.cat([one.x for one in sets]), torch.cat([one.y for one in sets])
    first = sets[0]
    if not first.is_text:
        return Dataset(x, y, first.n_classes)
    topics = np.concatenate([one.topics for one in sets if one.topics is not None])
    return Dataset(x, y, first.n_classes, None, topics, max(one.n_topics for one in sets))


def _among(part: Dataset, n_classes: int) -> Dataset:
    """The same records among so many classes; a client need not have seen all of them."""
    if part.n_classes > n_classes or (part.is_text and part.n_classes != n_classes):
        raise FedkdError(
            "the data have other classes than the deployment",
            value=part.n_classes,
            allowed=f"{n_classes}" if part.is_text else f"at most {n_classes}",
            fix="set partition.classes in the scenario, or look at the labels of the data",
        )
    return Dataset(part.x, part.y, n_classes, part.client_ids, part.topics, part.n_topics)


def _check(canaries: Canaries, source: Source, proxy: Proxy | None) -> None:
    """Raises: FedkdError for canaries that these data, or this proxy set, cannot hold."""
    allowed = TEXTS if isinstance(source, Reading) else IMAGES
    if canaries.format not in allowed:
        raise FedkdError(
            f"the data {source.name} cannot hold canaries of this format",
            value=canaries.format,
            allowed=", ".join(allowed),
            fix="set canaries.format, or drop the section canaries",
        )
    if canaries.in_proxy and isinstance(proxy, Contributed | Foreign):
        raise FedkdError(
            "only a public proxy set can hold the canaries",
            value=proxy.name,
            fix='proxy.name = "public", or canaries.in_proxy = false',
        )


def _n_clients(partition: Partition, train: Dataset, rest: Ids) -> int:
    """How many clients a partition of the records `rest` has."""
    if not isinstance(partition, Natural):
        return partition.clients
    return 0 if train.client_ids is None else len(np.unique(train.client_ids[rest]))


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

"""What goes over the wire between clients and server; `fedkd.wire` is the envelope.

Answers and their sums are in `fedkd.payload_answers`, secure aggregation in `payload_secure`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkd.codecs import ids_of, mask_of
from fedkd.data.dataset import NO_LABEL
from fedkd.errors import PayloadError
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.label_means import LabelMeans
from fedkd.packing import Packing, packed, unpacked
from fedkd.sparse import Coding
from fedkd.wire import (
    SCHEMA,
    Array,
    Bytes,
    check_ascending,
    check_finite,
    check_ids,
    check_rows,
    pack,
    require,
    unpack,
    whole,
)

__all__ = ["SCHEMA", "Bytes"]


class Hello(NamedTuple):
    """A client's first words: who it is, and what it gives to the proxy pool."""

    client: int
    n_private: int
    n_classes: int
    contribution: Array  # uint8, float32, int16 [m, c, h, w]: raw private samples, in the clear


class Pool(NamedTuple):
    """The proxy set."""

    x: Array  # uint8, float32, int16 [n, c, h, w]
    contributor: NDArray[np.int32]  # [n] the client that gave the sample, or -1
    labels: NDArray[np.int32] | None = None
    """[n] or [n, L] where the scenario has clients learn them, NO_LABEL where one is unknown."""


def encode_hello(hello: Hello) -> Bytes:
    """One client's hello as bytes."""
    return pack(
        "hello",
        {"contribution": hello.contribution},
        client=hello.client,
        n_private=hello.n_private,
        n_classes=hello.n_classes,
    )


def decode_hello(data: Bytes) -> Hello:
    """Raises: PayloadError where counts or samples break the contract."""
    arrays, header = unpack(data, "hello", {"contribution": "uint8 float32 int16"})
    hello = Hello(
        whole(header, "client"), whole(header, "n_private"), whole(header, "n_classes"), **arrays
    )
    require(min(hello.client, hello.n_private) >= 0, "client or n_private is negative")
    require(hello.n_classes >= 1, "there are no classes")
    require(hello.contribution.ndim == 4, "contribution is not [m, c, h, w]")
    check_finite(hello.contribution, "contribution")
    return hello


def encode_pool(pool: Pool) -> Bytes:
    """The proxy set as bytes."""
    parts = {name: part for name, part in pool._asdict().items() if part is not None}
    return pack("pool", parts)


def decode_pool(data: Bytes) -> Pool:
    """Raises: PayloadError where samples and contributors do not match or are not finite."""
    spec = {"x": "uint8 float32 int16", "contributor": "int32"}
    arrays, _ = unpack(data, "pool", spec, {**spec, "labels": "int32"})
    pool = Pool(**arrays)
    require(pool.x.ndim == 4, "pool is not [n, c, h, w]")
    require(pool.contributor.shape == (len(pool.x),), "one contributor a sample is needed")
    check_finite(pool.x, "pool")
    if pool.labels is not None:
        shapes = ((len(pool.x),), (len(pool.x), pool.x.shape[3]))
        require(pool.labels.shape in shapes, "one label a sample is needed")
        known = (pool.labels >= 0) | (pool.labels == NO_LABEL)
        require(bool(known.all()), "a label is neither a class nor said to be unknown")
    return pool


class Question(NamedTuple):
    """Which records of the pool a round is about: ids, ascending."""

    asked: NDArray[np.int32]
    drawn: NDArray[np.int32]
    """Those asked, and those that are learnt again from what was told before."""


def encode_selection(question: Question, n_records: int, round_: int) -> Bytes:
    """Which records a round is about, as a bit for each; a second one where not all are asked."""
    masks = {"mask": mask_of(question.asked, n_records)}
    if len(question.drawn) > len(question.asked):
        masks["drawn"] = mask_of(question.drawn, n_records)
    return pack("selection", masks, round=round_)


def decode_selection(data: Bytes, *, round_: int, n_records: int) -> Question:
    """Raises: PayloadError for another round, a mask of another size, a question about no record,
    or about one that is not drawn.
    """
    masks, header = unpack(
        data, "selection", {"mask": "uint8"}, {"mask": "uint8", "drawn": "uint8"}
    )
    if whole(header, "round") != round_:
        raise PayloadError("a question of another round", value=header["round"])
    asked = ids_of(masks["mask"], n_records)
    drawn = ids_of(masks["drawn"], n_records) if "drawn" in masks else asked
    require(len(drawn) > 0, "a question about no record")
    require(bool(np.isin(asked, drawn).all()), "a record is asked and not drawn")
    return Question(asked, drawn)


def encode_consensus(consensus: Consensus, round_: int, packing: Packing | None = None) -> Bytes:
    """One round's consensus as bytes."""
    arrays = {"values": consensus.values}
    return packed("consensus", consensus.ids, arrays, packing, round=round_)


def encode_coded_consensus(
    consensus: Consensus,
    round_: int,
    coding: Coding,
    draws: np.random.Generator,
    packing: Packing | None = None,
) -> Bytes:
    """One round's consensus as bytes, its rows by `coding`.

    Raises: FedkdError for a row that the coding does not take.
    """
    arrays = coding.encode(consensus.values, draws)
    return packed(f"consensus-{coding.kind}", consensus.ids, arrays, packing, round=round_)


def decode_consensus(
    data: Bytes, *, round_: int, n_samples: int, n_classes: int, coding: Coding | None = None
) -> Consensus:
    """The consensus of a round, its rows as the coding says.

    Raises: PayloadError for another round, bad ids, a wrong shape, values that are not finite, or
        arrays that break the coding's contract.
    """
    spec = {"values": "float32"} if coding is None else coding.types(n_classes)
    kind = "consensus" if coding is None else f"consensus-{coding.kind}"
    ids, arrays, header = unpacked(data, kind, spec, n_samples, n_classes)
    if whole(header, "round") != round_:
        raise PayloadError("consensus of another round", value=header["round"])
    if coding is None:
        check_rows(ids, arrays["values"], n_samples, n_classes)
        return Consensus(ids, arrays["values"])
    check_ids(ids, n_samples)
    coding.check(arrays, len(ids), n_classes)
    none = np.empty((0, n_classes), np.float32)
    return Consensus(ids, np.concatenate([none, *coding.decode(arrays, n_classes)]))


def encode_label_means(said: LabelMeans, round_: int) -> Bytes:
    """What clients said of each label together, for the round that begins with it."""
    return pack("label-means", said._asdict(), round=round_)


def decode_label_means(data: Bytes, *, round_: int, n_classes: int) -> LabelMeans:
    """Raises: PayloadError for another round, labels or clients that are repeated or not ascending,
    a wrong shape, sums that are not finite, or more voters than clients.
    """
    spec = {"clients": "int32", "ids": "int32", "total": "float64", "voters": "int32"}
    arrays, header = unpack(data, "label-means", spec)
    said = LabelMeans(**arrays)
    if whole(header, "round") != round_:
        raise PayloadError("means of another round", value=header["round"], allowed=str(round_))
    check_ascending(said.clients, "clients")
    check_rows(said.ids, said.total, n_classes, n_classes)
    require(said.voters.shape == said.ids.shape, "there is not one number of voters a label")
    there = (said.voters >= 1) & (said.voters <= len(said.clients))
    require(bool(there.all()), "a label has no voters, or more than there are clients")
    return said


def encode_weights(
    weights: NDArray[np.float32], client: int, round_: int, n_samples: int = 0
) -> Bytes:
    """A flat vector of model weights as bytes, and how many samples taught them.

    Client -1 is the server.
    """
    header = {"client": client, "round": round_, "n_samples": n_samples}
    return pack("weights", {"weights": weights}, **header)


def decode_weights(
    data: Bytes, *, client: int, round_: int, size: int
) -> tuple[NDArray[np.float32], int]:
    """The weights [size] and the number of samples.

    Raises: PayloadError for another sender or round, a wrong size or values not finite.
    """
    arrays, header = unpack(data, "weights", {"weights": "float32"})
    if (whole(header, "client"), whole(header, "round")) != (client, round_):
        raise PayloadError("weights of another client or round", value=header)
    require(arrays["weights"].shape == (size,), f"expected {size} weights")
    check_finite(arrays["weights"], "weights")
    n_samples = whole(header, "n_samples")
    require(n_samples >= 0, "n_samples is negative")
    return arrays["weights"], n_samples

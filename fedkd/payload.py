"""What goes over the wire between clients and server; `fedkd.wire` is the envelope."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkd.codecs import ids_of, mask_of, opened, squeezed
from fedkd.errors import PayloadError
from fedkd.exchange.combine import GRID, Votes
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.label_means import LabelMeans
from fedkd.sparse import TOLERANCE, Coding
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


WEIGHTS = {"weights": "float32"}
"""Beside the rows of answers that count by weights of their own."""


class Packing(NamedTuple):
    """What is done to answers and consensus to make them shorter, without any loss."""

    n_samples: int
    mask: bool
    """Whether a bit for each sample says which are meant, where that is shorter than their ids."""
    zstd: int
    """Its level; 0 is none."""


class Hello(NamedTuple):
    """A client's first words: who it is, and what it gives to the proxy pool."""

    client: int
    n_private: int
    n_classes: int
    contribution: Array  # uint8, float32, int16 [m, c, h, w]: raw private samples, in the clear


class Answer(NamedTuple):
    """One client's answers of one round."""

    client: int
    round: int
    ids: NDArray[np.int32]  # [m] ascending, unique proxy ids
    values: NDArray[np.float32]  # [m, classes]
    weights: NDArray[np.float32] | None = None  # [m] above 0, at most 1; None: all count alike

    def blocks(self) -> Iterator[Answer]:
        """The answer itself."""
        yield self


class CodedAnswer(NamedTuple):
    """One client's answers of one round as a coding of them was sent; checked."""

    client: int
    round: int
    ids: NDArray[np.int32]  # [m] ascending, unique proxy ids
    arrays: dict[str, Array]
    coding: Coding
    n_classes: int
    weights: NDArray[np.float32] | None = None  # as of `Answer`

    def blocks(self) -> Iterator[Answer]:
        """The answers with dense rows, a few at a time: all of a vocabulary's take too much."""
        start = 0
        for values in self.coding.decode(self.arrays, self.n_classes):
            part = slice(start, start + len(values))
            weights = None if self.weights is None else self.weights[part]
            yield Answer(self.client, self.round, self.ids[part], values, weights)
            start += len(values)


class Partial(NamedTuple):
    """The votes of some clients in one round, about the samples that any of them answered."""

    round: int
    clients: NDArray[np.int32]  # [k] ascending: whose answers are in it, each once
    ids: NDArray[np.int32]  # [m] ascending, unique proxy ids
    votes: Votes  # total [m, classes] float64, or float32 where that is exact; voters [m]


class Pool(NamedTuple):
    """The proxy set."""

    x: Array  # uint8, float32, int16 [n, c, h, w]
    contributor: NDArray[np.int32]  # [n] the client that gave the sample, or -1


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
    return pack("pool", pool._asdict())


def decode_pool(data: Bytes) -> Pool:
    """Raises: PayloadError where samples and contributors do not match or are not finite."""
    arrays, _ = unpack(data, "pool", {"x": "uint8 float32 int16", "contributor": "int32"})
    pool = Pool(**arrays)
    require(pool.x.ndim == 4, "pool is not [n, c, h, w]")
    require(pool.contributor.shape == (len(pool.x),), "one contributor a sample is needed")
    check_finite(pool.x, "pool")
    return pool


def encode_selection(records: NDArray[np.int64], n_records: int, round_: int) -> Bytes:
    """Which records of the pool a round is about, as a bit for each."""
    mask = mask_of(records.astype(np.int32), n_records)
    return pack("selection", {"mask": mask}, round=round_)


def decode_selection(data: Bytes, *, round_: int, n_records: int) -> NDArray[np.int32]:
    """The ids of the records [k], ascending.

    Raises: PayloadError for another round, a mask of another size, or one that asks nothing.
    """
    arrays, header = unpack(data, "selection", {"mask": "uint8"})
    if whole(header, "round") != round_:
        raise PayloadError("a question of another round", value=header["round"])
    ids = ids_of(arrays["mask"], n_records)
    require(len(ids) > 0, "a question about no record")
    return ids


def encode_answer(answer: Answer, packing: Packing | None = None) -> Bytes:
    """One client's answers as bytes."""
    arrays = {"values": answer.values, **_weights_of(answer)}
    return _packed("answer", answer.ids, arrays, packing, client=answer.client, round=answer.round)


def decode_answer(
    data: Bytes,
    *,
    client: int,
    round_: int,
    n_samples: int,
    n_classes: int,
    simplex: bool,
    weighed: bool = False,
) -> Answer:
    """The answers of `client` in `round_`.

    Args: simplex: whether each row must be a distribution over the classes; weighed: whether each
        must have a weight, which no other answer may.
    Raises: PayloadError for another client or round, ids out of range, unsorted or repeated, a
        wrong shape, values that are not finite or, with `simplex`, not distributions, weights that
        are missing, not above 0, or above 1.
    """
    spec = {"values": "float32", **(WEIGHTS if weighed else {})}
    ids, arrays, header = _unpacked(data, "answer", spec, n_samples, n_classes)
    answer = Answer(whole(header, "client"), whole(header, "round"), ids, **arrays)
    _from(answer, client, round_)
    _check_weights(answer)
    check_rows(answer.ids, answer.values, n_samples, n_classes)
    if simplex and len(answer.values):
        ones = np.ones(n_classes, np.float32)  # a product sums short rows 20 times as fast
        off = float(np.abs(answer.values @ ones - 1).max())
        low = float(answer.values.min())
        if off > TOLERANCE or low < 0:
            raise PayloadError("a row is not a distribution", value=(low, off))
    return answer


def encode_coded_answer(
    answer: Answer, coding: Coding, draws: np.random.Generator, packing: Packing | None = None
) -> Bytes:
    """One client's answers as bytes, their rows by `coding`.

    Raises: FedkdError for a row that is not a distribution.
    """
    arrays = {**coding.encode(answer.values, draws), **_weights_of(answer)}
    who = {"client": answer.client, "round": answer.round}
    return _packed(coding.kind, answer.ids, arrays, packing, **who)


def decode_coded_answer(
    data: Bytes,
    *,
    client: int,
    round_: int,
    n_samples: int,
    n_classes: int,
    coding: Coding,
    weighed: bool = False,
) -> CodedAnswer:
    """The answers of `client` in `round_`, all of them checked before any dense row is made.

    Raises: PayloadError as `decode_answer`, and for arrays that break the coding's contract.
    """
    spec = {**coding.types(n_classes), **(WEIGHTS if weighed else {})}
    ids, arrays, header = _unpacked(data, coding.kind, spec, n_samples, n_classes)
    weights = arrays.pop("weights", None)
    who = whole(header, "client"), whole(header, "round")
    answer = CodedAnswer(*who, ids, arrays, coding, n_classes, weights)
    _from(answer, client, round_)
    _check_weights(answer)
    check_ids(ids, n_samples)
    coding.check(arrays, len(ids), n_classes)
    return answer


def encode_partial(partial: Partial) -> Bytes:
    """A partial sum as bytes; a total that float32 can say exactly takes half of them."""
    total = partial.votes.total
    narrow = total.astype(np.float32)
    arrays = {
        "clients": partial.clients,
        "ids": partial.ids,
        "total": narrow if np.array_equal(narrow, total) else total,
        "voters": partial.votes.voters,
    }
    return pack("partial", arrays, round=partial.round)


def decode_partial(data: Bytes, *, round_: int, n_samples: int, n_classes: int) -> Partial:
    """A partial sum of answers whose rows are distributions.

    Raises: PayloadError for another round, clients or ids that are repeated or not ascending, ids
        out of range, a wrong shape, a total that is not finite or no whole number of steps, more
        voters than clients, or rows that are not the sum of as many distributions.
    """
    arrays, header = unpack(
        data,
        "partial",
        {"clients": "int32", "ids": "int32", "total": "float32 float64", "voters": "int32"},
    )
    clients, ids, total, voters = (arrays[k] for k in ("clients", "ids", "total", "voters"))
    if whole(header, "round") != round_:
        raise PayloadError("sum of another round", value=header["round"], allowed=str(round_))
    require(clients.ndim == 1 and len(clients) > 0, "clients are not [k], or there are none")
    require(
        bool((clients >= 0).all() and (np.diff(clients) > 0).all()),
        "clients are negative, repeated or not ascending",
    )
    check_rows(ids, total, n_samples, n_classes)
    require(voters.shape == ids.shape, f"voters are {list(voters.shape)}, not [{len(ids)}]")
    if len(ids):
        require(
            int(voters.min()) >= 1 and int(voters.max()) <= len(clients),
            f"a sample does not have 1 to {len(clients)} voters",
        )
        require(bool((total == np.rint(total)).all()), "a total is no whole number of steps")
        low, high = float(total.min()), float(total.max())
        # Each answer's rows are off by their own tolerance, and by half a step a class.
        tolerance = TOLERANCE + n_classes / GRID
        require(
            low >= 0 and high <= (1 + tolerance) * len(clients) * GRID,
            "a row is not a sum of distributions",
        )
        off = float(np.abs(total @ np.ones(n_classes) / (voters * GRID) - 1).max())
        if off > tolerance:
            raise PayloadError("a row is not a sum of distributions", value=off)
    return Partial(round_, clients, ids, Votes(total, voters))


def encode_consensus(consensus: Consensus, round_: int, packing: Packing | None = None) -> Bytes:
    """One round's consensus as bytes."""
    arrays = {"values": consensus.values}
    return _packed("consensus", consensus.ids, arrays, packing, round=round_)


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
    return _packed(f"consensus-{coding.kind}", consensus.ids, arrays, packing, round=round_)


def decode_consensus(
    data: Bytes, *, round_: int, n_samples: int, n_classes: int, coding: Coding | None = None
) -> Consensus:
    """The consensus of a round, its rows as the coding says.

    Raises: PayloadError for another round, bad ids, a wrong shape, values that are not finite, or
        arrays that break the coding's contract.
    """
    spec = {"values": "float32"} if coding is None else coding.types(n_classes)
    kind = "consensus" if coding is None else f"consensus-{coding.kind}"
    ids, arrays, header = _unpacked(data, kind, spec, n_samples, n_classes)
    if whole(header, "round") != round_:
        raise PayloadError("consensus of another round", value=header["round"])
    if coding is None:
        check_rows(ids, arrays["values"], n_samples, n_classes)
        return Consensus(ids, arrays["values"])
    check_ids(ids, n_samples)
    coding.check(arrays, len(ids), n_classes)
    return Consensus(ids, np.concatenate(list(coding.decode(arrays, n_classes))))


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


def _packed(
    kind: str,
    ids: NDArray[np.int32],
    arrays: dict[str, Array],
    packing: Packing | None,
    **header: int,
) -> Bytes:
    """A message about some proxy samples, as short as `packing` allows."""
    if packing is None:
        return pack(kind, {"ids": ids, **arrays}, **header)
    which: dict[str, Array] = {"ids": ids}
    if packing.mask and 4 * len(ids) > -(-packing.n_samples // 8):
        which = {"mask": mask_of(ids, packing.n_samples)}
    return squeezed(pack(kind, {**which, **arrays}, **header), packing.zstd)


def _unpacked(
    data: Bytes, kind: str, spec: dict[str, str], n_samples: int, n_classes: int
) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """The ids, the other arrays and the header of a message, however it was packed.

    A frame may hold what the largest answer to all samples takes, and no more.
    """
    most = n_samples * (12 * n_classes + 8) + 2**16
    arrays, header = unpack(
        opened(data, most), kind, {"ids": "int32", **spec}, {"mask": "uint8", **spec}
    )
    ids = arrays.pop("ids") if "ids" in arrays else ids_of(arrays.pop("mask"), n_samples)
    return ids, arrays, header


def _weights_of(answer: Answer) -> dict[str, Array]:
    return {} if answer.weights is None else {"weights": answer.weights}


def _check_weights(answer: Answer | CodedAnswer) -> None:
    """Bounded, so that no client can drown the others; a sum of them is never 0."""
    if answer.weights is None:
        return
    require(answer.weights.shape == answer.ids.shape, "there is not one weight a sample")
    check_finite(answer.weights, "weights")
    inside = (answer.weights > 0) & (answer.weights <= 1)
    require(bool(inside.all()), "a weight is not above 0 and at most 1")


def _from(answer: Answer | CodedAnswer, client: int, round_: int) -> None:
    if answer.client != client:
        raise PayloadError("answer in another client's name", value=answer.client)
    if answer.round != round_:
        raise PayloadError("answer of another round", value=answer.round, allowed=str(round_))

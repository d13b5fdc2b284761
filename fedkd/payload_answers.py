"""What clients' answers, and sums of them, are on the wire; `fedkd.payload` has the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import PayloadError
from fedkd.exchange.combine import GRID, Votes
from fedkd.packing import Packing, packed, unpacked
from fedkd.sparse import TOLERANCE, Coding
from fedkd.wire import (
    Array,
    Bytes,
    check_finite,
    check_ids,
    check_rows,
    pack,
    require,
    unpack,
    whole,
)

WEIGHTS = {"weights": "float32"}
"""Beside the rows of answers that count by weights of their own."""


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


def encode_answer(answer: Answer, packing: Packing | None = None) -> Bytes:
    """One client's answers as bytes."""
    arrays = {"values": answer.values, **_weights_of(answer)}
    return packed("answer", answer.ids, arrays, packing, client=answer.client, round=answer.round)


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
    ids, arrays, header = unpacked(data, "answer", spec, n_samples, n_classes)
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
    return packed(coding.kind, answer.ids, arrays, packing, **who)


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
    ids, arrays, header = unpacked(data, coding.kind, spec, n_samples, n_classes)
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

"""Messages of every kind: what makes them, how each is read, and a forger of bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial as partial_of
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import save

from fedkd import payload, payload_answers
from fedkd.codecs import ArgMax, Eight, Half
from fedkd.exchange.combine import Mean, Votes
from fedkd.exchange.consensus import Consensus
from fedkd.payload import Bytes, Hello
from fedkd.payload_answers import Answer, CodedAnswer, Partial
from fedkd.sparse import Coding, Draws, Largest

Arrays = dict[str, NDArray[Any]]
CLIENT, ROUND, N, C, SIZE = 3, 2, 9, 4, 5
CODINGS: dict[str, Coding] = {
    "top-k-answer": Largest(2),
    "sampled-answer": Draws(5),
    "half": Half(simplex=True),
    "eight": Eight(simplex=True),
    "argmax": ArgMax(),
}
QUICK = settings(deadline=None, max_examples=60)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SAMPLE_SHAPES = st.tuples(*[st.integers(1, 4)] * 3)


@st.composite
def samples(draw: st.DrawFn) -> NDArray[Any]:
    shape = (draw(st.integers(0, 4)), *draw(SAMPLE_SHAPES))
    if draw(st.booleans()):
        return draw(hnp.arrays(np.uint8, shape))
    return draw(hnp.arrays(np.float32, shape, elements=FLOATS))


@st.composite
def hellos(draw: st.DrawFn) -> Hello:
    x, n_classes = draw(samples()), draw(st.integers(1, 5))
    client, n_private = draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 2**31 - 1))
    return Hello(client, n_private, n_classes, x)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    kept = draw(hnp.arrays(bool, N))
    values = draw(hnp.arrays(np.float32, (int(kept.sum()), C), elements=FLOATS))
    return Answer(CLIENT, ROUND, np.flatnonzero(kept).astype(np.int32), values)


def distributions(answer: Answer) -> Answer:
    rows = np.abs(answer.values.astype(np.float64)) + 1e-3
    return answer._replace(values=(rows / rows.sum(1, keepdims=True)).astype(np.float32))


def decode_answer(data: Bytes, simplex: bool = False, weighed: bool = False) -> Answer:
    return payload_answers.decode_answer(
        data,
        client=CLIENT,
        round_=ROUND,
        n_samples=N,
        n_classes=C,
        simplex=simplex,
        weighed=weighed,
    )


def encode_sparse(answer: Answer, coding: Coding, seed: int = 0) -> Bytes:
    return payload_answers.encode_coded_answer(answer, coding, np.random.default_rng(seed))


def decode_sparse(data: Bytes, coding: Coding, n_classes: int = C) -> CodedAnswer:
    return payload_answers.decode_coded_answer(
        data, client=CLIENT, round_=ROUND, n_samples=N, n_classes=n_classes, coding=coding
    )


def decode_consensus(data: Bytes) -> Consensus:
    return payload.decode_consensus(data, round_=ROUND, n_samples=N, n_classes=C)


def decode_partial(data: Bytes) -> Partial:
    return payload_answers.decode_partial(data, round_=ROUND, n_samples=N, n_classes=C)


def partial(some: list[Answer]) -> Partial:
    """What clients 1, 3, 5, ... say together."""
    votes = Mean().start(N, C)
    for answer in some:
        Mean().add(votes, answer.ids, answer.values)
    ids = np.flatnonzero(votes.voters).astype(np.int32)
    clients = np.arange(len(some), dtype=np.int32) * 2 + 1
    return Partial(ROUND, clients, ids, Votes(votes.total[ids], votes.voters[ids]))


def decode_weights(data: Bytes) -> tuple[NDArray[np.float32], int]:
    return payload.decode_weights(data, client=CLIENT, round_=ROUND, size=SIZE)


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert type(one) is type(other)
    for a, b in zip(one, other, strict=True):
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, strict=True)
        else:
            assert a == b


GOOD: dict[str, tuple[dict[str, Any], Arrays]] = {
    "hello": (
        {"client": CLIENT, "n_private": 7, "n_classes": C},
        {"contribution": np.ones((2, 1, 3, 3), np.float32)},
    ),
    "pool": (
        {},
        {"x": np.ones((2, 1, 3, 3), np.float32), "contributor": np.array([-1, 4], np.int32)},
    ),
    "answer": (
        {"client": CLIENT, "round": ROUND},
        {
            "ids": np.array([0, 4, N - 1], np.int32),
            "values": np.full((3, C), 1 / C, np.float32),
        },
    ),
    "weighed-answer": (
        {"kind": "answer", "client": CLIENT, "round": ROUND},
        {
            "ids": np.array([0, 4, N - 1], np.int32),
            "values": np.full((3, C), 1 / C, np.float32),
            "weights": np.array([1, 0.5, 1e-30], np.float32),
        },
    ),
    "top-k-answer": (
        {"client": CLIENT, "round": ROUND},
        {
            "ids": np.array([0, 4, N - 1], np.int32),
            "classes": np.array([[0, 1], [1, 3], [2, 3]], np.uint8),
            "values": np.array([[0.5, 0.25], [0.5, 0.5], [0.25, 0.75]], np.float32),
        },
    ),
    "sampled-answer": (
        {"client": CLIENT, "round": ROUND},
        {
            "ids": np.array([0, 4, N - 1], np.int32),
            "classes": np.array([3, 0, 1, 2, 3, 1, 2], np.uint8),
            "counts": np.array([5, 1, 1, 2, 1, 4, 1], np.uint8),
        },
    ),
    "half": (
        {"client": CLIENT, "round": ROUND},
        {"ids": np.array([0, 4, N - 1], np.int32), "values": np.full((3, C), 1 / C, np.float16)},
    ),
    "eight": (
        {"client": CLIENT, "round": ROUND},
        {
            "ids": np.array([0, 4, N - 1], np.int32),
            "levels": np.array([[255, 0, 0, 9], [255] * 4, [1, 2, 3, 255]], np.uint8),
        },
    ),
    "argmax": (
        {"client": CLIENT, "round": ROUND},
        {"ids": np.array([0, 4, N - 1], np.int32), "classes": np.array([0, 3, 2], np.uint8)},
    ),
    "partial": (
        {"round": ROUND},
        {
            "clients": np.array([2, CLIENT], np.int32),
            "ids": np.array([0, 4, N - 1], np.int32),
            "total": np.array([[1, 1, 0, 0], [0, 0, 1, 0], [2, 0, 0, 0]]) * 2.0**30,
            "voters": np.array([2, 1, 2], np.int32),
        },
    ),
    "consensus": (
        {"round": ROUND},
        {
            "ids": np.array([0, 4, N - 1], np.int32),
            "values": np.full((3, C), 1 / C, np.float32),
        },
    ),
    "labelled-pool": (
        {"kind": "pool"},
        {
            "x": np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 2, 2),
            "contributor": np.array([-1, 0, 2], np.int32),
            "labels": np.array([0, -100, 3], np.int32),
        },
    ),
    "selection": ({"round": ROUND}, {"mask": np.array([0b01000101, 1 << 7], np.uint8)}),
    "recalling-selection": (
        {"kind": "selection", "round": ROUND},
        {
            "mask": np.array([0b01000100, 1 << 7], np.uint8),
            "drawn": np.array([0b01000101, 1 << 7], np.uint8),
        },
    ),
    "label-means": (
        {"round": ROUND},
        {
            "clients": np.array([2, CLIENT], np.int32),
            "ids": np.array([0, C - 1], np.int32),
            "total": np.array([[1, 1, 0, 0], [0, 0, 0.5, 0.5]]),
            "voters": np.array([2, 1], np.int32),
        },
    ),
    "weights": (
        {"client": CLIENT, "round": ROUND, "n_samples": 600},
        {"weights": np.arange(SIZE, dtype=np.float32)},
    ),
}
DECODE: dict[str, Callable[[Bytes], Any]] = {
    "hello": payload.decode_hello,
    "pool": payload.decode_pool,
    "labelled-pool": payload.decode_pool,
    "answer": lambda data: decode_answer(data, simplex=True),
    "weighed-answer": lambda data: decode_answer(data, simplex=True, weighed=True),
    **{kind: partial_of(decode_sparse, coding=coding) for kind, coding in CODINGS.items()},
    "partial": decode_partial,
    "consensus": decode_consensus,
    "selection": partial_of(payload.decode_selection, round_=ROUND, n_records=N),
    "recalling-selection": partial_of(payload.decode_selection, round_=ROUND, n_records=N),
    "label-means": partial_of(payload.decode_label_means, round_=ROUND, n_classes=C),
    "weights": decode_weights,
}


def raw(arrays: Arrays) -> Bytes:
    return save(arrays)


def forged(kind: str, header: dict[str, Any] | None = None, **arrays: Any) -> Bytes:
    """A good message of one kind with these header fields and arrays changed; None drops one."""
    note, parts = GOOD[kind]
    note = {"schema": payload.SCHEMA, "kind": kind, **note, **(header or {})}
    text = json.dumps({key: value for key, value in note.items() if value is not None})
    parts = {key: value for key, value in {**parts, **arrays}.items() if value is not None}
    return raw({**parts, "header": np.frombuffer(text.encode(), np.uint8)})

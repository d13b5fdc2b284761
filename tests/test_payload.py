"""The wire: what is sent arrives, and whatever else arrives is refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from fedkd import payload
from fedkd.errors import PayloadError
from fedkd.exchange.combine import Consensus, Mean, Votes
from fedkd.payload import Answer, Bytes, Hello, Partial, Pool, SparseAnswer
from fedkd.sparse import Coding, Draws, Largest

Arrays = dict[str, NDArray[Any]]
CLIENT, ROUND, N, C, SIZE = 3, 2, 9, 4, 5
CODINGS: dict[str, Coding] = {"top-k-answer": Largest(2), "sampled-answer": Draws(5)}
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


def decode_answer(data: Bytes, simplex: bool = False) -> Answer:
    return payload.decode_answer(
        data, client=CLIENT, round_=ROUND, n_samples=N, n_classes=C, simplex=simplex
    )


def encode_sparse(answer: Answer, coding: Coding, seed: int = 0) -> Bytes:
    return payload.encode_sparse_answer(answer, coding, np.random.default_rng(seed))


def decode_sparse(data: Bytes, coding: Coding, n_classes: int = C) -> SparseAnswer:
    return payload.decode_sparse_answer(
        data, client=CLIENT, round_=ROUND, n_samples=N, n_classes=n_classes, coding=coding
    )


def decode_consensus(data: Bytes) -> Consensus:
    return payload.decode_consensus(data, round_=ROUND, n_samples=N, n_classes=C)


def decode_partial(data: Bytes) -> Partial:
    return payload.decode_partial(data, round_=ROUND, n_samples=N, n_classes=C)


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


# --- round trips ---


@given(hellos())
@QUICK
def test_a_hello_arrives(hello: Hello) -> None:
    assert_same(payload.decode_hello(payload.encode_hello(hello)), hello)


@given(samples(), st.data())
@QUICK
def test_a_pool_arrives(x: NDArray[Any], data: st.DataObject) -> None:
    pool = Pool(x, data.draw(hnp.arrays(np.int32, len(x), elements=st.integers(-1, 99))))
    assert_same(payload.decode_pool(payload.encode_pool(pool)), pool)


@given(answers())
@QUICK
def test_an_answer_arrives(answer: Answer) -> None:
    assert_same(decode_answer(payload.encode_answer(answer)), answer)
    soft = distributions(answer)
    assert_same(decode_answer(payload.encode_answer(soft), simplex=True), soft)


@pytest.mark.parametrize("kind", CODINGS)
@given(answers(), st.integers(0, 99))
@QUICK
def test_a_sparse_answer_arrives(kind: str, answer: Answer, seed: int) -> None:
    soft, coding = distributions(answer), CODINGS[kind]
    got = decode_sparse(encode_sparse(soft, coding, seed), coding)
    sent = coding.encode(soft.values, np.random.default_rng(seed))
    assert got.arrays.keys() == sent.keys()
    for name in sent:
        assert got.arrays[name].dtype == sent[name].dtype
        np.testing.assert_array_equal(got.arrays[name], sent[name], strict=True)
    ids = [block.ids for block in got.blocks()]
    values = [block.values for block in got.blocks()]
    np.testing.assert_array_equal(np.concatenate(ids), answer.ids, strict=True)
    np.testing.assert_array_equal(
        np.concatenate(values), np.concatenate(list(coding.decode(sent, C))), strict=True
    )
    assert {(block.client, block.round) for block in got.blocks()} == {(CLIENT, ROUND)}


@given(answers())
@QUICK
def test_a_consensus_arrives(answer: Answer) -> None:
    consensus = Consensus(answer.ids, answer.values)
    assert_same(decode_consensus(payload.encode_consensus(consensus, ROUND)), consensus)


@given(st.lists(answers().map(distributions), min_size=1, max_size=4))
@QUICK
def test_a_partial_sum_arrives(some: list[Answer]) -> None:
    sent = partial(some)
    got = decode_partial(payload.encode_partial(sent))
    assert got.round == ROUND
    np.testing.assert_array_equal(got.clients, sent.clients, strict=True)
    np.testing.assert_array_equal(got.ids, sent.ids, strict=True)
    np.testing.assert_array_equal(got.votes.voters, sent.votes.voters, strict=True)
    assert got.votes.total.tolist() == sent.votes.total.tolist()


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=FLOATS), st.integers(-1, 99))
@QUICK
def test_weights_arrive(weights: NDArray[np.float32], client: int) -> None:
    data = payload.encode_weights(weights, client, ROUND, 600)
    got, n_samples = payload.decode_weights(data, client=client, round_=ROUND, size=len(weights))
    assert_same((got,), (weights,))
    assert n_samples == 600


def test_the_layout_in_memory_does_not_matter() -> None:
    grid = np.arange(2 * N * C, dtype=np.float32).reshape(C, 2 * N)
    values = grid[:, ::2].T  # neither contiguous nor in C order
    answer = Answer(CLIENT, ROUND, np.arange(N, dtype=np.int32).repeat(2)[::2], values)
    assert_same(decode_answer(payload.encode_answer(answer)), answer)


@given(answers())
@QUICK
def test_equal_messages_are_equal_bytes(answer: Answer) -> None:
    one, other = (payload.encode_answer(Answer(*answer)) for _ in range(2))
    assert one == other


# --- sizes ---


def body(data: Bytes) -> int:
    """Bytes without safetensors' own header and ours, whose lengths the format itself tells."""
    length = int.from_bytes(data[:8], "little")
    return len(data) - 8 - length - load(data)["header"].nbytes


@given(m=st.integers(0, 300), n_classes=st.integers(1, 40))
@QUICK
def test_bytes_are_the_closed_forms(m: int, n_classes: int) -> None:
    ids, values = np.arange(m, dtype=np.int32), np.zeros((m, n_classes), np.float32)
    messages = {
        4 * m * (n_classes + 1): [
            payload.encode_answer(Answer(CLIENT, ROUND, ids, values)),
            payload.encode_consensus(Consensus(ids, values), ROUND),
        ],
        4 * m * n_classes: [payload.encode_weights(values.ravel(), CLIENT, ROUND)],
        m * (784 + 4): [payload.encode_pool(Pool(np.zeros((m, 1, 28, 28), np.uint8), ids))],
        m * 784: [
            payload.encode_hello(Hello(CLIENT, m, n_classes, np.zeros((m, 1, 28, 28), np.uint8)))
        ],
    }
    for n_bytes, encoded in messages.items():
        for data in encoded:
            assert body(data) == n_bytes
            assert 0 < len(data) - n_bytes < 450  # what naming things costs, whatever the size


@given(m=st.integers(1, 60), k=st.integers(1, 9), n_classes=st.integers(2, 9))
@QUICK
def test_bytes_of_partial_sums_are_the_closed_forms(m: int, k: int, n_classes: int) -> None:
    """float32 can say one answer's steps, and any sum of arg-maxes; two thirds and a step not."""
    ids, clients = np.arange(m, dtype=np.int32), np.arange(k, dtype=np.int32)
    total = np.zeros((m, n_classes))
    total[:, 0] = k * 2.0**30
    for wide in (False, True):
        if wide:
            total[:, 0] = 2.0**29 + 1
        votes = Votes(total, np.full(m, k, np.int32))
        data = payload.encode_partial(Partial(ROUND, clients, ids, votes))
        assert body(data) == 4 * k + m * (4 + 4 + (8 if wide else 4) * n_classes)


@given(m=st.integers(0, 60), k=st.integers(1, 9), n=st.integers(1, 400))
@pytest.mark.parametrize(("n_classes", "id_bytes"), [(1, 1), (256, 1), (257, 2), (70_000, 4)])
@settings(deadline=None, max_examples=15)
def test_bytes_of_sparse_answers_are_the_closed_forms(
    n_classes: int, id_bytes: int, m: int, k: int, n: int
) -> None:
    """Rows with all their mass on one class: one entry a row is drawn, of n draws."""
    values = np.zeros((m, n_classes), np.float32)
    values[:, -1] = 1
    answer = Answer(CLIENT, ROUND, np.arange(m, dtype=np.int32), values)
    top, drawn = encode_sparse(answer, Largest(k)), encode_sparse(answer, Draws(n))
    assert body(top) == m * (4 + min(k, n_classes) * (id_bytes + 4))
    assert body(drawn) == m * (4 + id_bytes + (1 if n < 256 else 2))
    for data in (top, drawn):
        assert len(data) - body(data) < 450


# --- refusals: messages are forged with safetensors itself ---

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
    "weights": (
        {"client": CLIENT, "round": ROUND, "n_samples": 600},
        {"weights": np.arange(SIZE, dtype=np.float32)},
    ),
}
DECODE: dict[str, Callable[[Bytes], Any]] = {
    "hello": payload.decode_hello,
    "pool": payload.decode_pool,
    "answer": lambda data: decode_answer(data, simplex=True),
    "top-k-answer": lambda data: decode_sparse(data, CODINGS["top-k-answer"]),
    "sampled-answer": lambda data: decode_sparse(data, CODINGS["sampled-answer"]),
    "partial": decode_partial,
    "consensus": decode_consensus,
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


@pytest.mark.parametrize("kind", GOOD)
def test_the_forger_can_also_write_good_messages(kind: str) -> None:
    assert DECODE[kind](forged(kind)) is not None


def f32(*rows: Any) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def i32(*ids: int) -> NDArray[np.int32]:
    return np.array(ids, dtype=np.int32)


ROWS = {
    "an id past the last": ({"ids": i32(0, 4, N)}, "an id is out of range"),
    "a negative id": ({"ids": i32(-1, 0, 4)}, "an id is out of range"),
    "an id twice": ({"ids": i32(0, 4, 4)}, "ids are repeated or not ascending"),
    "ids in another order": ({"ids": i32(4, 0, 8)}, "ids are repeated or not ascending"),
    "ids far apart": ({"ids": i32(-(2**31), 0, 2**31 - 1)}, "an id is out of range"),
    "ids on two axes": ({"ids": i32(0, 4, 8)[None]}, "ids are not [m]"),
    "an id too few": ({"ids": i32(0, 4)}, "values are [3, 4], not [2, 4]"),
    "a class too few": ({"values": np.zeros((3, C - 1), np.float32)}, "not [3, 4]"),
    "values on one axis": ({"values": np.zeros(3 * C, np.float32)}, "values are [12]"),
    "long ids": ({"ids": np.array([0, 4, 8])}, "wrong type of ids; got 'int64'"),
    "double values": ({"values": np.zeros((3, C))}, "wrong type of values; got 'float64'"),
    "half values": ({"values": np.zeros((3, C), np.float16)}, "wrong type of values"),
    "NaN": ({"values": f32([0, 0, 0, np.nan])[[0, 0, 0]]}, "values has values that are not finite"),
    "infinity": ({"values": f32([0, 0, 0, np.inf])[[0, 0, 0]]}, "not finite"),
    "no values": ({"values": None}, "wrong arrays; got ['ids']; allowed: ids, values"),
    "an extra array": ({"more": i32(1)}, "wrong arrays; got ['ids', 'more', 'values']"),
}
SENDER = {
    "another client": ({"client": CLIENT + 1}, "nother client"),
    "another round": ({"round": ROUND + 1}, "another"),
    "no round": ({"round": None}, "header round is not a whole number"),
    "a round that is text": ({"round": str(ROUND)}, "header round is not a whole number"),
    "a round that is a float": ({"round": float(ROUND)}, "header round is not a whole number"),
    "a round that is true": ({"round": True}, "header round is not a whole number"),
}


def u8(*rows: Any) -> NDArray[np.uint8]:
    return np.array(rows, dtype=np.uint8)


IDS = {name: refusal for name, refusal in ROWS.items() if set(refusal[0]) == {"ids"}}
TOP = {
    "a class past the last": ({"classes": u8([0, 1], [1, 3], [2, C])}, "a class is out of range"),
    "a class twice": ({"classes": u8([0, 1], [1, 1], [2, 3])}, "repeated or not ascending"),
    "classes in another order": ({"classes": u8([1, 0], [1, 3], [2, 3])}, "not ascending"),
    "wide classes": (
        {"classes": np.array([[0, 1], [1, 3], [2, 3]], np.uint16)},
        "wrong type of classes; got 'uint16'; allowed: uint8",
    ),
    "a class too few": ({"classes": u8([0], [1], [2])}, "wrong shape of classes or values"),
    "a class too many": (
        {"classes": u8([0, 1, 2])[[0, 0, 0]], "values": f32([0.5, 0.25, 0])[[0, 0, 0]]},
        "wrong shape of classes or values; got ((3, 3), (3, 3)); allowed: (3, 2)",
    ),
    "flat classes": ({"classes": u8(0, 1, 1, 3, 2, 3)}, "wrong shape of classes or values"),
    "a row too few": ({"values": f32([0.5, 0.25], [1, 0])}, "wrong shape of classes or values"),
    "double values": ({"values": np.zeros((3, 2))}, "wrong type of values; got 'float64'"),
    "NaN": ({"values": f32([0.5, np.nan])[[0, 0, 0]]}, "values that are not finite"),
    "infinity": ({"values": f32([0.5, np.inf])[[0, 0, 0]]}, "values that are not finite"),
    "below zero": ({"values": f32([1, 0], [0.6, -0.1], [1, 0])}, "a row is not a distribution"),
    "more than all": ({"values": f32([1, 0], [0.6, 0.5], [1, 0])}, "a row is not a distribution"),
    "counts": ({"values": None, "counts": u8([1, 4])[[0, 0, 0]]}, "wrong arrays"),
}
DRAWN = {
    "a class past the last": ({"classes": u8(3, 0, 1, 2, 3, 1, C)}, "a class is out of range"),
    "a class twice": ({"classes": u8(3, 0, 0, 2, 3, 1, 2)}, "repeated or not ascending"),
    "classes in another order": ({"classes": u8(3, 0, 2, 1, 3, 1, 2)}, "not ascending"),
    "no count": ({"counts": u8(5, 0, 2, 2, 1, 4, 1)}, "a count is zero"),
    "a draw too many": ({"counts": u8(5, 1, 1, 2, 1, 4, 2)}, "do not add up; got 16; allowed: 15"),
    "a draw too few": ({"counts": u8(5, 1, 1, 2, 1, 3, 1)}, "do not add up; got 14; allowed: 15"),
    "a draw of another row": ({"counts": u8(5, 1, 1, 2, 2, 3, 1)}, "a row do not add up to 5"),
    "a row too few": ({"ids": i32(0, 4)}, "do not add up; got 15; allowed: 10"),
    "a row too many": ({"ids": i32(0, 4, 5, 8)}, "do not add up; got 15; allowed: 20"),
    "nothing drawn": ({"classes": u8(), "counts": u8()}, "do not add up; got 0; allowed: 15"),
    "wide counts": (
        {"counts": np.array([5, 1, 1, 2, 1, 4, 1], np.uint16)},
        "wrong type of counts; got 'uint16'; allowed: uint8",
    ),
    "signed classes": ({"classes": np.zeros(7, np.int8)}, "wrong type of classes; got 'int8'"),
    "a count for no class": ({"counts": u8(5, 1, 1, 2, 1, 5)}, "not both [e]"),
    "counts on two axes": (
        {"classes": u8([3], [2], [1]), "counts": u8([5], [5], [5])},
        "classes and counts are not both [e]",
    ),
    "values": ({"counts": None, "values": f32(*[0.5] * 7)}, "wrong arrays"),
}


def sums(*rows: Any) -> NDArray[np.float64]:
    """The good total with its last rows changed; in wholes, not in steps."""
    total = GOOD["partial"][1]["total"].copy()
    total[-len(rows) :] = np.array(rows) * 2.0**30
    return total


PARTIAL = {
    "no client": ({"clients": i32()}, "clients are not [k], or there are none"),
    "a client twice": ({"clients": i32(3, 3)}, "clients are negative, repeated or not ascending"),
    "the server": ({"clients": i32(-1, 3)}, "clients are negative"),
    "clients in another order": ({"clients": i32(3, 2)}, "not ascending"),
    "a voter too many": ({"clients": i32(3)}, "a sample does not have 1 to 1 voters"),
    "no voter": ({"voters": i32(2, 0, 2)}, "a sample does not have 1 to 2 voters"),
    "voters of two samples": ({"voters": i32(2, 1)}, "voters are [2], not [3]"),
    "half a step": (
        {"total": sums([1 + 2.0**-31, 1 - 2.0**-31, 0, 0])},
        "a total is no whole number of steps",
    ),
    "NaN": ({"total": sums([np.nan, 0, 0, 0])}, "not finite"),
    "below zero": ({"total": sums([3, -1, 0, 0])}, "a row is not a sum of distributions"),
    "three of two": ({"total": sums([3, 0, 0, 0])}, "a row is not a sum of distributions"),
    "one of two": ({"total": sums([1, 0, 0, 0])}, "a row is not a sum of distributions; got 0.5"),
    "beyond all sums": ({"total": sums([1e298, 1e298, 0, 0])}, "not a sum of distributions"),
    "whole numbers": (
        {"total": np.ones((3, C), np.int64)},
        "wrong type of total; got 'int64'; allowed: float32 float64",
    ),
}
REFUSALS: list[tuple[str, str, dict[str, Any], str]] = [
    *(("top-k-answer", name, arrays, words) for name, (arrays, words) in TOP.items()),
    *(("sampled-answer", name, arrays, words) for name, (arrays, words) in DRAWN.items()),
    *(
        (kind, name, arrays, words)
        for kind in CODINGS
        for name, (arrays, words) in IDS.items()
        if name != "an id too few"
    ),
    *(
        (kind, name, {"header": header}, words)
        for kind in CODINGS
        for name, (header, words) in SENDER.items()
    ),
    *(("answer", name, arrays, words) for name, (arrays, words) in ROWS.items()),
    *(("consensus", name, arrays, words) for name, (arrays, words) in ROWS.items()),
    *(("partial", name, arrays, words) for name, (arrays, words) in PARTIAL.items()),
    *(
        ("partial", name, arrays, words)
        for name, (arrays, words) in IDS.items()
        if "long" not in name
    ),
    *(
        ("partial", name, {"header": header}, words)
        for name, (header, words) in SENDER.items()
        if "client" not in name
    ),
    *(("answer", name, {"header": header}, words) for name, (header, words) in SENDER.items()),
    *(("weights", name, {"header": header}, words) for name, (header, words) in SENDER.items()),
    *(
        ("consensus", name, {"header": header}, words)
        for name, (header, words) in SENDER.items()
        if "client" not in name
    ),
    (
        "answer",
        "a row that sums to less",
        {"values": f32([1, 0, 0, 0], [0.5, 0, 0, 0.49], [1, 0, 0, 0])},
        "a row is not a distribution",
    ),
    (
        "answer",
        "a row below zero",
        {"values": f32([1, 0, 0, 0], [1.5, -0.5, 0, 0], [1, 0, 0, 0])},
        "a row is not a distribution",
    ),
    ("answer", "logits", {"values": f32([2, -1, -3, 2])[[0, 0, 0]]}, "not a distribution"),
    ("weights", "a weight too few", {"weights": f32(*range(SIZE - 1))}, "expected 5 weights"),
    ("weights", "a matrix", {"weights": f32([0] * SIZE)}, "expected 5 weights"),
    ("weights", "NaN", {"weights": f32(*[np.nan] * SIZE)}, "weights has values that are not"),
    ("weights", "less than nothing", {"header": {"n_samples": -1}}, "n_samples is negative"),
    ("weights", "doubles", {"weights": np.zeros(SIZE)}, "wrong type of weights"),
    ("pool", "flat samples", {"x": np.zeros((2, 9), np.uint8)}, "pool is not [n, c, h, w]"),
    ("pool", "a contributor too few", {"contributor": i32(1)}, "one contributor a sample"),
    ("pool", "infinity", {"x": np.full((2, 1, 3, 3), np.inf, np.float32)}, "pool has values"),
    ("pool", "signed pixels", {"x": np.zeros((2, 1, 3, 3), np.int8)}, "wrong type of x"),
    ("hello", "flat samples", {"contribution": f32([0, 1])}, "contribution is not [m, c, h, w]"),
    (
        "hello",
        "NaN",
        {"contribution": np.full((2, 1, 3, 3), np.nan, np.float32)},
        "contribution has values that are not finite",
    ),
    ("hello", "the server's id", {"header": {"client": -1}}, "client or n_private is negative"),
    ("hello", "fewer than no samples", {"header": {"n_private": -1}}, "n_private is negative"),
    ("hello", "an id of 33 bits", {"header": {"client": 2**31}}, "not a whole number in range"),
    ("hello", "an id of 100 digits", {"header": {"client": 10**99}}, "not a whole number in"),
    (
        "hello",
        "no classes",
        {
            "header": {"n_classes": 0},
            "contribution": np.zeros((0, 1, 3, 3), np.uint8),
        },
        "there are no classes",
    ),
]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [pytest.param(kind, *rest, id=f"{kind}: {name}") for kind, name, *rest in REFUSALS],
)
def test_a_broken_contract_is_refused(kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PayloadError) as error:
        DECODE[kind](forged(kind, **changes))
    assert words in str(error.value)


def test_without_a_tail_the_values_are_all_there_is() -> None:
    """The same values are fine for one class more, which then takes the rest."""
    parts = {"ids": i32(0), "classes": u8([0, 1]), "values": f32([0.5, 0.25])}
    data = forged("top-k-answer", **parts)
    (block,) = decode_sparse(data, Largest(2), n_classes=3).blocks()
    assert block.values.tolist() == [[0.5, 0.25, 0.25]]
    with pytest.raises(PayloadError, match="a row is not a distribution"):
        decode_sparse(data, Largest(2), n_classes=2)


@pytest.mark.parametrize("kind", CODINGS)
def test_an_answer_to_nothing_has_no_rows(kind: str) -> None:
    answer = Answer(CLIENT, ROUND, i32(), np.zeros((0, C), np.float32))
    got = decode_sparse(encode_sparse(answer, CODINGS[kind]), CODINGS[kind])
    assert sum(len(block.ids) + len(block.values) for block in got.blocks()) == 0


def test_logits_need_not_be_distributions() -> None:
    data = forged("answer", values=f32([2, -1, -3, 2])[[0, 0, 0]])
    assert decode_answer(data, simplex=False).values[0].tolist() == [2, -1, -3, 2]


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": payload.SCHEMA + 1}, "wrong schema"),
        ({"schema": None}, "wrong schema"),
        ({"kind": None}, "wrong kind of message"),
        ({"kind": ["x"]}, "wrong kind of message; got ['x']; allowed: "),
    ],
)
def test_another_schema_or_kind_is_refused(kind: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(PayloadError) as error:
        DECODE[kind](forged(kind, change))
    assert words in str(error.value)


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("other", GOOD)
def test_a_message_of_another_kind_is_refused(kind: str, other: str) -> None:
    if kind != other:
        with pytest.raises(PayloadError, match=f"wrong kind .*got '{other}'; allowed: {kind}"):
            DECODE[kind](forged(other))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_header_that_is_no_table_is_refused(header: bytes) -> None:
    message = raw({**GOOD["weights"][1], "header": np.frombuffer(header, np.uint8)})
    with pytest.raises(PayloadError):
        decode_weights(message)


@pytest.mark.parametrize("kind", GOOD)
def test_a_message_without_a_header_is_refused(kind: str) -> None:
    with pytest.raises(PayloadError, match="not a payload: 'header'"):
        DECODE[kind](raw(GOOD[kind][1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_types_that_numpy_does_not_know_are_refused(dtype: torch.dtype) -> None:
    header = torch.tensor(list(b"{}"), dtype=torch.uint8)
    data = save_torch({"weights": torch.zeros(SIZE, dtype=dtype), "header": header})
    with pytest.raises(PayloadError, match="not a payload"):
        decode_weights(data)


@pytest.mark.parametrize("kind", GOOD)
def test_every_cut_is_refused(kind: str) -> None:
    data = forged(kind)
    for length in range(len(data)):
        with pytest.raises(PayloadError, match="not a payload"):
            DECODE[kind](data[:length])
    with pytest.raises(PayloadError, match="not a payload"):
        DECODE[kind](data + b"\0")


# --- fuzz ---


def holds(kind: str, got: Any) -> bool:
    """Whether a decoded message keeps the contract, written without the code under test."""
    match kind, got:
        case "weights", (weights, n_samples):
            return weights.shape == (SIZE,) and bool(np.isfinite(weights).all()) and n_samples >= 0
        case "pool", Pool(x, contributor):
            return x.ndim == 4 and contributor.shape == (len(x),) and bool(np.isfinite(x).all())
        case "hello", Hello(client, n_private, n_classes, x):
            return (
                min(client, n_private) >= 0
                and n_classes >= 1
                and x.ndim == 4
                and bool(np.isfinite(x).all())
            )
        case "partial", Partial(_, clients, ids, (total, voters)):
            whole = [[float(value).is_integer() for value in row] for row in total]
            rows = zip(total.tolist(), voters.tolist(), strict=True)
            return (
                clients.tolist() == sorted(set(clients.tolist()))
                and min(clients.tolist()) >= 0
                and ids.tolist() == sorted(set(ids.tolist()))
                and set(ids.tolist()) <= set(range(N))
                and np.shape(whole) in ((len(ids), C), (0,))
                and all(map(all, whole))
                and all(
                    1 <= n <= len(clients)
                    and min(row) >= 0
                    and abs(sum(row) / 2**30 / n - 1) < 2e-3
                    for row, n in rows
                )
            )
        case _:
            if isinstance(got, SparseAnswer):
                values = np.concatenate([block.values for block in got.blocks()])
                got = Answer(got.client, got.round, got.ids, values)
            ids = got.ids.tolist()
            return (
                ids == sorted(set(ids))
                and set(ids) <= set(range(N))
                and got.values.shape == (len(ids), C)
                and got.values.dtype == np.float32
                and bool(np.isfinite(got.values).all())
                and (
                    kind == "consensus"
                    or bool(
                        (np.abs(got.values.sum(1) - 1) < 2e-3).all() and (got.values >= 0).all()
                    )
                )
            )


def survives(data: Bytes) -> None:
    """Every decoder refuses, or gives what keeps the contract; nothing else may happen."""
    for kind, decode in DECODE.items():
        try:
            got = decode(data)
        except PayloadError:
            continue
        assert holds(kind, got)


Edit = tuple[str, float, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    for what, where, new in edits:
        start = int(where * len(data))
        end = start if what == "insert" else start + len(new)
        data = data[:start] + (b"" if what == "cut" else new) + data[end:]
    return data


@given(st.sampled_from(sorted(GOOD)), EDITS)
@settings(deadline=None, max_examples=1500)
def test_edited_messages_are_refused_or_keep_the_contract(kind: str, edits: list[Edit]) -> None:
    survives(edited(forged(kind), edits))


@given(st.sampled_from(sorted(GOOD)), st.data())
@settings(deadline=None, max_examples=1500)
def test_edited_values_are_refused_or_keep_the_contract(kind: str, data: st.DataObject) -> None:
    """As above, past safetensors' own checks: only the numbers of the arrays change."""
    message = bytearray(forged(kind))
    start = 8 + int.from_bytes(message[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(start, len(message) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(message))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
ANY_ARRAY = hnp.arrays(
    st.sampled_from([np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
)


@given(st.sampled_from(sorted(GOOD)), st.data())
@settings(deadline=None, max_examples=800)
def test_forged_parts_are_refused_or_keep_the_contract(kind: str, data: st.DataObject) -> None:
    note, parts = GOOD[kind]
    header = data.draw(st.dictionaries(st.sampled_from(["schema", "kind", *note]), JSON))
    arrays = data.draw(st.dictionaries(st.sampled_from([*parts, "more"]), ANY_ARRAY, max_size=2))
    assume(header or arrays)
    survives(forged(kind, header, **arrays))


@given(st.binary(max_size=200))
@QUICK
def test_noise_is_refused(data: bytes) -> None:
    for decode in DECODE.values():
        with pytest.raises(PayloadError, match="not a payload"):
            decode(data)

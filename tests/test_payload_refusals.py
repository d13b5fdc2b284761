"""Messages that break the contract, forged with safetensors itself: refused, and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkd import payload
from fedkd.errors import PayloadError
from fedkd.payload_answers import Answer
from fedkd.sparse import Largest
from messages import (
    CLIENT,
    CODINGS,
    DECODE,
    GOOD,
    ROUND,
    SIZE,
    C,
    N,
    decode_answer,
    decode_sparse,
    encode_sparse,
    forged,
)


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
    """Answers that count by weights are answers with other arrays; some may be left out."""
    same = ({"pool", "labelled-pool"}, {"selection", "recalling-selection"})
    if kind == other or {kind, other} in same:
        return
    said, allowed = (GOOD[one][0].get("kind", one) for one in (other, kind))
    words = f"wrong kind .*got '{said}'; allowed: {allowed}" if said != allowed else "wrong arrays"
    with pytest.raises(PayloadError, match=words):
        DECODE[kind](forged(other))

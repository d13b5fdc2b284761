"""The wire of secure aggregation: what is sent arrives, whatever else arrives is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load, save

from fedkd import payload_secure as secure
from fedkd.errors import PayloadError
from fedkd.payload import Bytes

CLIENT, ROUND, SHAPE = 3, 2, (9, 5)
LOST = frozenset({1, 6})
QUICK = settings(deadline=None, max_examples=60)
WORDS = st.binary(min_size=32, max_size=32)
CLIENTS = st.integers(0, 2**31 - 1)
PUBLIC = {client: bytes([client]) * 32 for client in (0, 1, 3, 6)}

GOOD: dict[str, Callable[[], Bytes]] = {
    "key": lambda: secure.encode_key(b"k" * 32, CLIENT, ROUND),
    "cohort": lambda: secure.encode_cohort(PUBLIC, LOST, ROUND),
    "blinded": lambda: secure.encode_blinded(np.full(SHAPE, 2**64 - 7, np.uint64), CLIENT, ROUND),
    "secrets": lambda: secure.encode_secrets({c: b"s" * 32 for c in LOST}, CLIENT, ROUND),
}
DECODE: dict[str, Callable[[Bytes], Any]] = {
    "key": lambda data: secure.decode_key(data, client=CLIENT, round_=ROUND),
    "cohort": lambda data: secure.decode_cohort(data, round_=ROUND),
    "blinded": lambda data: secure.decode_blinded(data, client=CLIENT, round_=ROUND, shape=SHAPE),
    "secrets": lambda data: secure.decode_secrets(data, client=CLIENT, round_=ROUND, lost=LOST),
}


def changed(kind: str, **arrays: NDArray[Any]) -> Bytes:
    """A good message with some of its arrays replaced."""
    return save(load(GOOD[kind]()) | arrays)


@given(WORDS, CLIENTS)
@QUICK
def test_a_key_arrives(key: bytes, client: int) -> None:
    data = secure.encode_key(key, client, ROUND)
    assert secure.decode_key(data, client=client, round_=ROUND) == key


@given(st.dictionaries(CLIENTS, WORDS, max_size=6), st.data())
@QUICK
def test_a_cohort_arrives(public: dict[int, bytes], data: st.DataObject) -> None:
    lost = frozenset(client for client in public if data.draw(st.booleans()))
    sent = secure.encode_cohort(public, lost, ROUND)
    assert secure.decode_cohort(sent, round_=ROUND) == (public, lost)


@given(hnp.arrays(np.uint64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0)))
@QUICK
def test_a_blinded_table_arrives(table: NDArray[np.uint64]) -> None:
    data = secure.encode_blinded(table, CLIENT, ROUND)
    shape = (table.shape[0], table.shape[1])
    got = secure.decode_blinded(data, client=CLIENT, round_=ROUND, shape=shape)
    np.testing.assert_array_equal(got, table, strict=True)


@given(st.dictionaries(CLIENTS, WORDS, max_size=6))
@QUICK
def test_secrets_arrive(secrets: dict[int, bytes]) -> None:
    data = secure.encode_secrets(secrets, CLIENT, ROUND)
    lost = frozenset(secrets)
    assert secure.decode_secrets(data, client=CLIENT, round_=ROUND, lost=lost) == secrets


def test_a_table_costs_8_bytes_a_number() -> None:
    """The closed form of its size, with a header of bounded size."""
    assert 0 < len(GOOD["blinded"]()) - 8 * SHAPE[0] * SHAPE[1] < 512


I32 = np.int32
BROKEN: dict[str, tuple[str, Bytes, str]] = {
    "key of another client": (
        "key",
        secure.encode_key(b"k" * 32, 4, ROUND),
        r"got \(4, 2\)",
    ),
    "key of another round": (
        "key",
        secure.encode_key(b"k" * 32, CLIENT, 1),
        r"got \(3, 1\)",
    ),
    "short key": ("key", changed("key", key=np.zeros((1, 31), np.uint8)), "words of 32 bytes"),
    "two keys": ("key", changed("key", key=np.zeros((2, 32), np.uint8)), "expected 1 words"),
    "cohort of another round": (
        "cohort",
        secure.encode_cohort(PUBLIC, LOST, 7),
        "another round",
    ),
    "client twice": (
        "cohort",
        changed("cohort", clients=np.array([0, 1, 1, 6], I32)),
        "clients is not ascending",
    ),
    "client -1": (
        "cohort",
        changed("cohort", clients=np.array([-1, 1, 3, 6], I32)),
        "clients is not ascending",
    ),
    "a key too few": (
        "cohort",
        changed("cohort", keys=np.zeros((3, 32), np.uint8)),
        "expected 4 words",
    ),
    "lost without a key": (
        "cohort",
        changed("cohort", lost=np.array([1, 5], I32)),
        "without a key",
    ),
    "lost twice": (
        "cohort",
        changed("cohort", lost=np.array([1, 1], I32)),
        "lost is not ascending",
    ),
    "lost in a table": ("cohort", changed("cohort", lost=np.zeros((1, 1), I32)), r"not \[n\]"),
    "table of another client": (
        "blinded",
        secure.encode_blinded(np.zeros(SHAPE, np.uint64), 0, ROUND),
        "another client or round",
    ),
    "table of another shape": (
        "blinded",
        secure.encode_blinded(np.zeros((9, 4), np.uint64), CLIENT, ROUND),
        r"table is \[9, 4\], not \[9, 5\]",
    ),
    "table of floats": (
        "blinded",
        changed("blinded", table=np.zeros(SHAPE)),
        "wrong type of table",
    ),
    "other secrets": (
        "secrets",
        secure.encode_secrets({1: b"s" * 32}, CLIENT, ROUND),
        r"secrets with other clients; got \[1\]; allowed: \[1, 6\]",
    ),
    "secrets of another client": (
        "secrets",
        secure.encode_secrets({c: b"s" * 32 for c in LOST}, 1, ROUND),
        "another client or round",
    ),
    "a secret too few": (
        "secrets",
        changed("secrets", secrets=np.zeros((1, 32), np.uint8)),
        "expected 2 words",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_message_is_refused_with_a_reason(name: str) -> None:
    kind, data, reason = BROKEN[name]
    DECODE[kind](GOOD[kind]())
    with pytest.raises(PayloadError, match=reason):
        DECODE[kind](data)


def holds(kind: str, got: Any) -> bool:
    """Whether a decoded message keeps the contract, written without the code under test."""
    match kind, got:
        case "key", bytes():
            return len(got) == 32
        case "cohort", (public, lost):
            words = all(len(key) == 32 for key in public.values())
            return words and min(public, default=0) >= 0 and set(lost) <= set(public)
        case "blinded", np.ndarray():
            return bool(got.shape == SHAPE and got.dtype == np.uint64)
        case "secrets", dict():
            return set(got) == LOST and all(len(secret) == 32 for secret in got.values())
    return False


@given(st.sampled_from(sorted(GOOD)), st.data())
@settings(deadline=None, max_examples=800)
def test_edited_messages_are_refused_or_keep_the_contract(kind: str, data: st.DataObject) -> None:
    message = bytearray(GOOD[kind]())
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    message = message[: data.draw(st.integers(0, len(message)) | st.just(len(message)))]
    for other, decode in DECODE.items():
        try:
            got = decode(bytes(message))
        except PayloadError:
            continue
        assert holds(other, got)

"""Messages that are cut, edited, forged or noise: refused, or as good as the contract says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save as save_torch

from fedkd.errors import PayloadError
from fedkd.exchange.label_means import LabelMeans
from fedkd.payload import Bytes, Hello, Pool, Question
from fedkd.payload_answers import Answer, CodedAnswer, Partial
from messages import (
    DECODE,
    GOOD,
    QUICK,
    SIZE,
    C,
    N,
    decode_weights,
    forged,
    raw,
)


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


def holds(kind: str, got: Any) -> bool:
    """Whether a decoded message keeps the contract, written without the code under test."""
    match kind, got:
        case "weights", (weights, n_samples):
            return weights.shape == (SIZE,) and bool(np.isfinite(weights).all()) and n_samples >= 0
        case "pool" | "labelled-pool", Pool(x, contributor, labels):
            fine = x.ndim == 4 and contributor.shape == (len(x),) and bool(np.isfinite(x).all())
            if labels is None:
                return fine
            of = [len(x)] if labels.ndim == 1 else [len(x), x.shape[3]]
            said = labels.ravel().tolist()
            return fine and list(labels.shape) == of and all(y >= 0 or y == -100 for y in said)
        case "hello", Hello(client, n_private, n_classes, x):
            return (
                min(client, n_private) >= 0
                and n_classes >= 1
                and x.ndim == 4
                and bool(np.isfinite(x).all())
            )
        case "selection" | "recalling-selection", Question(asked, drawn):
            ids = drawn.tolist()
            whole_part = set(asked.tolist()) <= set(ids) and asked.tolist() == sorted(asked)
            return ids == sorted(set(ids) & set(range(N))) and len(ids) > 0 and whole_part
        case "label-means", LabelMeans(clients, ids, total, voters):
            return (
                clients.tolist() == sorted(set(clients.tolist()))
                and min([0, *clients.tolist()]) >= 0
                and ids.tolist() == sorted(set(ids.tolist()) & set(range(C)))
                and total.shape == (len(ids), C)
                and bool(np.isfinite(total).all())
                and voters.shape == ids.shape
                and all(1 <= n <= len(clients) for n in voters.tolist())
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
            if isinstance(got, CodedAnswer):
                values = np.concatenate([block.values for block in got.blocks()])
                got = Answer(got.client, got.round, got.ids, values, got.weights)
            ids = got.ids.tolist()
            weighed = isinstance(got, Answer) and got.weights is not None
            weights = got.weights.tolist() if weighed else []
            return (
                len(weights) == len(ids) * (kind == "weighed-answer")
                and all(0 < weight <= 1 for weight in weights)
                and ids == sorted(set(ids))
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

"""Codecs: what a row loses is within the stated bound, and what is not a message is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from test_payload_fuzz import EDITS, Edit, edited, holds

from fedkd import config, payload, payload_answers
from fedkd.codecs import ArgMax, Eight, Half, coding_of, ids_of, mask_of, opened, squeezed
from fedkd.errors import FedkdError, PayloadError
from fedkd.exchange.consensus import Consensus
from fedkd.packing import Packing
from fedkd.payload_answers import Answer
from fedkd.sparse import Coding
from messages import CLIENT, CODINGS, QUICK, ROUND, C, N, decode_sparse, forged

Rows = NDArray[np.float32]
SIZES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
LOGITS = SIZES.flatmap(
    lambda shape: hnp.arrays(
        np.float32, shape, elements=st.floats(-60_000, 60_000, width=32, allow_subnormal=False)
    )
)
NO_DRAWS = np.random.default_rng(0)


@st.composite
def distributions(draw: st.DrawFn) -> Rows:
    weights = np.abs(draw(LOGITS).astype(np.float64)) ** draw(st.sampled_from([0.1, 1, 4])) + 1e-12
    rows: Rows = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows


def through(coding: Coding, rows: Rows) -> Rows:
    """What arrives, checked on the way."""
    arrays, n_classes = coding.encode(rows, NO_DRAWS), rows.shape[1]
    spec = coding.types(n_classes)
    assert {name: str(array.dtype) for name, array in arrays.items()} == spec
    coding.check(arrays, len(rows), n_classes)
    found = np.concatenate(list(coding.decode(arrays, n_classes)))
    assert (found.dtype, found.shape) == (np.float32, rows.shape)
    return found


@given(distributions())
@QUICK
def test_of_distributions_half_and_eight_keep_their_bounds(rows: Rows) -> None:
    half, eight = through(Half(True), rows), through(Eight(True), rows)
    np.testing.assert_allclose(half.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(eight.sum(1), 1, atol=1e-5)
    # The oracle: NumPy's own float16, and the levels of a ruler, one number after the other.
    exact = np.array([[float(np.float16(v)) for v in row] for row in rows])
    np.testing.assert_allclose(half, exact / exact.sum(1, keepdims=True), rtol=1e-5)
    assert (np.abs(exact - rows) <= np.maximum(rows * 2.0**-11, 2.0**-25)).all()
    ruler = np.array([[round(float(v / max(row) * np.float32(255))) for v in row] for row in rows])
    np.testing.assert_allclose(eight, ruler / ruler.sum(1, keepdims=True), rtol=1e-5)
    largest = rows.max(1, keepdims=True)
    assert (np.abs(ruler / 255 * largest - rows) <= largest / 510 * 1.001).all()


@given(LOGITS)
@QUICK
def test_of_logits_half_and_eight_keep_their_bounds(rows: Rows) -> None:
    half, eight = through(Half(False), rows), through(Eight(False), rows)
    assert (np.abs(half - rows) <= np.maximum(np.abs(rows) * 2.0**-11, 2.0**-25)).all()
    largest = np.abs(rows).max(1, keepdims=True)
    assert (np.abs(eight - rows) <= largest / 254 * 1.001).all()


@given(distributions())
@QUICK
def test_argmax_is_the_first_largest(rows: Rows) -> None:
    found = through(ArgMax(), rows)
    for one, row in zip(found, rows.tolist(), strict=True):
        assert one.tolist() == [float(i == row.index(max(row))) for i in range(len(row))]


def test_logits_beyond_float16_stay_finite() -> None:
    rows = np.array([[1e30, -1e30, 1.0]], np.float32)
    assert through(Half(False), rows).tolist() == [[65504, -65504, 1]]


@pytest.mark.parametrize("coding", [Half(True), Eight(True), ArgMax()])
def test_what_is_no_distribution_is_not_sent(coding: Coding) -> None:
    for bad in ([[0.5, 0.6]], [[1.5, -0.5]], [[np.nan, 1.0]]):
        with pytest.raises(FedkdError, match="not a distribution"):
            coding.encode(np.array(bad, np.float32), NO_DRAWS)


BAD: dict[str, tuple[Coding, dict[str, Any]]] = {
    "inf": (Half(False), {"values": np.array([[np.inf, 0]], np.float16)}),
    "sum": (Half(True), {"values": np.array([[0.5, 0.6]], np.float16)}),
    "negative": (Half(True), {"values": np.array([[1.5, -0.5]], np.float16)}),
    "shape": (Half(True), {"values": np.array([0.5, 0.5], np.float16)}),
    "no mass": (Eight(True), {"levels": np.zeros((1, 2), np.uint8)}),
    "scale": (Eight(True), {"levels": np.full((1, 2), 9, np.uint8)}),
    "minus": (Eight(False), {"levels": np.zeros((1, 2), np.int8), "largest": np.float32([-1])}),
    "nan": (Eight(False), {"levels": np.zeros((1, 2), np.int8), "largest": np.float32([np.nan])}),
    "one": (Eight(False), {"levels": np.zeros((1, 2), np.int8), "largest": np.float32([1, 1])}),
    "class": (ArgMax(), {"classes": np.array([2], np.uint8)}),
    "rows": (ArgMax(), {"classes": np.array([0, 1], np.uint8)}),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arrays_are_refused(what: str) -> None:
    coding, arrays = BAD[what]
    with pytest.raises(PayloadError):
        coding.check(arrays, 1, 2)


@given(st.integers(0, 70).flatmap(lambda n: hnp.arrays(np.bool_, n)))
@QUICK
def test_a_mask_says_the_ids(kept: NDArray[np.bool_]) -> None:
    ids = np.flatnonzero(kept).astype(np.int32)
    mask = mask_of(ids, len(kept))
    assert len(mask) == -(-len(kept) // 8)
    np.testing.assert_array_equal(ids_of(mask, len(kept)), ids, strict=True)


def test_a_mask_of_other_samples_is_refused() -> None:
    for mask in (np.zeros(1, np.uint8), np.zeros((2, 1), np.uint8), np.array([0, 1], np.uint8)):
        with pytest.raises(PayloadError, match="mask"):
            ids_of(mask, N)


def test_a_frame_is_opened_up_to_its_most_and_no_further() -> None:
    data = forged("answer")
    frame = squeezed(data, 3)
    assert opened(frame, len(data)) == opened(data, 0) == data
    assert squeezed(data, 0) == data
    with pytest.raises(PayloadError, match="length"):
        opened(frame, len(data) - 1)
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    with pytest.raises(PayloadError, match="length"):
        opened(silent, len(data))
    bomb = squeezed(bytes(2**28), 3)
    assert len(bomb) < 2**16
    with pytest.raises(PayloadError, match="length"):
        opened(bomb, 2**20)
    for broken in (frame + b"x", frame[:-1], frame[:7], frame[:20] + b"x" + frame[21:]):
        with pytest.raises(PayloadError):
            decode_sparse(broken, CODINGS["half"])


@given(st.sampled_from(sorted(CODINGS)), EDITS)
@settings(deadline=None, max_examples=400)
def test_edited_frames_are_refused_or_keep_the_contract(kind: str, edits: list[Edit]) -> None:
    try:
        got = decode_sparse(edited(squeezed(forged(kind), 1), edits), CODINGS[kind])
    except PayloadError:
        return
    assert holds(kind, got)


@pytest.mark.parametrize("values", ["float32", "float16", "int8", "argmax"])
@pytest.mark.parametrize("packing", [None, Packing(N, True, 0), Packing(N, True, 3)])
def test_answers_and_consensus_arrive(values: str, packing: Packing | None) -> None:
    ids = np.array([0, 4, N - 1], np.int32)
    rows = np.eye(C, dtype=np.float32)[:3]
    coding, answer = coding_of(values, simplex=True), Answer(CLIENT, ROUND, ids, rows)
    sizes = {"round_": ROUND, "n_samples": N, "n_classes": C}
    if coding is None:
        data = payload_answers.encode_answer(answer, packing)
        got = payload_answers.decode_answer(data, client=CLIENT, simplex=True, **sizes)
        told = payload.encode_consensus(Consensus(ids, rows), ROUND, packing)
    else:
        data = payload_answers.encode_coded_answer(answer, coding, NO_DRAWS, packing)
        (got,) = decode_sparse(data, coding).blocks()
        told = payload.encode_coded_consensus(
            Consensus(ids, rows), ROUND, coding, NO_DRAWS, packing
        )
    heard = payload.decode_consensus(told, coding=coding, **sizes)
    for found in (got, heard):
        np.testing.assert_array_equal(found.ids, ids, strict=True)
        np.testing.assert_array_equal(found.values, rows, strict=True)
    with pytest.raises(PayloadError):
        payload.decode_consensus(data, coding=coding, **sizes)  # an answer is no consensus


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"wire": {"up": "argmax"}, "method": {"name": "fedmd"}}, "raw logits"),
        ({"wire": {"down": "argmax"}, "method": {"name": "fedmd"}}, "raw logits"),
        (
            {"wire": {"up": "int8"}, "method": {"release": {"name": "top-k"}}},
            "already coded",
        ),
        (
            {"wire": {"up": "int8"}, "privacy": {"server": {"name": "secure-aggregation"}}},
            "under a mask",
        ),
    ],
)
def test_ways_that_do_not_go_together_are_refused(table: dict[str, Any], what: str) -> None:
    with pytest.raises(FedkdError, match=what):
        config.parse(table)

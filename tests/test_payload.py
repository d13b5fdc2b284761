"""The wire: what is sent arrives, and whatever else arrives is refused with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load

from fedkd import payload, payload_answers
from fedkd.exchange.combine import Votes
from fedkd.exchange.consensus import Consensus
from fedkd.payload import Bytes, Hello, Pool
from fedkd.payload_answers import Answer, Partial
from fedkd.sparse import Draws, Largest
from messages import (
    CLIENT,
    CODINGS,
    FLOATS,
    QUICK,
    ROUND,
    C,
    N,
    answers,
    assert_same,
    decode_answer,
    decode_consensus,
    decode_partial,
    decode_sparse,
    distributions,
    encode_sparse,
    hellos,
    partial,
    samples,
)

# --- round trips ---


@given(hellos())
@QUICK
def test_a_hello_arrives(hello: Hello) -> None:
    assert_same(payload.decode_hello(payload.encode_hello(hello)), hello)


@given(samples(), st.data())
@QUICK
def test_a_pool_arrives(x: NDArray[Any], data: st.DataObject) -> None:
    pool = Pool(x, data.draw(hnp.arrays(np.int32, len(x), elements=st.integers(-1, 99))))
    assert_same(payload.decode_pool(payload.encode_pool(pool))[:2], pool[:2])
    assert payload.decode_pool(payload.encode_pool(pool)).labels is None
    labels = data.draw(hnp.arrays(np.int32, len(x), elements=st.integers(0, 99)))
    labelled = pool._replace(labels=labels)
    assert_same(payload.decode_pool(payload.encode_pool(labelled)), labelled)


@given(answers())
@QUICK
def test_an_answer_arrives(answer: Answer) -> None:
    assert_same(decode_answer(payload_answers.encode_answer(answer)), answer)
    soft = distributions(answer)
    assert_same(decode_answer(payload_answers.encode_answer(soft), simplex=True), soft)


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
    got = decode_partial(payload_answers.encode_partial(sent))
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
    assert_same(decode_answer(payload_answers.encode_answer(answer)), answer)


@given(answers())
@QUICK
def test_equal_messages_are_equal_bytes(answer: Answer) -> None:
    one, other = (payload_answers.encode_answer(Answer(*answer)) for _ in range(2))
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
            payload_answers.encode_answer(Answer(CLIENT, ROUND, ids, values)),
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
        data = payload_answers.encode_partial(Partial(ROUND, clients, ids, votes))
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

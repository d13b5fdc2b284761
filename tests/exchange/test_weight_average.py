"""FedAvg's average against Flower's own strategy and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkd.exchange.combine import WeightAverage
from fedkd.rng import stream

Weights = NDArray[np.float32]
SAMPLES = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)


def vectors(n: int, size: int = 50) -> list[Weights]:
    return list(stream(1, "test").normal(size=(n, size)).astype(np.float32))


def average(clients: list[Weights], samples: list[int]) -> Weights:
    rule = WeightAverage()
    for weights, n_samples in zip(clients, samples, strict=True):
        rule.add(weights, n_samples)
    found = rule.finish()
    assert found is not None
    return found


def flower_s(clients: list[Weights], samples: list[int]) -> Weights:
    """What Flower's FedAvg makes of real replies with the same content, in float64."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1
    replies = []
    for i, (weights, n_samples) in enumerate(zip(clients, samples, strict=True)):
        content = RecordDict(
            {
                "arrays": ArrayRecord({"weights": Array(weights.astype(np.float64))}),
                "metrics": MetricRecord({"num-examples": n_samples}),
            }
        )
        asked = Message(RecordDict(), 1 + i, "train")
        asked.metadata.__dict__["_message_id"] = f"m{i}"
        replies.append(Message(content, reply_to=asked))
    arrays, _ = FedAvg().aggregate_train(1, replies)
    assert arrays is not None
    return arrays["weights"].numpy().astype(np.float32)


@given(SAMPLES)
@settings(deadline=None, max_examples=40)
def test_it_is_flower_s_fedavg(samples: list[int]) -> None:
    clients = vectors(len(samples))
    np.testing.assert_allclose(
        average(clients, samples), flower_s(clients, samples), rtol=1e-6, atol=1e-7
    )


@given(SAMPLES)
@settings(deadline=None, max_examples=100)
def test_it_is_numpy_s_weighted_average(samples: list[int]) -> None:
    clients = vectors(len(samples))
    expected = np.average(np.stack(clients).astype(np.float64), axis=0, weights=samples)
    np.testing.assert_allclose(average(clients, samples), expected, rtol=1e-6, atol=1e-12)


def test_a_client_counts_as_often_as_it_has_samples() -> None:
    one, other = vectors(2)
    assert np.array_equal(average([one, other], [3, 1]), average([one] * 3 + [other], [1] * 4))
    assert np.array_equal(average([one], [17]), one)


def test_many_equal_clients_keep_their_weights() -> None:
    """A running float32 sum of 10,000 would not."""
    weights = vectors(1)[0]
    assert np.array_equal(average([weights] * 10_000, [7] * 10_000), weights)


def test_sums_are_exact_to_float32() -> None:
    clients = [np.array([value], np.float32) for value in (2.0**24, 1.0, 1.0, 1.0)]
    assert average(clients, [1, 1, 1, 1])[0] == np.float32(math.fsum([2.0**24, 3.0]) / 4)


@pytest.mark.parametrize("n_clients", [0, 2])
def test_without_samples_there_is_no_average(n_clients: int) -> None:
    rule = WeightAverage()
    for weights in vectors(n_clients):
        rule.add(weights, 0)
    assert rule.finish() is None


def test_adding_leaves_the_weights_alone() -> None:
    weights = vectors(1)[0]
    kept = weights.copy()
    rule = WeightAverage()
    rule.add(weights, 3)
    rule.add(weights, 2)
    assert np.array_equal(weights, kept)
    assert rule.finish().dtype == np.float32  # type: ignore[union-attr]

"""Virtual clients: any number of them, each drawn alone, and none kept."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedkd.data.federation import build
from fedkd.data.proxy import Contributed, Public
from fedkd.data.sources import Digits
from fedkd.data.virtual import Virtual
from fedkd.errors import FedkdError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), [5, 50, *[100] * 8]))
REST = np.flatnonzero(np.arange(len(LABELS)) % 7)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, len(REST)),
    st.sampled_from([None, 0.01, 0.5, 100.0]),
    st.integers(0, 2**31),
    st.integers(0, 10**9 - 1),
)
def test_a_client_holds_distinct_samples_and_always_the_same(
    samples: int, alpha: float | None, seed: int, client: int
) -> None:
    row = Virtual(clients=10**9, samples=samples, alpha=alpha)
    ids = row.draw(REST, LABELS, seed)[client]
    assert len(ids) == samples
    assert (np.diff(ids) > 0).all()
    assert np.isin(ids, REST).all()
    assert np.array_equal(ids, row.draw(REST, LABELS, seed)[client])


def test_without_alpha_every_sample_is_as_likely() -> None:
    hands = Virtual(clients=3000, samples=20).draw(REST, LABELS, 1)
    counts = np.bincount(np.concatenate(list(hands)), minlength=len(LABELS))[REST]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_alpha_makes_clients_alike_or_not() -> None:
    def largest_share(alpha: float) -> float:
        hands = Virtual(clients=50, samples=40, alpha=alpha).draw(REST, LABELS, 1)
        return float(np.mean([np.bincount(LABELS[ids]).max() / 40 for ids in hands]))

    assert largest_share(0.05) > 0.7
    assert largest_share(1000.0) < 0.3


def test_a_billion_clients_cost_nothing() -> None:
    tracemalloc.start()
    federation = build(Digits(), Virtual(clients=10**9, samples=50), Public(size=100), 0.05, 1)
    x, y = federation.client(123_456_789)
    assert tracemalloc.get_traced_memory()[1] < 10**8
    tracemalloc.stop()
    assert (len(x), len(y)) == (50, 50)
    assert federation.n_clients == 10**9
    assert federation.counts(5).sum() == 50
    assert len(federation.contribution(7)[0]) == 0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(FedkdError, match="more samples than there are"):
        Virtual(samples=len(REST) + 1).draw(REST, LABELS, 0)
    with pytest.raises(FedkdError, match="none of them can give any away"):
        build(Digits(), Virtual(), Contributed(), 0.0, 1)
    with pytest.raises(IndexError):
        Virtual(clients=3).draw(REST, LABELS, 0)[3]

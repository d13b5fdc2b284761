"""Mask inference: brute force, planted filters, and a real k-means filter on digits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from fedkd.data.partition import Pathological
from fedkd.data.sources import Digits, load
from fedkd.errors import FedkdError
from fedkd.exchange.gate import Quantile, accept
from fedkd.exchange.score import KMeans
from fedkd.rng import stream, torch_stream
from privacy.audit.label_inference import scores
from privacy.audit.mask_inference import (
    class_shares,
    holding_auc,
    label_distributions,
    mask,
    nearest,
    record_auc,
)


def pairs_won(members: list[float], others: list[float]) -> float:
    return sum((a > b) + (a == b) / 2 for a, b in itertools.product(members, others))


def test_a_mask_is_which_ids_an_answer_has() -> None:
    answer = np.array([3, 0], np.int32), np.ones((2, 5), np.float32)
    assert mask(answer, 5).tolist() == [True, False, False, True, False]


@given(st.integers(0, 999))
def test_shares_are_those_of_a_loop(seed: int) -> None:
    rng = stream(seed, "test")
    masks, strata = rng.random((3, 12)) < 0.5, rng.integers(3, size=12)
    found = class_shares(masks, strata, 4)
    for client, stratum in itertools.product(range(3), range(4)):
        here = masks[client, strata == stratum]
        expected = here.sum() / len(here) if len(here) else math.nan
        assert found[client, stratum] == pytest.approx(expected, nan_ok=True)


def test_own_answers_alone_tell_the_distribution_exactly() -> None:
    """The gate `own` on a contributed pool, in which each class has as many samples."""
    strata = np.repeat([0, 1, 2], 40)
    masks = np.zeros((2, 120), np.bool_)
    masks[0, :10] = masks[0, 40:70] = True
    found = label_distributions(class_shares(masks, strata, 4))
    np.testing.assert_allclose(found, [[0.25, 0.75, 0, 0], [0.25] * 4])


@settings(max_examples=30)
@given(st.integers(0, 999))
def test_the_auc_of_holding_is_that_of_all_pairs(seed: int) -> None:
    rng = stream(seed, "test")
    shares = rng.integers(0, 4, (4, 5)) / 4
    shares[:, 2] = np.nan  # a class that the proxy set lacks
    held = rng.random((4, 5)) < 0.5
    held[0, :2] = True, False
    known = [(h, s) for h, s in zip(held.flat, shares.flat, strict=True) if not math.isnan(s)]
    yes, no = ([s for h, s in known if h is np.bool_(kind)] for kind in (True, False))
    assert holding_auc(shares, held) == pytest.approx(pairs_won(yes, no) / (len(yes) * len(no)))


def test_a_planted_filter_is_read_and_a_blind_one_is_not() -> None:
    rng = stream(1, "test")
    strata = np.repeat(np.arange(10), 30)
    held = rng.random((40, 10)) < 0.3
    knows = rng.random((40, 300)) < np.where(held, 0.8, 0.2)[:, strata]
    blind = rng.random((40, 300)) < 0.4
    assert holding_auc(class_shares(knows, strata, 10), held) > 0.99
    n_held = held.sum()
    deviation = math.sqrt(401 / (12 * n_held * (400 - n_held)))
    assert abs(holding_auc(class_shares(blind, strata, 10), held) - 0.5) < 4 * 400**0.5 * deviation


@settings(max_examples=30)
@given(st.integers(0, 999))
def test_the_auc_of_records_compares_within_client_and_class(seed: int) -> None:
    rng = stream(seed, "test")
    masks = rng.integers(0, 3, (3, 20)) / 2  # the share of two rounds
    near, strata = rng.random((3, 20)) < 0.3, rng.integers(3, size=20)
    near[0, :2], strata[:2] = (True, False), 0
    won, n = 0.0, 0
    for client, stratum in itertools.product(range(3), range(3)):
        yes = masks[client, near[client] & (strata == stratum)].tolist()
        no = masks[client, ~near[client] & (strata == stratum)].tolist()
        won, n = won + pairs_won(yes, no), n + len(yes) * len(no)
    assert record_auc(masks, near, strata) == pytest.approx(won / n)


def test_a_filter_that_knows_classes_only_does_not_look_as_if_it_knew_records() -> None:
    strata = np.repeat([0, 1], 50)
    masks = np.stack([strata == 0])
    near = np.zeros((1, 100), np.bool_)
    near[0, :25] = True
    assert record_auc(masks, near, strata) == 0.5
    assert record_auc(near, near, strata) == 1
    # Without classes the same mask seems to be evidence.
    assert record_auc(masks, near, np.zeros(100, np.int64)) > 0.8


def test_evidence_needs_both_kinds() -> None:
    with pytest.raises(FedkdError, match="an AUC needs pairs of both kinds"):
        holding_auc(np.ones((2, 2)), np.ones((2, 2), np.bool_))
    with pytest.raises(FedkdError, match="both near to its records and not"):
        record_auc(np.ones((1, 4)), np.ones((1, 4), np.bool_), np.zeros(4, np.int64))


def test_the_nearest_record_is_that_of_all_distances() -> None:
    rng = stream(1, "test")
    samples, records = rng.random((30, 4)), rng.random((20, 4))
    found = nearest(samples, records)
    np.testing.assert_allclose(found, cdist(samples, records).min(axis=1))
    assert nearest(samples, records[:0]).tolist() == [math.inf] * 30


@pytest.mark.parametrize(("k", "low", "high"), [(10, 0.5, 0.65), (1000, 0.7, 1.0)])
def test_a_real_filter_tells_classes_and_few_records(k: int, low: float, high: float) -> None:
    """EdgeFD's k-means filter on digits: two classes a client, a public proxy set, the mask alone.

    Ten centroids give every class away and hardly a record; a centroid a record gives both away.
    """
    data = load(Digits())
    train, proxy = data.train, data.test
    split = Pathological(clients=10, classes_per_client=2).split(train.y.numpy(), None, 1)
    # Near-duplicates of some records of each client stand in the proxy set too.
    draws = stream(1, "test")
    twins = np.concatenate([draws.choice(ids[::2], 10, replace=False) for ids in split])
    noised = train.x[twins].double().numpy() + draws.normal(0, 4, (len(twins), 1, 8, 8))
    x = np.concatenate([proxy.x.double().numpy(), noised]).reshape(-1, 64)
    strata = np.concatenate([proxy.y.numpy(), train.y[twins].numpy()])
    masks, held, near, truths = [], [], [], []
    for client, ids in enumerate(split):
        fitted, kept = train.x[ids[::2]].float().flatten(1), train.x[ids[1::2]].float().flatten(1)
        score = KMeans(k=k)
        draw = torch_stream(1, "test", client=client)
        centroids = score.fit(fitted, train.y[ids[::2]], draw)
        pool, heldout = (
            score.score(centroids, rows) for rows in (torch.from_numpy(x).float(), kept)
        )
        nobodys = torch.zeros(len(x), dtype=torch.bool)
        masks.append(accept(Quantile(q=0.5), heldout, pool, nobodys)[0].numpy())
        counts = np.bincount(train.y[ids], minlength=10)
        held.append(counts > 0)
        truths.append(counts / counts.sum())
        near.append(nearest(x, fitted.double().numpy()) < 60)  # the noise's length is 4 * 8
        assert near[-1][len(proxy) :].sum() >= 10
        assert near[-1][: len(proxy)].mean() < 0.01
    shares = class_shares(np.stack(masks), strata, 10)
    assert holding_auc(shares, np.stack(held)) > 0.95
    guesses = label_distributions(shares)
    wrong = [scores(p, guess).total_variation for p, guess in zip(truths, guesses, strict=True)]
    assert np.mean(wrong) < 0.25  # 0.8 by chance
    assert low < record_auc(np.stack(masks), np.stack(near), strata) <= high

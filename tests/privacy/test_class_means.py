"""Class means of random features: kernels, least squares and privacy against other oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.class_means import SENSITIVITY, class_means, features
from privacy.summaries import noise_multiplier
from small_digits import PROXY, PROXY_Y, X, Y, seeded

FEATURES = features(PROXY, seeded(0), n_features=200)


def test_inner_products_approach_the_gaussian_kernel() -> None:
    many = features(PROXY, seeded(0), n_features=4000, bandwidth=0.5)
    z = many.of(X[:60])
    kernel = RBF(0.5 * np.median(pdist(PROXY.numpy())))(X[:60].numpy())
    np.testing.assert_allclose((z @ z.T).numpy(), kernel, atol=0.08)


def test_without_noise_sums_and_ratio_are_exact() -> None:
    found = class_means(X[:300], Y[:300], 10, FEATURES, 0, seeded(0), ridge=0.01)
    z, proxy = FEATURES.of(X[:300]).numpy(), FEATURES.of(PROXY).numpy()
    for label in range(10):
        mine = z[Y[:300].numpy() == label]
        np.testing.assert_allclose(found.sums[label].numpy(), mine.sum(0), atol=1e-9)
        # uLSIF: ridge regression whose data term is the proxy and whose pull are own records.
        stacked = np.concatenate([proxy / math.sqrt(len(proxy)), 0.1 * np.eye(200)])
        inverse = np.linalg.pinv(stacked)
        weights = inverse @ inverse.T @ (mine.sum(0) / 300)
        np.testing.assert_allclose(
            found.ratio(PROXY)[:, label].numpy(), proxy @ weights, rtol=1e-5, atol=1e-6
        )


def test_a_client_that_is_the_proxy_has_ratio_1() -> None:
    found = class_means(PROXY, PROXY_Y, 10, FEATURES, 0, seeded(0), ridge=1e-6)
    assert -found.score(PROXY).mean() == pytest.approx(1, abs=0.05)


# --- sensitivity ---


@given(st.integers(0, 2**31), st.floats(0, 1e4), st.integers(0, 2), st.integers(0, 6))
@settings(deadline=None, max_examples=100)
def test_every_record_moves_exactly_the_sensitivity(
    seed: int, scale: float, label: int, n: int
) -> None:
    x = torch.randn(n + 1, 64, generator=seeded(seed))
    x[n] *= scale
    y = torch.randint(3, (n + 1,), generator=seeded(seed))
    y[n] = label
    grown, before = (class_means(x[:m], y[:m], 3, FEATURES, 0, seeded(0)) for m in (n + 1, n))
    moves = torch.cat([(grown.sums - before.sums).flatten(), grown.counts - before.counts])
    assert math.sqrt(2) * (1 - 1e-6) <= float(moves.norm()) <= SENSITIVITY


# --- noise and its price ---


def test_noise_is_normal_and_as_large_as_declared() -> None:
    found = class_means(X[:50], Y[:50], 10, FEATURES, 1.5, seeded(1))
    exact = class_means(X[:50], Y[:50], 10, FEATURES, 0, seeded(1))
    noise = torch.cat([(found.sums - exact.sums).flatten(), found.counts - exact.counts]).numpy()
    std = 1.5 * math.sqrt(2)
    assert stats.kstest(noise, stats.norm(scale=std).cdf).pvalue > 0.01
    assert stats.kstest(noise, stats.norm(scale=0.8 * std).cdf).pvalue < 0.01
    counts = np.concatenate(
        [class_means(X[:0], Y[:0], 10, FEATURES, 1.5, seeded(i)).counts for i in range(60)]
    )
    assert stats.kstest(counts, stats.norm(scale=std).cdf).pvalue > 0.01
    assert stats.kstest(counts, stats.norm(scale=0.7 * std).cdf).pvalue < 0.01


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_the_event_costs_epsilon(epsilon: float) -> None:
    multiplier = noise_multiplier(epsilon, 1e-5)
    event = class_means(X[:5], Y[:5], 10, FEATURES, multiplier, seeded(0)).event
    assert get_epsilon_gaussian(event.noise_multiplier, 1e-5) == pytest.approx(epsilon, abs=1e-6)


def test_weights_follow_from_what_is_released() -> None:
    found = class_means(X[:300], Y[:300], 10, FEATURES, 2.0, seeded(0))
    n = float(found.counts.sum())
    ridge = 10 * 2.0 * SENSITIVITY / n
    left = (FEATURES.moment + ridge * torch.eye(200).double()) @ found.weights
    torch.testing.assert_close(left, found.sums.T / n)


# --- use ---


def test_a_filter_and_a_teacher_are_left_at_epsilon_8() -> None:
    own = Y[:1000] < 5
    multiplier = noise_multiplier(8, 1e-5)
    found = class_means(X[:1000][own], Y[:1000][own], 10, FEATURES, multiplier, seeded(0))
    known = PROXY_Y < 5
    assert roc_auc_score(known, -found.score(PROXY)) > 0.85
    labels = found.teach(PROXY)
    assert (labels.argmax(1) == PROXY_Y)[known].double().mean() > 0.85
    torch.testing.assert_close(labels.sum(1), torch.ones(len(PROXY)).double())
    cool = found.teach(PROXY, 0.5)
    assert (cool.max(1).values >= labels.max(1).values - 1e-12).all()


@pytest.mark.parametrize("multiplier", [0.0, 3.0])
@pytest.mark.parametrize("n", [0, 1])
def test_no_record_and_one_record_work(n: int, multiplier: float) -> None:
    found = class_means(X[:n], Y[:n], 10, FEATURES, multiplier, seeded(0))
    assert found.score(PROXY).isfinite().all()
    assert found.teach(PROXY).isfinite().all()
    if n and not multiplier:
        assert int(found.teach(X[:1]).argmax()) == int(Y[0])


@pytest.mark.parametrize(
    ("x", "y", "multiplier", "ridge"),
    [
        (torch.full((2, 64), math.nan), torch.tensor([0, 1]), 1.0, 1e-3),
        (torch.full((2, 64), math.inf), torch.tensor([0, 1]), 1.0, 1e-3),
        (torch.zeros(2, 63), torch.tensor([0, 1]), 1.0, 1e-3),
        (torch.zeros(2, 64), torch.tensor([0, 10]), 1.0, 1e-3),
        (torch.zeros(2, 64), torch.tensor([0, 1]), -1.0, 1e-3),
        (torch.zeros(2, 64), torch.tensor([0, 1]), 1.0, 0.0),
    ],
)
def test_nonsense_is_refused(x: Tensor, y: Tensor, multiplier: float, ridge: float) -> None:
    with pytest.raises(FedkdError):
        class_means(x, y, 10, FEATURES, multiplier, seeded(0), ridge=ridge)


@pytest.mark.parametrize(
    ("proxy", "n_features", "bandwidth"),
    [
        (torch.zeros(9, 4), 10, 0.5),
        (torch.rand(1, 4), 10, 0.5),
        (torch.full((9, 4), math.nan), 10, 0.5),
        (torch.rand(9, 4), 11, 0.5),
        (torch.rand(9, 4), 0, 0.5),
        (torch.rand(9, 4), 10, 0.0),
    ],
)
def test_a_proxy_without_features_is_refused(
    proxy: Tensor, n_features: int, bandwidth: float
) -> None:
    with pytest.raises(FedkdError):
        features(proxy, seeded(0), n_features=n_features, bandwidth=bandwidth)

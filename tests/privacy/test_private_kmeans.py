"""Private k-means: Lloyd's textbook steps without noise, sensitivity attacked, noise by KS test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedkd.errors import FedkdError
from privacy import private_kmeans as module
from privacy.private_kmeans import SENSITIVITY, Seeds, private_kmeans, seeds
from privacy.summaries import noise_multiplier, view
from small_digits import PROXY, PROXY_Y, X, Y, seeded

SEEDS = seeds(PROXY, view(PROXY, 10), seeded(0), k=15)


def textbook(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step of Lloyd: means of the nearest points; an empty cluster stays."""
    own = cdist(points, centroids).argmin(1)
    counts = np.bincount(own, minlength=len(centroids))
    means = [points[own == i].mean(0) if counts[i] else centroids[i] for i in range(len(centroids))]
    return np.stack(means), counts


@pytest.mark.parametrize("iterations", [1, 3])
def test_without_noise_the_steps_are_lloyd_s(iterations: int) -> None:
    found = private_kmeans(X[:300], Y[:300], 10, SEEDS, 0, seeded(0), iterations=iterations)
    points = SEEDS.view.look(X[:300]).numpy()
    for label in range(10):
        centroids = SEEDS.centroids.numpy()
        for _ in range(iterations):
            centroids, counts = textbook(points[Y[:300].numpy() == label], centroids)
        np.testing.assert_allclose(found.centroids[label].numpy(), centroids, atol=1e-7)
        np.testing.assert_array_equal(found.counts[label].numpy(), counts)


def test_the_score_is_the_ratio_of_two_mixtures() -> None:
    found = private_kmeans(X[:300], None, 1, SEEDS, 0, seeded(0))
    seen = SEEDS.view.look(PROXY).numpy()

    def log_density(centroids: Tensor, counts: Tensor) -> np.ndarray:
        powers = -(cdist(seen, centroids.numpy()) ** 2) / (2 * SEEDS.variance)
        return logsumexp(powers, axis=1, b=(counts / counts.sum()).numpy())

    expected = log_density(SEEDS.centroids, SEEDS.counts)
    expected = expected - log_density(found.centroids[0], found.counts[0])
    np.testing.assert_allclose(found.score(PROXY).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_seeds_know_the_proxy_only_and_its_spread() -> None:
    distance = cdist(SEEDS.view.look(PROXY).numpy(), SEEDS.centroids.numpy()).min(1)
    assert SEEDS.variance == pytest.approx(2 * (distance**2).mean() / 10)
    assert SEEDS.counts.sum() == len(PROXY)


# --- sensitivity ---


def moved(seeds: Seeds, x: Tensor, y: Tensor, more: Tensor, label: int) -> float:
    """How far sums (in radii) and counts together move by one record, in L2."""
    points, record = seeds.view.look(x), seeds.view.look(more[None])
    centroids = seeds.centroids.repeat(3, 1, 1)
    before = module._totals(points, y, centroids)
    after = module._totals(
        torch.cat([points, record]), torch.cat([y, torch.tensor([label])]), centroids
    )
    sums, counts = (b - a for a, b in zip(before, after, strict=True))
    return float(torch.cat([sums.flatten() / seeds.view.radius, counts.flatten()]).norm())


@given(st.integers(0, 2**31), st.floats(0, 1e6), st.integers(0, 2), st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_no_record_moves_more_than_the_sensitivity(
    seed: int, scale: float, label: int, n: int
) -> None:
    x = torch.randn(n, 64, generator=seeded(seed))
    y = torch.randint(3, (n,), generator=seeded(seed))
    more = scale * torch.randn(64, generator=seeded(seed + 1))
    assert moved(SEEDS, x, y, more, label) <= SENSITIVITY


def test_the_sensitivity_is_reached() -> None:
    far = (SEEDS.view.mean + 100 * SEEDS.view.axes[:, 0]).float()
    found = moved(SEEDS, X[:5], torch.zeros(5, dtype=torch.int64), far, 1)
    assert found == pytest.approx(math.sqrt(2), rel=1e-6)


# --- noise and its price ---


@pytest.mark.parametrize("iterations", [1, 4])
def test_noise_is_normal_and_as_large_as_declared(iterations: int) -> None:
    nobody = torch.empty(0, 64)
    y = torch.empty(0, dtype=torch.int64)
    found = [
        private_kmeans(nobody, y, 10, SEEDS, 3.0, seeded(i), iterations=iterations)
        for i in range(20)
    ]
    noise = torch.stack([one.counts for one in found]).flatten().numpy()
    std = 3.0 * math.sqrt(2 * iterations)
    assert found[0].count_std == pytest.approx(std, rel=1e-5)
    assert stats.kstest(noise, stats.norm(scale=std).cdf).pvalue > 0.01
    assert stats.kstest(noise, stats.norm(scale=0.9 * std).cdf).pvalue < 0.05


def test_sums_carry_noise_in_radii(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(shape: torch.Size, std: float, generator: torch.Generator) -> Tensor:
        asked.append((len(shape), std))
        return torch.zeros(shape, dtype=torch.float64)

    monkeypatch.setattr(module, "normal", spy)
    private_kmeans(X[:9], None, 1, SEEDS, 2.0, seeded(0), iterations=4)
    sums, counts = 4 * SENSITIVITY * SEEDS.view.radius, 4 * SENSITIVITY
    assert asked == [(3, pytest.approx(sums)), (2, pytest.approx(counts))] * 4


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_event_costs_epsilon_however_many_steps(epsilon: float, iterations: int) -> None:
    multiplier = noise_multiplier(epsilon, 1e-5)
    event = private_kmeans(
        X[:9], None, 1, SEEDS, multiplier, seeded(0), iterations=iterations
    ).event
    together = event.event.noise_multiplier / math.sqrt(event.count)
    assert get_epsilon_gaussian(together, 1e-5) == pytest.approx(epsilon, abs=1e-6)
    accountant = PLDAccountant()
    accountant.compose(event)
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon, abs=2e-3)


# --- use ---


def test_a_filter_and_a_teacher_are_left_at_epsilon_8() -> None:
    own = Y[:1000] < 2
    multiplier = noise_multiplier(8, 1e-5)
    found = private_kmeans(X[:1000][own], Y[:1000][own], 10, SEEDS, multiplier, seeded(0))
    assert roc_auc_score(PROXY_Y < 2, -found.score(PROXY)) > 0.9
    known = PROXY_Y < 2
    labels = found.teach(PROXY)
    assert (labels.argmax(1) == PROXY_Y)[known].double().mean() > 0.9
    torch.testing.assert_close(labels.sum(1), torch.ones(len(PROXY)).double())


@pytest.mark.parametrize("multiplier", [0.0, 3.0])
@pytest.mark.parametrize("n", [0, 1])
def test_no_record_and_one_record_work(n: int, multiplier: float) -> None:
    found = private_kmeans(X[:n], Y[:n], 10, SEEDS, multiplier, seeded(0), iterations=2)
    assert found.score(PROXY).isfinite().all()
    assert found.teach(PROXY).isfinite().all()
    if n and not multiplier:
        assert (found.teach(PROXY)[:, Y[0]] == 1).all()


def test_the_same_draws_give_the_same_bits() -> None:
    one, two, other = (
        private_kmeans(X[:99], None, 1, SEEDS, 1.0, seeded(i)).centroids for i in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("x", "y", "n_classes", "multiplier", "iterations"),
    [
        (torch.full((2, 64), math.nan), None, 1, 1.0, 1),
        (torch.zeros(2, 63), None, 1, 1.0, 1),
        (torch.zeros(2, 64), torch.tensor([0, 3]), 3, 1.0, 1),
        (torch.zeros(2, 64), None, 1, -1.0, 1),
        (torch.zeros(2, 64), None, 1, math.inf, 1),
        (torch.zeros(2, 64), None, 1, math.nan, 1),
        (torch.zeros(2, 64), None, 1, 1.0, 0),
    ],
)
def test_nonsense_is_refused(
    x: Tensor, y: Tensor | None, n_classes: int, multiplier: float, iterations: int
) -> None:
    with pytest.raises(FedkdError):
        private_kmeans(x, y, n_classes, SEEDS, multiplier, seeded(0), iterations=iterations)

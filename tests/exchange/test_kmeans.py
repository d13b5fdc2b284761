"""k-means against brute force in float64, and against scikit-learn."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.exchange import kmeans as module
from fedkd.exchange.kmeans import distances, kmeans


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=seeded(seed))


def brute(x: Tensor, centroids: Tensor) -> np.ndarray:
    """All distances [n, k] in float64, from the differences."""
    return cdist(x.double().numpy(), centroids.double().numpy())


def inertia(x: Tensor, centroids: Tensor) -> float:
    return float((brute(x, centroids).min(1) ** 2).sum())


def digits() -> Tensor:
    return torch.tensor(load_digits().data, dtype=torch.float32) / 16


def blobs() -> Tensor:
    x, _ = make_blobs(3000, n_features=10, centers=30, center_box=(-30, 30), random_state=0)
    return torch.tensor(x, dtype=torch.float32)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 3, 2), (513, 40, 30), (2000, 5, 64)])
def test_distances_are_those_of_brute_force(n: int, k: int, d: int, offset: float) -> None:
    x, centroids = normal(0, n, d) + offset, normal(1, k, d) + offset
    torch.testing.assert_close(
        distances(x, centroids).double(),
        torch.from_numpy(brute(x, centroids).min(1)),
        rtol=2e-6,
        atol=0,
    )


@pytest.mark.parametrize("gap", [1e-4, 1e-2, 1.0])
def test_distances_to_a_close_centroid_do_not_cancel(gap: float) -> None:
    centroids = normal(0, 20, 50) * 10
    x = centroids + gap * normal(1, 20, 50)
    torch.testing.assert_close(
        distances(x, centroids).double(),
        torch.from_numpy(brute(x, centroids).min(1)),
        rtol=2e-5,
        atol=0,
    )
    assert torch.equal(distances(centroids, centroids), torch.zeros(20))


def test_distances_of_no_points_are_none() -> None:
    assert distances(torch.empty(0, 3), torch.zeros(2, 3)).shape == (0,)


@pytest.mark.parametrize(("data", "k"), [(blobs, 30), (digits, 10), (digits, 64)])
def test_inertia_is_within_two_percent_of_scikit_learn(data: Callable[[], Tensor], k: int) -> None:
    x = data()
    rival = [
        KMeans(k, n_init=1, max_iter=25, tol=0, random_state=seed).fit(x.numpy()).inertia_
        for seed in range(5)
    ]
    ours = [inertia(x, kmeans(x, k, seeded(seed))) for seed in range(5)]
    assert statistics.median(ours) <= 1.02 * statistics.median(rival)


@pytest.mark.parametrize("k", [2, 10, 50])
@pytest.mark.parametrize("seed", range(3))
def test_a_converged_run_is_a_fixed_point_of_lloyd(k: int, seed: int) -> None:
    x = digits()
    centroids = kmeans(x, k, seeded(seed), max_iterations=1000)
    own = torch.from_numpy(brute(x, centroids).argmin(1))
    means = torch.stack([x[own == label].double().mean(0) for label in range(k)])
    torch.testing.assert_close(centroids.double(), means, rtol=0, atol=1e-5)


def test_the_bounds_change_nothing() -> None:
    """Each iteration is the textbook's: assign every point, then take the means."""
    x = digits()
    for iterations in range(1, 12):
        before = kmeans(x, 20, seeded(0), max_iterations=iterations - 1)
        own = torch.from_numpy(brute(x, before).argmin(1))
        means = torch.stack([x[own == label].mean(0) for label in range(20)])
        after = kmeans(x, 20, seeded(0), max_iterations=iterations)
        torch.testing.assert_close(after, means, rtol=0, atol=1e-5)


def test_it_stops_when_no_point_changes_its_centroid(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def spy(x: Tensor, *rest: Tensor) -> Tensor:
        compared.append(len(x))
        return squared(x, *rest)

    squared = module._squared
    monkeypatch.setattr(module, "_squared", spy)
    kmeans(digits(), 10, seeded(0), max_iterations=1000)
    assert compared[-1] < 1797 / 4  # the bounds pass over the others
    assert len(compared) < 100


def test_no_iterations_give_seeds_that_are_points() -> None:
    x = normal(0, 100, 5)
    seeds = kmeans(x, 8, seeded(0), max_iterations=0)
    assert seeds.unique(dim=0).shape == (8, 5)
    assert brute(seeds, x).min(1).max() < 1e-6


def test_seeds_reach_every_far_cluster() -> None:
    centres = 1000 * normal(0, 40, 8)
    x = centres.repeat(50, 1) + normal(1, 2000, 8)
    seeds = kmeans(x, 40, seeded(0), max_iterations=0)
    assert len(set(brute(seeds, centres).argmin(1).tolist())) == 40


def test_one_centroid_is_the_mean() -> None:
    x = normal(0, 500, 7) + 3
    torch.testing.assert_close(kmeans(x, 1, seeded(0)), x.mean(0, keepdim=True))


@pytest.mark.parametrize("k", [50, 51, 10**9])
def test_a_centroid_for_every_point_leaves_no_distance(k: int) -> None:
    x = normal(0, 50, 6)
    centroids = kmeans(x, k, seeded(0))
    assert centroids.shape == (50, 6)
    assert distances(x, centroids).max() < 1e-6


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_copies_count_once(scale: float) -> None:
    values = scale * normal(0, 12, 4)
    x = values[torch.arange(600) % 12]
    centroids = kmeans(x, 20, seeded(0))
    assert centroids.shape == (12, 4)
    assert distances(values, centroids).max() < 5e-6 * scale


def test_rare_points_are_found_where_the_sample_of_seeds_misses_them() -> None:
    x = torch.zeros(20_000, 3)
    x[:9] = normal(0, 9, 3)
    centroids = kmeans(x, 10, seeded(0))
    assert len(centroids) == 10
    assert distances(x, centroids).max() < 1e-6


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_constant_data_give_one_centroid(value: float) -> None:
    x = torch.full((300, 5), value)
    centroids = kmeans(x, 10, seeded(0))
    torch.testing.assert_close(centroids, x[:1], rtol=1e-6, atol=0)
    assert distances(x, centroids).isfinite().all()


def test_an_empty_cluster_starts_again_at_the_farthest_point() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [50.0]])
    lost = torch.tensor([[0.5], [-100.0], [20.0]])  # nothing is nearest to -100
    once = module._lloyd(x, x.square().sum(1), lost, 1)
    assert once[1] == 50  # 30 away from the centroid 20, farther than any other point
    done = module._lloyd(x, x.square().sum(1), lost, 25)
    assert done.squeeze(1).tolist() == [0.5, 50.0, 10.5]


def test_the_same_draws_give_the_same_bits() -> None:
    x = digits()
    assert torch.equal(kmeans(x, 10, seeded(3)), kmeans(x.clone(), 10, seeded(3)))
    assert not torch.equal(kmeans(x, 10, seeded(3)), kmeans(x, 10, seeded(4)))


def test_the_input_is_left_alone() -> None:
    x = digits()
    centroids = kmeans(x, 10, seeded(0))
    kept = centroids.clone()
    distances(x, centroids)
    assert torch.equal(x, digits())
    assert torch.equal(centroids, kept)


@given(shift=st.integers(-1000, 1000), seed=st.integers(0, 2**31), k=st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_a_translation_changes_no_distance(shift: int, seed: int, k: int) -> None:
    # 32 multiples of 1/64: their mean and their sum with the shift are exact, so no tie flips.
    x = torch.randint(-64, 65, (32, 3), generator=seeded(seed)) / 64
    here = distances(x, kmeans(x, k, seeded(seed)))
    there = distances(x + shift, kmeans(x + shift, k, seeded(seed)))
    torch.testing.assert_close(here, there, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("x", "k"),
    [
        (torch.empty(0, 3), 2),
        (torch.empty(3, 0), 2),
        (torch.zeros(3), 2),
        (torch.zeros(3, 2), 0),
        (torch.tensor([[0.0], [float("nan")]]), 1),
        (torch.tensor([[0.0], [float("inf")]]), 1),
        (torch.tensor([[0.0], [1e30]]), 1),
    ],
)
def test_input_that_has_no_means_is_refused(x: Tensor, k: int) -> None:
    with pytest.raises(FedkdError, match="k-means"):
        kmeans(x, k, seeded(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_repeats_itself_and_agrees_with_the_cpu() -> None:
    x = digits()
    there = kmeans(x.cuda(), 10, seeded(0))
    assert torch.equal(there, kmeans(x.cuda(), 10, seeded(0)))
    assert inertia(x, there.cpu()) == pytest.approx(inertia(x, kmeans(x, 10, seeded(0))), rel=0.02)

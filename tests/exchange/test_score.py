"""Scores: centroids of all samples or of each class, and distances to the nearest of them."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from fedkd.exchange.kmeans import kmeans
from fedkd.exchange.score import SCORES, KMeans, NoScore


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_classes() -> tuple[Tensor, Tensor]:
    """400 samples around the corners of a square: labels 3 and 7, two corners each."""
    corners = torch.tensor([[0.0, 0.0], [0.0, 10.0], [10.0, 0.0], [10.0, 10.0]])
    which = torch.arange(400) % 4
    x = corners[which] + 0.1 * torch.randn(400, 2, generator=seeded())
    return x, torch.tensor([3, 3, 7, 7])[which]


def test_scores_are_distances_to_the_nearest_centroid() -> None:
    x, y = two_classes()
    score = KMeans(k=4)
    centroids = score.fit(x, y, seeded())
    probes = 20 * torch.rand(300, 2, generator=seeded()) - 5
    expected = cdist(probes.double(), centroids.double()).min(axis=1)
    torch.testing.assert_close(
        score.score(centroids, probes).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5
    )


def test_pooled_centroids_do_not_look_at_labels() -> None:
    x, y = two_classes()
    one, other = (KMeans(k=4).fit(x, labels, seeded()) for labels in (y, y.flip(0)))
    assert torch.equal(one, other)
    assert torch.equal(one, kmeans(x, 4, seeded()))


def test_per_class_fits_k_centroids_in_each_class() -> None:
    x, y = two_classes()
    got = KMeans(k=2, per_class=True).fit(x, y, seeded())
    draws = seeded()
    expected = torch.cat([kmeans(x[y == 3], 2, draws), kmeans(x[y == 7], 2, draws)])
    assert torch.equal(got, expected)
    corners = torch.tensor([[0.0, 0.0], [0.0, 10.0], [10.0, 0.0], [10.0, 10.0]])
    assert cdist(corners, got).min(axis=1).max() < 0.1


def test_per_class_keeps_a_rare_class_that_pooling_overlooks() -> None:
    x = torch.cat([torch.randn(1000, 2, generator=seeded()), torch.full((3, 2), 6.0)])
    y = torch.cat([torch.zeros(1000), torch.ones(3)]).long()
    rare = torch.full((1, 2), 6.0)
    pooled, each = (KMeans(k=1, per_class=flag) for flag in (False, True))
    assert each.score(each.fit(x, y, seeded()), rare) < 1e-3
    assert pooled.score(pooled.fit(x, y, seeded()), rare) > 5


def test_a_class_smaller_than_k_gives_what_it_has() -> None:
    x = torch.randn(13, 4, generator=seeded())
    y = torch.tensor([0] * 10 + [5] * 3)
    assert KMeans(k=4, per_class=True).fit(x, y, seeded()).shape == (4 + 3, 4)


def test_own_data_are_more_familiar_than_others() -> None:
    x, y = two_classes()
    score = KMeans(k=2)
    state = score.fit(x[y == 3], y[y == 3], seeded())
    assert score.score(state, x[y == 3]).max() < score.score(state, x[y == 7]).min()


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("n", [0, 1, 600])
def test_every_score_is_one_finite_number_a_sample(name: str, n: int) -> None:
    x, y = two_classes()
    score: KMeans | NoScore = SCORES[name]()  # type: ignore[assignment]
    got = score.score(score.fit(x, y, seeded()), torch.randn(n, 2, generator=seeded()))
    assert got.shape == (n,)
    assert got.isfinite().all()


def test_no_score_tells_nothing_apart() -> None:
    x, y = two_classes()
    state = NoScore().fit(x, y, seeded())
    assert state.numel() == 0
    assert torch.equal(NoScore().score(state, x), torch.zeros(400))

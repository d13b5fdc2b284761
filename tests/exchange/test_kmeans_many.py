"""k-means of many clients in one call is that of each alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.exchange import kmeans_many as module
from fedkd.exchange.kmeans import kmeans
from fedkd.exchange.kmeans_many import kmeans_many
from fedkd.exchange.score import KMeans, NoScore, fit_together


def seeded(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def digits(sizes: tuple[int, ...]) -> list[Tensor]:
    """Noise breaks the ties between whole sixteenths, which rounding would decide."""
    x = torch.tensor(load_digits().data, dtype=torch.float32) / 16 + 0.01 * normal(1797, 64, 9)
    ends = torch.tensor((0, *sizes)).cumsum(0).tolist()
    return [x[a:b] for a, b in pairwise(ends)]


def assert_same(parts: list[Tensor], k: int, iterations: int = 25) -> None:
    alone = [
        kmeans(x, k, g, max_iterations=iterations)
        for x, g in zip(parts, seeded(len(parts)), strict=True)
    ]
    together = kmeans_many(parts, k, seeded(len(parts)), max_iterations=iterations)
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("iterations", [0, 1, 5, 200])
def test_together_is_alone(k: int, iterations: int) -> None:
    assert_same(digits((300, 41, 700, 155)), k, iterations)


@given(
    st.lists(st.integers(-6, 7), min_size=1, max_size=5), st.integers(1, 7), st.integers(0, 10**6)
)
@settings(deadline=None, max_examples=60)
def test_together_is_alone_for_any_sizes(extra: list[int], k: int, seed: int) -> None:
    """Parts of fewer points than centroids, and of 8 to 15 times as many.

    In between, seeds end as a choice of two points that are each other's nearest, which is a tie.
    """
    sizes = [max(1, k + more) if more < 0 else k * (8 + more) for more in extra]
    parts = [normal(n, 4, seed + i) + 10 * i for i, n in enumerate(sizes)]
    assert_same(parts, k, iterations=3)


def test_few_distinct_points_are_taken_alone() -> None:
    few = normal(3, 5, 0).repeat(20, 1)
    parts = [normal(50, 5, 1), few, normal(60, 5, 2)]
    assert_same(parts, 8)
    assert [len(c) for c in kmeans_many(parts, 8, seeded(3))] == [8, 3, 8]


def test_rare_points_outside_the_sample_are_found_as_alone() -> None:
    """Nearly all points are copies, so the sample of 2,000 holds fewer than k distinct ones."""
    copies = torch.zeros(5000, 3)
    copies[-6:] = normal(6, 3, 0) + 5
    assert_same([copies, normal(100, 3, 1)], 7)


def test_a_centroid_without_points_starts_again_far_away() -> None:
    """Two points per corner; a seed that loses all its points must move as it does alone."""
    x = digits((200,))[0]
    previous = torch.cat([x[:9], torch.full((1, 64), 9.0)])
    label = torch.cdist(x.double(), previous.double()).argmin(1)
    means = torch.stack([x[label == i].mean(0) for i in range(10)])
    valid = torch.ones(200, dtype=torch.bool)
    got = module._restarted(x, valid, label, previous, means)
    far = (x - previous[label]).norm(dim=1).argmax()
    assert torch.equal(got[9], x[far])
    assert torch.equal(got[:9], means[:9])


def test_generators_are_left_as_alone() -> None:
    """So that whatever is drawn next is the same too."""
    parts = [normal(50, 5, 1), normal(3, 5, 0).repeat(20, 1), normal(4, 5, 2)]
    together, alone = seeded(3), seeded(3)
    kmeans_many(parts, 8, together)
    for x, generator in zip(parts, alone, strict=True):
        kmeans(x, 8, generator)
    for mine, theirs in zip(together, alone, strict=True):
        assert torch.equal(mine.get_state(), theirs.get_state())


@pytest.mark.parametrize("per_class", [False, True])
def test_a_score_fitted_together_is_fitted_alone(per_class: bool) -> None:
    """Client 1 has a class of one point; by class, draws of a client come from one generator."""
    xs = digits((200, 31, 120))
    ys = [torch.arange(len(x)) % 3 for x in xs]
    ys[1][0] = 7
    score = KMeans(k=5, per_class=per_class)
    together = score.fit_many(xs, ys, seeded(3))
    alone = fit_together(score, xs, ys, seeded(3))
    for x, y, g, mine, theirs in zip(xs, ys, seeded(3), together, alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert torch.equal(theirs, score.fit(x, y, g))  # a CPU takes one after another


def test_no_score_has_an_empty_state_each() -> None:
    xs = digits((20, 31))
    assert [len(s) for s in fit_together(NoScore(), xs, xs, seeded(2))] == [0, 0]


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x[:0], lambda x: x.index_fill(0, torch.tensor([3]), float("nan"))],
    ids=["no points", "NaN"],
)
def test_what_kmeans_refuses_is_refused(spoil: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(FedkdError, match="k-means"):
        kmeans_many([normal(50, 5, 1), spoil(normal(50, 5, 0))], 4, seeded(2))

"""Private L1 distances: exact sums without noise, noise of each node, error against the levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.interval_trees import Grid, distance_sums, grid, tree
from privacy.summaries import view
from small_digits import PROXY, PROXY_Y, X, Y, seeded

VIEW = view(PROXY, 5)
GRID = grid(PROXY, VIEW, levels=4)


def seen(grid: Grid, x: Tensor, *, rounded: bool) -> np.ndarray:
    """Where the samples lie once drawn into the box, in the view's units: [n, d]."""
    places = ((VIEW.look(x) - grid.low) / grid.step).numpy().clip(0, 2**grid.levels - 1)
    return grid.low.numpy() + (places.round() if rounded else places) * grid.step.numpy()


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_without_noise_the_sums_are_those_of_brute_force(levels: int) -> None:
    own = grid(PROXY, VIEW, levels)
    found = distance_sums(X[:300], Y[:300], 10, own, math.inf, seeded(0))
    queries = seen(own, PROXY, rounded=False)
    for label in range(10):
        records = seen(own, X[:300][Y[:300] == label], rounded=True)
        expected = cdist(queries, records, "cityblock").sum(1)
        np.testing.assert_allclose(found.sums(PROXY)[:, label].numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(found.counts.numpy(), np.bincount(Y[:300], minlength=10), atol=1e-9)


def test_finer_grids_approach_the_sums_of_what_is_not_rounded() -> None:
    queries = seen(GRID, PROXY, rounded=False)
    exact = cdist(queries, seen(GRID, X[:300], rounded=False), "cityblock").sum(1)
    errors = []
    for levels in (2, 4, 6):
        own = grid(PROXY, VIEW, levels)
        found = distance_sums(X[:300], Y[:300], 10, own, math.inf, seeded(0)).sums(PROXY).sum(1)
        errors.append(np.abs(found.numpy() / exact - 1).max())
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.01


def test_the_score_is_a_difference_of_mean_distances() -> None:
    found = distance_sums(X[:300], Y[:300], 10, GRID, math.inf, seeded(0))
    queries = seen(GRID, PROXY, rounded=False)
    own, public = (
        cdist(queries, seen(GRID, x, rounded=True), "cityblock").mean(1) for x in (X[:300], PROXY)
    )
    np.testing.assert_allclose(found.score(PROXY).numpy(), own - public, rtol=1e-9, atol=1e-9)


# --- the tree, its sensitivity, its noise ---


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_a_leaf_lies_in_one_node_of_each_level(levels: int) -> None:
    down, back = tree(levels)
    assert down.shape == (2 ** (levels + 1) - 2, 2**levels)
    assert (down.sum(0) == levels).all()
    assert down.sum(1).tolist() == [
        2 ** (levels - level) for level in range(1, levels + 1) for _ in range(2**level)
    ]
    torch.testing.assert_close(back @ down, torch.eye(2**levels).double())


@given(st.integers(0, 2**31), st.floats(0, 1e6), st.integers(0, 2), st.integers(0, 6))
@settings(deadline=None, max_examples=100)
def test_every_record_moves_axes_times_levels_nodes_by_one(
    seed: int, scale: float, label: int, n: int
) -> None:
    x = torch.randn(n + 1, 64, generator=seeded(seed))
    x[n] *= scale
    y = torch.randint(3, (n + 1,), generator=seeded(seed))
    y[n] = label
    grown, before = (
        distance_sums(x[:m], y[:m], 3, GRID, math.inf, seeded(0)).nodes for m in (n + 1, n)
    )
    moves = (grown - before)[label]
    assert (grown - before).abs().sum() == moves.abs().sum() == 5 * 4
    assert set(moves.unique().tolist()) == {0.0, 1.0}


def test_each_node_has_laplace_noise_of_axes_times_levels_over_epsilon() -> None:
    found = distance_sums(X[:50], Y[:50], 10, GRID, 2.0, seeded(0))
    exact = distance_sums(X[:50], Y[:50], 10, GRID, math.inf, seeded(0))
    noise = (found.nodes - exact.nodes).numpy()
    scale = 5 * 4 / 2.0
    assert found.noise_scale == scale
    start = 0
    for level in range(1, 5):  # each level alone: none has less
        at_level = noise[:, :, start : start + 2**level].ravel()
        assert stats.kstest(at_level, stats.laplace(scale=scale).cdf).pvalue > 0.01
        start += 2**level
    assert stats.kstest(noise.ravel(), stats.laplace(scale=0.8 * scale).cdf).pvalue < 0.01


def test_the_noise_of_the_counts_is_as_declared() -> None:
    y = torch.empty(0, dtype=torch.int64)
    counts = np.concatenate(
        [distance_sums(X[:0], y, 10, GRID, 1.0, seeded(i)).counts for i in range(100)]
    )
    std = distance_sums(X[:0], y, 10, GRID, 1.0, seeded(0)).count_std
    assert counts.std() == pytest.approx(std, rel=0.1)


def test_the_error_grows_as_the_levels_and_for_counts_as_their_1_5() -> None:
    """Standard deviations on one axis of length 1, exact, since queries are linear in the nodes.

    Every node has noise of scale L. The paper's log^1.5 is the worst count of what lies below a
    point; a sum of distances is smoother.
    """
    levels = np.arange(2, 11)
    distances, counts = [], []
    for n_levels in levels.tolist():
        back = tree(n_levels)[1]
        points = torch.linspace(0, 1, 2**n_levels, dtype=torch.float64)
        scale = n_levels * math.sqrt(2)
        distances.append(scale * float(((points - 0.5).abs() @ back).norm()))
        below = torch.ones(len(points), len(points), dtype=torch.float64).tril()
        counts.append(scale * float((below @ back).norm(dim=1).max()))
    for errors, power in ((distances, 1.0), (counts, 1.5)):
        ratio = np.array(errors) / levels**power
        assert (np.diff(ratio) < 0).all()
        assert ratio[-1] > 0.5 * ratio[0]
    flat = math.sqrt(2) * float((points - 0.5).abs().norm())  # of a histogram: sqrt of the grid
    assert distances[-1] < flat / 2


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_the_event_costs_epsilon_with_delta_0(epsilon: float) -> None:
    accountant = PLDAccountant()
    accountant.compose(distance_sums(X[:5], Y[:5], 10, GRID, epsilon, seeded(0)).event)
    assert accountant.get_epsilon(0) == pytest.approx(epsilon, abs=1e-6)


# --- use ---


def test_a_filter_and_a_teacher_are_left_at_epsilon_8() -> None:
    own = Y[:1000] < 2
    found = distance_sums(X[:1000][own], Y[:1000][own], 10, GRID, 8.0, seeded(0))
    known = PROXY_Y < 2
    assert roc_auc_score(known, -found.score(PROXY)) > 0.75
    labels = found.teach(PROXY, 0.1)
    assert (labels.argmax(1) == PROXY_Y)[known].double().mean() > 0.9
    torch.testing.assert_close(labels.sum(1), torch.ones(len(PROXY)).double())


@pytest.mark.parametrize("epsilon", [1.0, math.inf])
@pytest.mark.parametrize("n", [0, 1])
def test_no_record_and_one_record_work(n: int, epsilon: float) -> None:
    found = distance_sums(X[:n], Y[:n], 10, GRID, epsilon, seeded(0))
    assert found.score(PROXY).isfinite().all()
    assert found.teach(PROXY).isfinite().all()
    if n and epsilon == math.inf:
        assert (found.teach(PROXY)[:, Y[0]] == 1).all()


@pytest.mark.parametrize(
    ("x", "y", "epsilon"),
    [
        (torch.full((2, 64), math.nan), torch.tensor([0, 1]), 1.0),
        (torch.zeros(2, 63), torch.tensor([0, 1]), 1.0),
        (torch.zeros(2, 64), torch.tensor([0, 10]), 1.0),
        (torch.zeros(2, 64), torch.tensor([0, 1]), 0.0),
        (torch.zeros(2, 64), torch.tensor([0, 1]), math.nan),
    ],
)
def test_nonsense_is_refused(x: Tensor, y: Tensor, epsilon: float) -> None:
    with pytest.raises(FedkdError):
        distance_sums(x, y, 10, GRID, epsilon, seeded(0))


@pytest.mark.parametrize(
    ("proxy", "levels"), [(PROXY, 0), (PROXY, 11), (PROXY[:0], 4), (PROXY[:1], 4)]
)
def test_a_proxy_without_a_grid_is_refused(proxy: Tensor, levels: int) -> None:
    with pytest.raises(FedkdError):
        grid(proxy, VIEW, levels)

"""The bounds hold against random and gradient search, and are tight where that is claimed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.sensitivity import (
    ClippedRows,
    SoftLabels,
    clip_logits,
    clip_rows,
    l1_sensitivity,
    l2_sensitivity,
    log_ratio,
    project,
)

C = pytest.mark.parametrize("n_classes", [2, 3, 10, 100])
SPREAD = pytest.mark.parametrize("a", [0.1, 0.5, 2.0, 5.0])  # 2B/T
ROWS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7),
    elements=st.floats(-1e6, 1e6),
)
TAME = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.floats(-10, 10),
)
BOUND = 1.5
Distance = Callable[[Tensor, Tensor], Tensor]
DISTANCES: dict[str, Distance] = {
    "l1": lambda p, q: (p - q).abs().sum(1),
    "l2": lambda p, q: (p - q).square().sum(1).clamp(min=1e-300).sqrt(),
    "ratio": lambda p, q: (p.log() - q.log()).amax(1),
}


def bounds(a: float, n_classes: int) -> dict[str, float]:
    t = torch.tensor(2 * BOUND / a, dtype=torch.float64)
    return {
        "l1": float(l1_sensitivity(BOUND, t)),
        "l2": float(l2_sensitivity(BOUND, t, n_classes)),
        "ratio": float(log_ratio(BOUND, t, n_classes)),
    }


def search(distance: Distance, a: float, n_classes: int, seed: int) -> float:
    """The largest distance found: random pairs from tame to wild, and ascent from 128 pairs.

    Half of the ascents start near 0, half near two disjoint sets of 1 to C/2 high classes.
    """
    labels = SoftLabels(BOUND, 2 * BOUND / a)
    draws = torch.Generator().manual_seed(seed)
    scale = 10 ** torch.linspace(-1, 2, 64, dtype=torch.float64)[:, None]
    raw = torch.randn(2, 64, n_classes, generator=draws, dtype=torch.float64)
    found = float(distance(*(labels.apply(scale * z) for z in raw)).max())
    place = torch.rand(64, n_classes, generator=draws).argsort(1)
    size = torch.randint(1, n_classes // 2 + 1, (64, 1), generator=draws)
    sets = torch.stack([place < size, place >= n_classes - size]).double() - 0.5
    z = torch.nn.Parameter(torch.cat([0.3 * raw, 2 * sets + 0.1 * raw], dim=1))
    optimiser = torch.optim.Adam([z], lr=0.1)
    for _ in range(150):
        # The attack moves inside the box, where the clipping has a gradient.
        p, q = torch.softmax(BOUND * torch.tanh(z) / labels.temperature, dim=2)
        value = distance(p, q)
        found = max(found, float(value.detach().max()))
        optimiser.zero_grad()
        (-value.sum()).backward()
        optimiser.step()
    applied = distance(*(labels.apply(BOUND * torch.tanh(side)) for side in z.detach()))
    return max(found, float(applied.max()))


@C
@SPREAD
@pytest.mark.parametrize("kind", DISTANCES)
def test_no_attack_moves_a_soft_label_further(kind: str, a: float, n_classes: int) -> None:
    bound = bounds(a, n_classes)[kind]
    found = search(DISTANCES[kind], a, n_classes, seed=n_classes)
    assert found <= bound * (1 + 1e-9)
    assert found >= 0.45 * bound  # the attack is not asleep
    assert bounds(a, n_classes)["l2"] <= math.sqrt(2) * math.tanh(a / 2) * (1 + 1e-12)


@SPREAD
@pytest.mark.parametrize("n_classes", [2, 10, 100])
def test_l1_and_the_ratio_are_attained(a: float, n_classes: int) -> None:
    labels, bound = SoftLabels(BOUND, 2 * BOUND / a), bounds(a, n_classes)
    half = torch.cat([torch.ones(n_classes // 2), -torch.ones(n_classes // 2)])[None] * 50
    p, q = labels.apply(half), labels.apply(-half)
    assert float(DISTANCES["l1"](p, q)) == pytest.approx(bound["l1"], rel=1e-9)
    one = -torch.ones(1, n_classes) * 50
    one[0, 0] = 50
    p, q = labels.apply(one), labels.apply(-one)
    assert float(DISTANCES["ratio"](p, q)) == pytest.approx(bound["ratio"], rel=1e-9)


@SPREAD
def test_l2_is_attained_for_two_classes(a: float) -> None:
    labels = SoftLabels(BOUND, 2 * BOUND / a)
    one = torch.tensor([[9.0, -9.0]])
    found = float(DISTANCES["l2"](labels.apply(one), labels.apply(-one)))
    assert found == pytest.approx(math.sqrt(2) * math.tanh(a / 2), rel=1e-9)
    assert found == pytest.approx(bounds(a, 2)["l2"], rel=1e-9)


def test_l2_is_nearly_attained_where_it_is_hot() -> None:
    """The second bound is worth having: the balanced pair comes within 1 % of it at a = 0.01."""
    labels = SoftLabels(BOUND, 2 * BOUND / 0.01)
    half = torch.cat([torch.ones(50), -torch.ones(50)])[None] * 50
    found = float(DISTANCES["l2"](labels.apply(half), labels.apply(-half)))
    assert 0.99 * bounds(0.01, 100)["l2"] <= found <= bounds(0.01, 100)["l2"]
    assert found < 0.15 * math.sqrt(2) * math.tanh(0.005)


@pytest.mark.parametrize(("temperature", "factor"), [(1.0, 1.00), (20.0, 0.245), (100.0, 0.050)])
def test_temperature_is_a_sensitivity_knob(temperature: float, factor: float) -> None:
    """The figures of the reference at B = 5."""
    labels = SoftLabels(5, temperature)
    got = labels.sensitivity(1, "replace one client", 10) / 2
    assert got == pytest.approx(math.tanh(5 / temperature), rel=1e-12)
    assert got == pytest.approx(factor, abs=6e-4)


def test_without_clipping_no_temperature_lowers_anything() -> None:
    labels = SoftLabels(temperature=50)
    assert labels.sensitivity(1, "replace one client", 10) == 2
    assert labels.sensitivity(2, "replace one client", 10) == pytest.approx(math.sqrt(2))
    assert labels.sensitivity(1, "add or remove one client", 10) == 1
    assert labels.sensitivity(2, "add or remove one client", 10) == 1
    far = labels.apply(torch.tensor([[1e6, 0.0], [0.0, 1e6]]))
    assert float((far[0] - far[1]).norm()) == pytest.approx(math.sqrt(2))


@given(ROWS, st.floats(0.1, 100))
@settings(deadline=None, max_examples=80)
def test_clipping_keeps_the_softmax_of_what_fits_and_bounds_the_rest(
    logits: NDArray[np.float64], bound: float
) -> None:
    z = torch.from_numpy(logits)
    clipped = clip_logits(z, bound).numpy()
    assert np.abs(clipped).max() <= bound
    fits = np.ptp(logits, axis=1) <= 2 * bound - 1e-6
    np.testing.assert_allclose(
        softmax(clipped[fits], axis=1), softmax(logits[fits], axis=1), rtol=1e-6
    )
    order = np.argsort(logits, axis=1)
    assert (np.diff(np.take_along_axis(clipped, order, 1), axis=1) >= 0).all()


def test_where_a_row_lies_does_not_matter_only_how_far_it_spreads() -> None:
    logits = torch.tensor([[100.0, 99.0, 98.5], [1e6, -3e6, 0.0]])
    got = clip_logits(logits, 1.0)
    np.testing.assert_allclose(got[0], [0.75, -0.25, -0.75], rtol=1e-12)
    np.testing.assert_allclose(got[1], [1, -1, 1], rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
@given(ROWS, st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=80)
def test_rows_are_shortened_and_never_turned(
    order: int, values: NDArray[np.float64], norm: float
) -> None:
    got = clip_rows(torch.from_numpy(values), norm, order).numpy()
    lengths = np.linalg.norm(values, ord=order, axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(got, ord=order, axis=1), np.minimum(lengths, norm), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        got * lengths[:, None], values * np.minimum(lengths, norm)[:, None], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("bound", [SoftLabels(1.0, 2.0), ClippedRows(1.0), ClippedRows(1.0, 1)])
def test_a_zero_vector_is_clipped_too(bound: SoftLabels | ClippedRows) -> None:
    got = bound.apply(torch.zeros(2, 4))
    assert bool(got.isfinite().all())
    expected = 0.25 if isinstance(bound, SoftLabels) else 0.0
    assert torch.equal(got, torch.full((2, 4), expected, dtype=torch.float64))


@pytest.mark.parametrize("norm_order", [1, 2])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("n_classes", [2, 9])
def test_the_sensitivity_of_clipped_rows_is_attained(
    norm_order: int, order: int, n_classes: int
) -> None:
    rows = ClippedRows(3.0, norm_order)  # type: ignore[arg-type]
    even, one = torch.ones(1, n_classes), torch.zeros(1, n_classes)
    one[0, 0] = 1
    found = max(float(torch.linalg.vector_norm(rows.apply(99 * v), ord=order)) for v in (even, one))
    present = rows.sensitivity(order, "add or remove one client", n_classes)  # type: ignore[arg-type]
    replaced = rows.sensitivity(order, "replace one client", n_classes)  # type: ignore[arg-type]
    assert found == pytest.approx(present, rel=1e-12)
    assert replaced == 2 * present


@given(ROWS)
@settings(deadline=None, max_examples=80)
def test_the_projection_is_optimal(values: NDArray[np.float64]) -> None:
    """What is subtracted is one number on the support, and at least the value off it (KKT)."""
    got = project(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-8)
    assert (got >= 0).all()
    for row, nearest in zip(values, got, strict=True):
        shift = (row - nearest)[nearest > 0]
        assert np.ptp(shift) < 1e-8
        assert (row[nearest == 0] <= shift.min() + 1e-8).all()


@given(TAME)
@settings(deadline=None, max_examples=60)
def test_the_projection_is_the_nearest_point(values: NDArray[np.float64]) -> None:
    """Against brute force: of all supports, the one whose projection is feasible and nearest."""
    got = project(torch.from_numpy(values)).numpy()
    n = values.shape[1]
    supports = np.array([s for s in itertools.product([0.0, 1.0], repeat=n) if any(s)])
    for row, nearest in zip(values, got, strict=True):
        shifts = (supports @ row - 1) / supports.sum(1)
        points = supports * (row - shifts[:, None])
        points = points[(points >= -1e-8).all(1)]
        best = points[np.square(points - row).sum(1).argmin()]
        np.testing.assert_allclose(nearest, best, atol=1e-5)


def test_the_projection_is_what_scipy_finds() -> None:
    row = np.array([0.7, -0.3, 0.65, 0.2, 0.1])
    found = minimize(
        lambda p: np.square(p - row).sum(),
        np.full(5, 0.2),
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        tol=1e-12,
    )
    np.testing.assert_allclose(project(torch.from_numpy(row[None]))[0], found.x, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_numbers_do_not_leave(bad: float) -> None:
    values = torch.tensor([[1.0, bad]])
    for bound in (SoftLabels(), ClippedRows(1)):
        with pytest.raises(FedkdError, match="NaN or infinity"):
            bound.apply(values)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_bounds_must_be_positive(bad: float) -> None:
    with pytest.raises(FedkdError, match="bound must be positive; got"):
        SoftLabels(bad)
    with pytest.raises(FedkdError, match="norm must be positive"):
        ClippedRows(bad)

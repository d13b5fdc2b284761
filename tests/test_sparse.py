"""Codings of rows of probabilities: what arrives, what is lost, and what is right on average."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from fedkd import sparse
from fedkd.errors import FedkdError
from fedkd.sparse import Coding, Draws, Largest, Rows

QUICK = settings(deadline=None, max_examples=80)
BOTH = pytest.mark.parametrize("coding", [Largest(3), Draws(40)], ids=["top-k", "sampled"])
SIZES = [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")]


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def dense(coding: Coding, rows: Rows, seed: int = 0) -> Rows:
    """The rows as they arrive."""
    arrays = coding.encode(rows, draws(seed))
    coding.check(arrays, *rows.shape)
    return np.concatenate(list(coding.decode(arrays, rows.shape[1])))


@st.composite
def distributions(draw: st.DrawFn, most: int = 9) -> Rows:
    """Rows with many ties and zeros."""
    shape = (draw(st.integers(0, 6)), draw(st.integers(1, most)))
    weights = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 4)))
    weights[:, draw(st.integers(0, shape[1] - 1))] += 1
    rows: Rows = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return rows


def softmax_rows(m: int, n_classes: int, spread: float = 3.0) -> Rows:
    weights = np.exp(spread * draws(7).normal(size=(m, n_classes)))
    rows: Rows = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return rows


def first_k(row: NDArray[np.float32], k: int) -> list[int]:
    """The k largest, the lower id first at a tie, by sorting pairs."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    return sorted(order[:k])


# --- top-k ---


@given(distributions(), st.integers(1, 10))
@QUICK
def test_the_k_largest_are_those_of_a_sort(rows: Rows, k: int) -> None:
    arrays = Largest(k).encode(rows, draws())
    expected = [first_k(row, k) for row in rows]
    assert arrays["classes"].tolist() == expected
    assert arrays["values"].tolist() == [
        row[kept].tolist() for row, kept in zip(rows, expected, strict=True)
    ]


@given(distributions(), st.integers(1, 10))
@QUICK
def test_the_rest_of_the_mass_is_spread_evenly(rows: Rows, k: int) -> None:
    got = dense(Largest(k), rows)
    assert got.dtype == np.float32
    for row, back in zip(rows, got, strict=True):
        kept = first_k(row, k)
        others = np.setdiff1d(np.arange(len(row)), kept)
        assert back[kept].tolist() == row[kept].tolist()
        share = row[others].sum(dtype=np.float64) / max(len(others), 1)
        np.testing.assert_allclose(back[others], share, atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-6)


def test_of_one_class_there_is_no_tail() -> None:
    assert dense(Largest(5), np.ones((2, 1), np.float32)).tolist() == [[1], [1]]


@given(distributions())
@QUICK
def test_enough_classes_lose_nothing(rows: Rows) -> None:
    np.testing.assert_array_equal(dense(Largest(9), rows), rows, strict=True)


# --- draws ---


@given(distributions(), st.integers(1, 300), st.integers(0, 99))
@QUICK
def test_draws_are_those_of_a_search_row_by_row(rows: Rows, n: int, seed: int) -> None:
    got, uniform = dense(Draws(n), rows, seed), draws(seed)
    for row, back in zip(rows, got, strict=True):
        ends = np.cumsum(row.astype(np.float64))
        drawn = np.searchsorted(ends, uniform.random(n) * ends[-1], side="right")
        counts = np.bincount(drawn, minlength=len(row))
        np.testing.assert_array_equal(back, (counts / n).astype(np.float32))


@given(distributions(), st.integers(1, 300), st.integers(0, 99))
@QUICK
def test_counts_are_positive_ascending_and_complete(rows: Rows, n: int, seed: int) -> None:
    arrays = Draws(n).encode(rows, draws(seed))
    assert (arrays["counts"] > 0).all()
    assert int(arrays["counts"].sum(dtype=np.int64)) == n * len(rows)
    got = dense(Draws(n), rows, seed)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
    assert (got[rows == 0] == 0).all()  # what is impossible is never drawn
    nonzero = got.nonzero()
    assert arrays["classes"].tolist() == nonzero[1].tolist()


P = np.array([0.5, 0.25, 0.15, 0.07, 0.02, 0.01, 0.0], np.float32)


def test_the_mean_is_unbiased_and_the_variance_is_that_of_a_multinomial_share() -> None:
    n, times = 6, 40_000
    got = dense(Draws(n), np.tile(P, (times, 1)), seed=3).astype(np.float64)
    p = P / P.sum(dtype=np.float64)
    covariance = (np.diag(p) - np.outer(p, p)) / n
    error = np.sqrt(np.diag(covariance) / times)
    assert (np.abs(got.mean(0) - p) <= 4.5 * error).all()
    for i, j in np.ndindex(covariance.shape):
        products = (got[:, i] - p[i]) * (got[:, j] - p[j])
        bound = 4.5 * products.std() / np.sqrt(times)
        assert abs(products.mean() - covariance[i, j]) <= bound + 1e-15


def test_the_counts_of_a_row_are_multinomial() -> None:
    n, p = 3, np.array([0.6, 0.3, 0.1], np.float32)
    got = dense(Draws(n), np.tile(p, (20_000, 1)), seed=5)
    tables, seen = np.unique(np.rint(got * n).astype(int), axis=0, return_counts=True)
    expected = 20_000 * stats.multinomial.pmf(tables, n, p.astype(float) / p.sum(dtype=float))
    assert len(tables) == 10
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-3


def test_the_top_k_are_biased_where_draws_are_not() -> None:
    """The gap that the paper is about: a class of 0.07 beside one of zero, both in the tail."""
    top = dense(Largest(3), P[None])[0].astype(np.float64)
    assert top[3] == pytest.approx(0.1 / 4, abs=1e-6)
    drawn = dense(Draws(6), np.tile(P, (40_000, 1)), seed=3).mean(0, dtype=np.float64)
    assert np.abs(drawn - P).max() < 0.1 * np.abs(top - P).max()


def test_more_draws_come_nearer_as_one_over_their_number() -> None:
    rows = softmax_rows(400, 50)
    for n in (10, 1000):
        error = ((dense(Draws(n), rows).astype(np.float64) - rows) ** 2).sum(1).mean()
        assert error == pytest.approx((1 - (rows.astype(np.float64) ** 2).sum(1)).mean() / n, 0.1)


class Fixed:
    """Draws one number for ever."""

    def __init__(self, point: float) -> None:
        self._point = point

    def random(self, shape: tuple[int, int]) -> NDArray[np.float64]:
        return np.full(shape, self._point)


@pytest.mark.parametrize(
    "row",
    [[1, 0, 0], [0, 0.3, 0.7, 0], [0, 1 / 3, 1 / 3, 1 / 3, 0], [0, 0.5, 0.4995], [0.5, 0.5005, 0]],
)
def test_the_first_and_the_last_point_of_a_row_fall_into_classes_with_mass(
    row: list[float],
) -> None:
    """Also where float32 makes a row sum to a little more or less than one."""
    held = [i for i, p in enumerate(row) if p > 0]
    for point, expected in ((0.0, held[0]), (np.nextafter(1, 0), held[-1])):
        got = Draws(4).encode(np.array([row], np.float32), Fixed(point))  # type: ignore[arg-type]
        assert got["classes"].tolist() == [expected]


def test_many_draws_take_little_memory_at_the_client() -> None:
    rows = np.full((64, 2), 0.5, np.float32)
    tracemalloc.start()
    Draws(65_535).encode(rows, draws())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 70e6  # 168 MB if all rows were drawn at once


# --- both ---


@BOTH
@pytest.mark.parametrize(("n_classes", "dtype"), SIZES)
def test_ids_take_as_few_bytes_as_the_classes_allow(
    coding: Coding, n_classes: int, dtype: str
) -> None:
    rows = np.zeros((2, n_classes), np.float32)
    rows[:, -1] = 1
    arrays = coding.encode(rows, draws())
    assert str(arrays["classes"].dtype) == coding.types(n_classes)["classes"] == dtype
    assert {name: str(array.dtype) for name, array in arrays.items()} == coding.types(n_classes)
    assert arrays["classes"].max() == n_classes - 1
    np.testing.assert_array_equal(dense(coding, rows), rows)


@pytest.mark.parametrize(("n", "dtype"), [(255, "uint8"), (256, "uint16"), (65_536, "uint32")])
def test_counts_take_as_few_bytes_as_the_draws_allow(n: int, dtype: str) -> None:
    arrays = Draws(n).encode(np.array([[0, 1], [1, 0]], np.float32), draws())
    assert str(arrays["counts"].dtype) == Draws(n).types(2)["counts"] == dtype
    assert arrays["counts"].tolist() == [n, n]


@BOTH
def test_blocks_change_nothing(coding: Coding, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = softmax_rows(11, 20)
    whole, back = coding.encode(rows, draws()), dense(coding, rows)
    for block in (1, 20, 60):
        monkeypatch.setattr(sparse, "BLOCK", block)
        arrays = coding.encode(rows, draws())
        for name in whole:
            np.testing.assert_array_equal(arrays[name], whole[name], strict=True)
        np.testing.assert_array_equal(dense(coding, rows), back)


@BOTH
@given(distributions(), st.integers(0, 99))
@QUICK
def test_equal_draws_give_equal_arrays(coding: Coding, rows: Rows, seed: int) -> None:
    one, other = (coding.encode(rows, draws(seed)) for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@BOTH
def test_a_large_vocabulary_takes_little_memory_at_the_server(coding: Coding) -> None:
    m, n_classes = 1000, 50_000
    row = softmax_rows(1, n_classes)
    arrays = coding.encode(np.broadcast_to(row, (m, n_classes)), draws())
    tracemalloc.start()
    coding.check(arrays, m, n_classes)
    n_rows = sum(len(rows) for rows in coding.decode(arrays, n_classes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_rows == m
    assert peak < 16e6  # 200 MB are all the rows
    assert sum(array.nbytes for array in arrays.values()) < 0.002 * m * n_classes * 4


@BOTH
@pytest.mark.parametrize(
    "row",
    [[np.nan, 0.5, 0.5], [0.5, 0.6, 0], [0.5, 0.4, 0], [1.5, -0.5, 0], [0, 0, 0], [np.inf, 0, 0]],
)
def test_what_is_no_distribution_is_not_sent(coding: Coding, row: list[float]) -> None:
    rows = np.array([[1, 0, 0], row], np.float32)
    with pytest.raises(FedkdError, match="an answer is not a distribution"):
        coding.encode(rows, draws())

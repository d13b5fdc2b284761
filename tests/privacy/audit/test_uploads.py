"""Uploads are lined up by proxy id, against dictionaries; what was not answered stays NaN."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from privacy.audit.uploads import mean_rows, rows_at

IDS = st.lists(st.integers(0, 12), unique=True, max_size=10)


@given(IDS, st.lists(st.integers(0, 14), max_size=10))
def test_rows_are_found_by_id_in_any_order(known: list[int], wanted: list[int]) -> None:
    values = np.arange(3 * len(known), dtype=np.float32).reshape(-1, 3)
    found = rows_at((np.array(known, np.int32), values), np.array(wanted, np.int32))
    by_id = dict(zip(known, values.tolist(), strict=True))
    expected = [by_id.get(wanted_id, [np.nan] * 3) for wanted_id in wanted]
    np.testing.assert_array_equal(found, np.array(expected).reshape(-1, 3))
    assert found.dtype == np.float64


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_mean_is_over_the_views_that_answer(answered: list[list[bool]]) -> None:
    views = [
        np.where(np.array(has)[:, None], np.random.default_rng(at).dirichlet(np.ones(3), 4), np.nan)
        for at, has in enumerate(answered)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a mean of nothing, which is NaN
        expected = np.nanmean(views, axis=0)
    np.testing.assert_allclose(mean_rows(views), expected)

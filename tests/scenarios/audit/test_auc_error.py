"""Hanley and McNeil's error of an AUC: exact where scores are exponential, so that is simulated."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.rng import stream
from privacy.audit.roc import null_auc_error
from scenarios.audit.membership import auc_error

DRAWS = 8000


def simulated(auc: float, n_members: int, n_others: int) -> float:
    """The standard deviation over draws of the share of pairs in which the member is higher."""
    rng = stream(1, "test", round(100 * auc), n_members)
    members = rng.exponential(auc / (1 - auc), (DRAWS, n_members, 1))
    others = rng.exponential(1.0, (DRAWS, 1, n_others))
    found = (members > others).mean(axis=(1, 2))
    assert found.mean() == pytest.approx(auc, abs=5 * found.std() / DRAWS**0.5)
    return float(found.std(ddof=1))


@pytest.mark.parametrize("auc", [0.5, 0.6, 0.8, 0.95])
@pytest.mark.parametrize(("n_members", "n_others"), [(10, 10), (5, 40), (40, 5)])
def test_it_is_the_spread_of_simulated_aucs(auc: float, n_members: int, n_others: int) -> None:
    # A standard deviation of 8,000 draws is off by 0.8 %, by more where AUCs are near 1.
    expected = simulated(auc, n_members, n_others)
    assert auc_error(auc, n_members, n_others) == pytest.approx(expected, rel=0.05)


def test_members_and_others_are_not_interchangeable() -> None:
    assert auc_error(0.9, 5, 40) != pytest.approx(auc_error(0.9, 40, 5), rel=0.02)


@pytest.mark.parametrize(("n_members", "n_others"), [(100, 100), (30, 80)])
def test_at_one_half_it_is_that_of_ranks(n_members: int, n_others: int) -> None:
    assert auc_error(0.5, n_members, n_others) == pytest.approx(null_auc_error(n_members, n_others))


@pytest.mark.parametrize("auc", [0.0, 1.0])
def test_at_the_ends_there_is_no_spread(auc: float) -> None:
    assert auc_error(auc, 20, 30) == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(auc_error(auc, 1, 1))

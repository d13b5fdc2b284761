"""ROC, AUC and TPR at low FPR: against scikit-learn, brute force and binomial tails."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.intervals import above, below
from privacy.audit.roc import null_auc_error, roc, shuffled, smallest_fpr, tpr_at

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=30).map(
    lambda values: np.array(values, dtype=np.float64)  # few values, so that most are tied
)


@given(SCORES, SCORES)
def test_auc_is_that_of_scikit_learn(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64]
) -> None:
    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    expected = roc_auc_score(labels, np.concatenate([members, nonmembers]))
    assert roc(members, nonmembers).auc == pytest.approx(expected, abs=1e-12)


@given(SCORES, SCORES, st.floats(0, 1))
def test_tpr_is_the_best_of_all_thresholds_within_the_fpr(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64], target: float
) -> None:
    (point,) = tpr_at(roc(members, nonmembers), [target])
    rules = [np.inf, *members, *nonmembers]
    assert point.tpr == max(
        (members >= t).mean() for t in rules if (nonmembers >= t).mean() <= target
    )
    assert point.tpr == (members >= point.threshold).mean()
    assert point.fpr == (nonmembers >= point.threshold).mean() <= target
    assert point.low <= point.tpr <= point.high


def test_a_group_of_equal_scores_enters_as_a_whole() -> None:
    curve = roc(np.array([2.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.0]))
    assert curve.fpr.tolist() == [0, 0, 0.25, 1]
    assert curve.tpr.tolist() == pytest.approx([0, 1 / 3, 1, 1])
    # Interpolation would give 2/3 at half the FPR of the tied group.
    assert [p.tpr for p in tpr_at(curve, [0.0, 0.125, 0.25])] == pytest.approx([1 / 3, 1 / 3, 1])


def test_fprs_that_the_sample_does_not_support_are_marked() -> None:
    rng = stream(1, "test")
    curve = roc(rng.normal(1, 1, 1000), rng.normal(size=5000))
    assert smallest_fpr(5000) == 0.002
    assert [p.supported for p in tpr_at(curve, [0.001, 0.002, 0.01])] == [False, True, True]


@given(st.integers(1, 60), st.data(), st.sampled_from([0.001, 0.025, 0.05]))
def test_limits_are_where_binomial_tails_have_alpha(
    n: int, data: st.DataObject, alpha: float
) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = float(below(hits, n, alpha)), float(above(hits, n, alpha))
    assert low == 0 if hits == 0 else stats.binom.sf(hits - 1, n, low) == pytest.approx(alpha)
    assert high == 1 if hits == n else stats.binom.cdf(hits, n, high) == pytest.approx(alpha)
    both = stats.binomtest(hits, n).proportion_ci(1 - 2 * alpha, method="exact")
    assert (low, high) == pytest.approx((both.low, both.high), abs=1e-12)


def test_shuffled_membership_has_an_auc_of_one_half() -> None:
    rng = stream(1, "test")
    members, nonmembers = rng.normal(3, 1, 80), rng.normal(0, 1, 120)
    assert roc(members, nonmembers).auc > 0.95
    aucs = [roc(*shuffled(members, nonmembers, rng)).auc for _ in range(1000)]
    error = null_auc_error(80, 120)
    assert abs(np.mean(aucs) - 0.5) < 4 * error / math.sqrt(1000)
    assert np.std(aucs) == pytest.approx(error, rel=0.1)
    one, other = shuffled(members, nonmembers, rng)
    assert (len(one), len(other)) == (80, 120)
    assert sorted([*one, *other]) == sorted([*members, *nonmembers])


@pytest.mark.parametrize("wrong", [[], [1.0, math.nan]])
def test_scores_that_are_none_are_refused(wrong: list[float]) -> None:
    for groups in ([1.0], wrong), (wrong, [1.0]):
        with pytest.raises(FedkdError, match="scores"):
            roc(*(np.array(scores, dtype=np.float64) for scores in groups))

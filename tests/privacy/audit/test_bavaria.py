"""The Bayesian attack: its prior is recovered, its prediction is right, and it beats LiRA."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.bavaria import Prior, bavaria, fit, predict
from privacy.audit.lira import coop_lira
from privacy.audit.signals import Doubles, moments
from worlds import auc, auc_error, world

TRUE = Prior(dof=6.0, variance=2.0)


def drawn(views: int, n: int) -> Doubles:
    """Signals [views, n] of targets whose variances follow TRUE, and whose means are anywhere."""
    draws = stream(1, "test", client=views)
    s2 = TRUE.dof * TRUE.variance / draws.chisquare(TRUE.dof, size=n)
    return draws.normal(draws.normal(scale=30, size=n), np.sqrt(s2), size=(views, n))


@pytest.mark.parametrize("views", [2, 4, 16])
def test_the_prior_is_found(views: int) -> None:
    found = fit(moments(drawn(views, 40_000)))
    assert found.dof == pytest.approx(TRUE.dof, rel=0.15)
    assert found.variance == pytest.approx(TRUE.variance, rel=0.05)


@pytest.mark.parametrize("n", [1, 3])
def test_the_prediction_is_the_integral(n: int) -> None:
    """Student's t against prior x likelihood, summed over a grid of means and variances."""
    seen, value = np.array([0.4, -2.0, 1.1])[:n], 2.5
    t = predict(TRUE, moments(seen[:, None]))

    mu = np.linspace(-40, 40, 4001)
    ln_s2 = np.linspace(-4, 8, 601)[:, None]
    s2 = np.exp(ln_s2)
    prior = stats.invgamma.pdf(s2, TRUE.dof / 2, scale=TRUE.dof * TRUE.variance / 2) * s2

    def likelihood(data: list[float]) -> float:
        densities = [stats.norm.pdf(each, mu, np.sqrt(s2)) for each in data]
        return float(np.sum(prior * np.prod(densities, axis=0)))  # times d mu d ln s2

    both, alone = likelihood([*seen, value]), likelihood([*seen])
    got = stats.t.pdf(value, t.dof[0], t.location[0], t.scale[0])
    assert got == pytest.approx(both / alone, rel=1e-3)


def test_non_members_scores_are_as_surprising_as_they_say() -> None:
    """-ln survival of a view drawn from the same law exceeds -ln q with probability q."""
    signals = drawn(5, 40_000)
    scores = bavaria(signals[0], signals[1:])
    for q in (0.5, 0.1, 0.01):
        error = 4 * np.sqrt(q * (1 - q) / 40_000)
        assert (scores > -np.log(q)).mean() == pytest.approx(q, abs=error + 0.05 * q)


def test_equal_variances_are_pooled() -> None:
    planted = world(shift=2, views=3)
    assert fit(moments(planted.references)).dof > 100
    pooled = auc(coop_lira(planted.target, planted.references), planted.member)
    got = auc(bavaria(planted.target, planted.references), planted.member)
    assert got == pytest.approx(pooled, abs=0.002)


@pytest.mark.parametrize("views", [2, 3, 5])
def test_unequal_variances_are_not(views: int) -> None:
    """Each target has noise of its own: better than one variance, and than each target's own."""
    draws = stream(2, "test")
    n = 20_000
    sd = np.exp(draws.normal(scale=0.7, size=n))
    member = draws.random(n) < 0.5
    signals = draws.normal(scale=30, size=n) + sd * draws.normal(size=(views + 1, n))
    signals[0] += 2 * member * sd
    by_prior = auc(bavaria(signals[0], signals[1:]), member)
    for spread in ("pooled", "per-target"):
        assert by_prior > auc(coop_lira(signals[0], signals[1:], spread=spread), member) + 0.001


def test_with_members_it_is_a_ratio() -> None:
    planted = world(shift=2, views=8, references_learn=True)
    ratio = auc(bavaria(planted.target, planted.references, planted.members), planted.member)
    best = stats.norm.cdf(2 / np.sqrt(2))  # means and variances known
    assert best - 0.06 < ratio < best + 4 * auc_error(planted.member)
    null = world(shift=0, views=8, references_learn=True)
    coin = auc(bavaria(null.target, null.references, null.members), null.member)
    assert coin == pytest.approx(0.5, abs=4 * auc_error(null.member))


def test_missing_references_are_no_evidence_and_one_is_some() -> None:
    references = stream(1, "test").normal(size=(3, 10))
    references[:, 0] = np.nan
    references[1:, 1] = np.nan
    scores = bavaria(np.zeros(10), references)
    assert np.isnan(scores).tolist() == [True] + [False] * 9
    with pytest.raises(FedkdError, match="no target has two references"):
        bavaria(np.zeros(3), np.zeros((1, 3)))

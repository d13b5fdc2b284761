"""Co-op LiRA and LiRA against loops in SciPy, planted worlds, and the slips of published code."""

from __future__ import annotations

import math
import statistics
from typing import Literal

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.lira import coop_lira, lira_offline, lira_online, log_survival_t
from privacy.audit.signals import Doubles, without
from worlds import World, auc, auc_error, world

Spread = Literal["pooled", "per-target", "student-t"]
SPREADS: tuple[Spread, ...] = ("pooled", "per-target", "student-t")


@pytest.fixture(scope="module")
def holed() -> World:
    """A small world in which references learn, answer or abstain at random."""
    small = world(shift=2, n=60, views=7, references_learn=True)
    gone = stream(3, "test").random((7, 60)) < 0.3
    return small._replace(references=np.where(gone, np.nan, small.references))


def columns(signals: Doubles) -> list[list[float]]:
    return [[v for v in column if not math.isnan(v)] for column in signals.T.tolist()]


def pooled_sd(groups: list[list[float]]) -> float:
    groups = [g for g in groups if g]
    squares = sum(sum((v - statistics.fmean(g)) ** 2 for v in g) for g in groups)
    return math.sqrt(squares / sum(len(g) - 1 for g in groups))


@pytest.mark.parametrize("spread", SPREADS)
def test_coop_is_the_loop(holed: World, spread: Spread) -> None:
    got = coop_lira(holed.target, holed.references, spread=spread)
    groups = columns(holed.references)
    for score, value, group in zip(got, holed.target, groups, strict=True):
        if len(group) < (1 if spread == "pooled" else 2):
            assert math.isnan(score)
            continue
        sd = pooled_sd(groups) if spread == "pooled" else statistics.stdev(group)
        z = (value - statistics.fmean(group)) / (sd * math.sqrt(1 + 1 / len(group)))
        slow = -stats.t.logsf(z, len(group) - 1) if spread == "student-t" else z
        assert score == pytest.approx(slow, rel=1e-9)


@pytest.mark.parametrize("fixed", [False, True])
def test_lira_is_the_loop(holed: World, fixed: bool) -> None:
    offline = lira_offline(holed.target, holed.references, holed.members, fixed=fixed)
    online = lira_online(holed.target, holed.references, holed.members, fixed=fixed)
    inside = columns(without(holed.references, ~holed.members))
    outside = columns(without(holed.references, holed.members))
    least = 1 if fixed else 2
    for i, value in enumerate(holed.target):
        if len(outside[i]) < least:
            assert math.isnan(offline[i])
            assert math.isnan(online[i])
            continue
        sd = pooled_sd(outside) if fixed else statistics.stdev(outside[i])
        out = stats.norm(statistics.median(outside[i]), sd)
        assert offline[i] == pytest.approx(-out.logsf(value), rel=1e-9)
        if len(inside[i]) < least:
            assert math.isnan(online[i])
            continue
        sd = pooled_sd(inside) if fixed else statistics.stdev(inside[i])
        slow = stats.norm(statistics.median(inside[i]), sd).logpdf(value) - out.logpdf(value)
        assert online[i] == pytest.approx(slow, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_a_planted_shift_gives_the_auc_that_it_must(shift: float) -> None:
    """Two normals `shift` apart: AUC = Phi(shift / (sqrt 2 s)); s of phi less the mean of 9."""
    planted = world(shift=shift)
    s = math.sqrt(1 + 1 / 9)
    expected = stats.norm.cdf(shift / (math.sqrt(2) * s))
    got = auc(coop_lira(planted.target, planted.references), planted.member)
    assert got == pytest.approx(expected, abs=4 * auc_error(planted.member))
    without_references = stats.norm.cdf(shift / (math.sqrt(2) * math.sqrt(1 + 9)))
    alone = auc(planted.target, planted.member)
    assert alone == pytest.approx(without_references, abs=4 * auc_error(planted.member))


def test_no_shift_is_a_coin() -> None:
    null = world(shift=0, references_learn=True)
    error = 4 * auc_error(null.member)
    scores = [coop_lira(null.target, null.references, spread=spread) for spread in SPREADS]
    for fixed in (False, True):
        scores += [
            lira_offline(null.target, null.references, null.members, fixed=fixed),
            lira_online(null.target, null.references, null.members, fixed=fixed),
        ]
    for found in scores:
        assert auc(found, null.member) == pytest.approx(0.5, abs=error)


def test_pooling_beats_own_variances_with_few_peers() -> None:
    few = world(shift=2, views=3)
    pooled, own = (
        auc(coop_lira(few.target, few.references, spread=spread), few.member)
        for spread in ("pooled", "per-target")
    )
    assert pooled > own + 0.01


def test_members_do_not_tie_where_a_float32_cdf_would() -> None:
    """Ten deviations away, as published: 1.0 for nearly all members, so no threshold is left."""
    sure = world(shift=10, n=2000)
    mean, sd = sure.references.mean(axis=0), sure.references.std(axis=0, ddof=1)
    published = torch.distributions.Normal(
        torch.from_numpy(mean).float(), torch.from_numpy(sd).float()
    ).cdf(torch.from_numpy(sure.target).float())
    members = sure.member
    assert (published.numpy()[members] == 1).mean() > 0.5
    for spread in SPREADS:
        scores = coop_lira(sure.target, sure.references, spread=spread)[members]
        assert len(np.unique(scores)) == members.sum()
    for fixed in (False, True):
        scores = lira_offline(sure.target, sure.references, fixed=fixed)[members]
        assert len(np.unique(scores)) == members.sum()


def test_offline_is_one_sided() -> None:
    """The published code ranks by density: less sure than all references counts as a member."""
    references = np.array([[-1.0, 0.0, 1.0]] * 2).T
    below, above = lira_offline(np.array([-5.0, 5.0]), references)
    middle = lira_offline(np.array([0.0, 0.0]), references)[0]
    assert below < middle < above
    two_sided = -stats.norm.logpdf([-5.0, 5.0, 0.0])
    assert two_sided[0] == two_sided[1] > two_sided[2]


def test_the_fixed_deviation_of_out_comes_from_out() -> None:
    """IN signals are steady here and OUT ones are not; the published code takes IN for both."""
    draws = stream(1, "test")
    members = np.zeros((40, 500), dtype=bool)
    members[:20] = True
    scale = np.where(members, 0.1, 3.0)
    references = np.where(members, 2.0, 0.0) + scale * draws.normal(size=members.shape)
    target = draws.normal(scale=3.0, size=500)
    got = lira_online(target, references, members, fixed=True)
    right, wrong = (
        stats.norm.logpdf(target, np.median(references[:20], axis=0), 0.1)
        - stats.norm.logpdf(target, np.median(references[20:], axis=0), sd)
        for sd in (3.0, 0.1)
    )
    assert np.median(np.abs(got / right - 1)) < 0.05
    assert np.median(np.abs(got / wrong - 1)) > 0.5


def test_the_fixed_deviation_is_that_within_targets() -> None:
    """Targets differ by 100 here, and a model's noise is 1: the fixed deviation is 1."""
    hard = world(shift=0, n=2000, difficulty=100)
    value = hard.references.mean(axis=0) + 3
    assert np.median(lira_offline(value, hard.references, fixed=True)) == pytest.approx(
        -stats.norm.logsf(3), rel=0.1
    )


def test_peers_that_all_say_the_same_do_not_divide_by_zero() -> None:
    references = np.full((5, 2), -69.0777)
    target = np.array([-69.0777, 0.0])
    for spread in SPREADS:
        same, above = coop_lira(target, references, spread=spread)
        assert abs(same) < 1
        assert np.isfinite(above)
        assert above > 10


def test_one_peer_has_no_spread() -> None:
    with pytest.raises(FedkdError, match=r"no target has two references.*rmia"):
        coop_lira(np.zeros(3), np.zeros((1, 3)))
    with pytest.raises(FedkdError, match="no target has two references"):
        lira_online(np.zeros(3), np.zeros((4, 3)), np.zeros((4, 3), dtype=bool))


@pytest.mark.parametrize("dof", [0.5, 1, 2, 8, 15, 100, 1e4])
def test_survival_of_t_in_the_tail(dof: float) -> None:
    """Against the incomplete beta function with 50 digits, around where the way changes."""
    near = min(math.sqrt(dof), 20) * np.array([0.9999, 1.0001])
    t = np.sort([-50.0, -1.0, 0.0, 0.5, 2.0, *near, 35.0, 60.0, 99.0, 300.0, 1e6, 1e12])
    got = log_survival_t(t, np.full(t.shape, dof))
    with mpmath.workdps(50):
        for value, score in zip(t, got, strict=True):
            x = dof / (mpmath.mpf(dof) + mpmath.mpf(float(value)) ** 2)
            upper = mpmath.betainc(mpmath.mpf(dof) / 2, 0.5, 0, x, regularized=True) / 2
            slow = mpmath.log(upper if value > 0 else 1 - upper)
            assert score == pytest.approx(float(slow), rel=1e-9, abs=1e-14)
    assert (np.diff(got) < 0).all()

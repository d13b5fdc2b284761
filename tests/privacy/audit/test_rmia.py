"""RMIA against the definition in a loop, at one reference, and where p is nearly 1 or 0."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy.special import expit

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.rmia import _log_reference, rmia
from privacy.audit.signals import Doubles
from worlds import auc, auc_error, world


def slow(
    target: Doubles, refs: Doubles, pop: Doubles, pop_refs: Doubles, a: float, gamma: float
) -> list[float]:
    def ratio(view: float, others: Doubles) -> float:
        p = [expit(v) for v in others if not math.isnan(v)]
        if not p:
            return math.nan
        return float(expit(view) / ((1 + a) / 2 * sum(p) / len(p) + (1 - a) / 2))

    of_z = [ratio(v, pop_refs[:, i]) for i, v in enumerate(pop)]
    of_z = [r for r in of_z if not math.isnan(r)]
    of_x = [ratio(v, refs[:, i]) for i, v in enumerate(target)]
    return [math.nan if math.isnan(x) else np.mean([x / z > gamma for z in of_z]) for x in of_x]


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize(("a", "gamma"), [(0.0, 1.0), (0.3, 1.0), (0.3, 2.0), (1.0, 0.5)])
def test_rmia_is_its_definition(views: int, a: float, gamma: float) -> None:
    draws = stream(1, "test", client=views)
    target, pop = draws.normal(size=50, scale=3), draws.normal(size=80, scale=3)
    refs, pop_refs = draws.normal(size=(views, 50)), draws.normal(size=(views, 80))
    for signals in (refs, pop_refs):
        signals[draws.random(signals.shape) < 0.2] = np.nan
    target[7] = pop[3] = np.nan
    got = rmia(target, refs, pop, pop_refs, a=a, gamma=gamma)
    np.testing.assert_allclose(got, slow(target, refs, pop, pop_refs, a, gamma), atol=1e-12)
    assert math.isnan(got[7])


@pytest.mark.parametrize("views", [1, 2, 9])
def test_one_reference_is_enough_and_more_are_better(views: int) -> None:
    planted = world(shift=3, views=views)
    public = world(shift=0, views=views, n=5000, seed=2)
    scores = rmia(planted.target, planted.references, public.target, public.references)
    assert auc(scores, planted.member) > auc(planted.target, planted.member) + 0.02
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_no_shift_is_a_coin() -> None:
    null, public = world(shift=0), world(shift=0, n=2000, seed=2)
    scores = rmia(null.target, null.references, public.target, public.references)
    assert auc(scores, null.member) == pytest.approx(0.5, abs=4 * auc_error(null.member))


def test_a_non_member_is_as_good_as_a_public_sample() -> None:
    """Ratios of both have the same law, so scores are uniform: the score is a p-value, reversed."""
    null, public = world(shift=0), world(shift=0, n=5000, seed=2)
    scores = rmia(null.target, null.references, public.target, public.references)
    for level in (0.5, 0.9, 0.99):
        assert (scores > level).mean() == pytest.approx(1 - level, abs=0.02)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("level", [-900.0, -40.0, -0.1, 0.1, 40.0, 60.0])
def test_reference_means_are_exact_at_both_ends(level: float, a: float) -> None:
    """p = 1 - 1e-26 is 1 in float64, p = e^-900 is 0; what is left out of 1 must still be there."""
    signals = level + np.array([0.0, 0.5, 1.0])
    with mpmath.workdps(450):
        p = [1 / (1 + mpmath.exp(-mpmath.mpf(float(v)))) for v in signals]
        exact = mpmath.log((1 + mpmath.mpf(a)) / 2 * mpmath.fsum(p) / 3 + (1 - mpmath.mpf(a)) / 2)
    assert _log_reference(signals[:, None], a)[0] == pytest.approx(float(exact), rel=1e-9)


def test_settings_and_population_are_checked() -> None:
    x, refs = np.zeros(2), np.zeros((1, 2))
    for setting in ({"a": -0.1}, {"a": 1.1}, {"gamma": 0.0}, {"a": math.nan}):
        with pytest.raises(FedkdError, match="0 <= a <= 1"):
            rmia(x, refs, x, refs, **setting)
    with pytest.raises(FedkdError, match="no public sample"):
        rmia(x, refs, x, refs * np.nan)


def test_a_tie_is_no_favour() -> None:
    """A target that the views treat as they treat every public sample is favoured over none."""
    x, refs = np.ones(3), np.zeros((2, 3))
    assert rmia(x, refs, x, refs).tolist() == [0, 0, 0]

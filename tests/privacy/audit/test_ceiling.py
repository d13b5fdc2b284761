"""The best TPR that a guarantee allows: closed forms, a likelihood ratio test, and attacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.gaussian_mechanism import get_sigma_gaussian
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedkd.rng import stream
from privacy.accounting import deltas, epsilon
from privacy.audit.ceiling import best_tpr, best_tpr_of
from privacy.audit.roc import roc
from privacy.events import Event, Gaussian, Laplace, Protects, Pure, SampledGaussian
from privacy.ledger import Release

RECORD = Protects("record", "add-remove")
FPRS = np.array([0, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 1])


def ledger(*events: Event) -> list[Release]:
    guarantee = "proved" if events else "none"
    return [
        Release(
            client=1,
            round=1,
            what="soft labels",
            rows=3,
            seen_by="server",
            guarantee=guarantee,
            events=events,
        )
    ]


def gaussian(multiplier: float, count: int = 1) -> Gaussian:
    return Gaussian(unit="record", relation="add-remove", noise_multiplier=multiplier, count=count)


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("count", [1, 4])
def test_gaussian_is_the_closed_form(mu: float, count: int) -> None:
    found = best_tpr_of(ledger(gaussian(math.sqrt(count) / mu, count)), RECORD, FPRS)
    exact = stats.norm.cdf(mu + stats.norm.ppf(FPRS))
    assert (found >= exact - 1e-14).all()
    np.testing.assert_allclose(found, exact, atol=2e-5)


def test_gaussian_beside_epsilon_alone_are_the_figures_of_the_reference() -> None:
    expected = {1: (0.0024, 0.0027), 2: (0.0048, 0.0074), 4: (0.0152, 0.055), 8: (0.077, 0.9997)}
    for eps, (tight, generic) in expected.items():
        entries = ledger(gaussian(get_sigma_gaussian(eps, 1e-5)))
        assert best_tpr_of(entries, RECORD, [0.001])[0] == pytest.approx(tight, rel=0.03)
        assert best_tpr([0.001], eps, 1e-5)[0] == pytest.approx(generic, rel=0.02)


def test_randomised_response_reaches_its_ceiling() -> None:
    loss = 1.5
    event = Pure(unit="record", relation="add-remove", epsilon=loss)
    found = best_tpr_of(ledger(event), RECORD, FPRS)
    np.testing.assert_allclose(found, best_tpr(FPRS, loss, 0.0), atol=1e-3)
    lie = 1 / (1 + math.exp(loss))
    exact = np.interp(FPRS, [0, lie, 1], [0, 1 - lie, 1])  # its only rules, and coins between them
    np.testing.assert_allclose(best_tpr(FPRS, loss, 0.0), exact, atol=1e-12)
    assert (found >= exact).all()


@pytest.mark.parametrize(("rate", "noise"), [(0.1, 0.8), (0.5, 1.5)])
def test_a_sampled_step_is_its_likelihood_ratio_test(rate: float, noise: float) -> None:
    event = SampledGaussian(unit="record", rate=rate, noise_multiplier=noise)
    found = best_tpr_of(ledger(event), RECORD, FPRS)
    threshold = noise * stats.norm.isf(FPRS)
    added = (1 - rate) * FPRS + rate * stats.norm.sf(threshold, 1, noise)
    # The other way round: calling the mixture's low values "without".
    cuts = np.linspace(-12, 12, 100_001)
    missed = (1 - rate) * stats.norm.cdf(cuts, 0, noise) + rate * stats.norm.cdf(cuts, 1, noise)
    removed = np.interp(FPRS, missed, stats.norm.cdf(cuts, 0, noise))
    exact = np.maximum(added, removed)
    assert (found >= exact - 1e-9).all()
    # The profile is of both ways at once, so between their curves it is their common tangent.
    np.testing.assert_allclose(found, exact, rtol=0.02, atol=1e-4)


def test_no_attack_does_better() -> None:
    rng = stream(1, "test")
    noise = 0.7
    curve = roc(rng.laplace(1, noise, 10**5), rng.laplace(0, noise, 10**5))
    event = Laplace(unit="record", relation="add-remove", noise_multiplier=noise)
    some = slice(None, None, 200)
    ceiling = best_tpr_of(ledger(event), RECORD, curve.fpr[some])
    error = 4 / math.sqrt(10**5)
    assert (curve.tpr[some] <= ceiling + error).all()
    assert (curve.tpr[some] >= ceiling - error).all()  # a threshold is the best rule here


def test_without_a_proof_anything_is_possible_and_with_no_release_nothing() -> None:
    assert (best_tpr_of(ledger(), RECORD, FPRS) == 1).all()
    assert (best_tpr_of(ledger(gaussian(1.0)), Protects("client", "replace"), FPRS) == 1).all()
    np.testing.assert_allclose(best_tpr_of([], RECORD, FPRS), FPRS, atol=1e-15)
    assert (best_tpr(FPRS, math.inf, 1e-5) == 1).all()
    np.testing.assert_allclose(best_tpr([0.0, 0.5], 900.0, 1e-5), [1e-5, 1])


@given(st.floats(0, 1), st.floats(0, 20), st.floats(0, 0.5))
def test_the_ceiling_is_above_chance_and_grows_with_epsilon_and_delta(
    fpr: float, eps: float, delta: float
) -> None:
    (found,) = best_tpr([fpr], eps, delta)
    assert fpr - 1e-12 <= found <= 1
    assert best_tpr([fpr], eps + 1, delta)[0] >= found - 1e-12
    assert best_tpr([fpr], eps, delta + 0.1)[0] >= found - 1e-12


STEPS = SampledGaussian(unit="record", rate=0.05, noise_multiplier=1.0, count=50)
LAPLACE = Laplace(unit="record", relation="add-remove", noise_multiplier=2.0, count=3)


@pytest.mark.parametrize("events", [(gaussian(0.8, 3),), (STEPS,), (STEPS, LAPLACE, gaussian(2.0))])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.01])
def test_the_profile_goes_through_the_epsilon_of_the_accountant(
    events: tuple[Event, ...], delta: float
) -> None:
    tight = epsilon(events, RECORD, delta).pld
    assert tight is not None
    assert deltas(events, RECORD, np.array([tight]))[0] == pytest.approx(delta, rel=1e-3)


def test_where_pld_cannot_answer_the_profile_is_that_of_rdp() -> None:
    events = (SampledGaussian(unit="record", rate=0.1, noise_multiplier=0.01, count=9),)
    spent = epsilon(events, RECORD, 1e-5)
    assert spent.pld is None
    found = deltas(events, RECORD, np.array([0.0, spent.rdp, 2 * spent.rdp]))
    assert found[0] == 1
    assert found[1] == pytest.approx(1e-5, rel=1e-6)
    assert found[2] < 1e-9


def test_a_pure_loss_has_no_delta_beyond_it() -> None:
    events = (Pure(unit="record", relation="add-remove", epsilon=0.5, count=2),)
    found = deltas(events, RECORD, np.array([0.0, 0.5, 1.0, 2.0]))
    assert found[1] > 0
    assert found[2:].tolist() == [0, 0]
    truth = 1 / (1 + math.exp(-0.5))
    assert found[0] == pytest.approx(truth**2 - (1 - truth) ** 2, abs=1e-3)

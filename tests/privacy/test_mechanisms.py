"""Noise has the claimed distribution, and every cost equals dp-accounting or a closed form."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import gaussian_mechanism
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from torch import Tensor

from fedkd import payload_answers
from fedkd.errors import FedkdError
from fedkd.payload_answers import Answer
from privacy.mechanisms import (
    Gaussian,
    HardLabels,
    Laplace,
    Noise,
    Noised,
    RandomisedResponse,
    TopOne,
    gaussian_epsilon,
)
from privacy.sensitivity import ClippedRows, SoftLabels

REPLACE = dp_accounting.NeighboringRelation.REPLACE_ONE
NOISES = [Gaussian(0.7), Laplace(0.4)]
LAWS = {Gaussian: stats.norm(scale=0.7), Laplace: stats.laplace(scale=0.4)}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fits(noise: Noise, seed: int) -> bool:
    """Is what the noise adds to 20,000 values its law, to a KS test at 1 in 1,000?"""
    values = torch.linspace(-1, 1, 20_000, dtype=torch.float64).reshape(2_000, 10)
    added = (noise.add(values, draws(seed)) - values).ravel().numpy()
    return bool(stats.kstest(added, LAWS[type(noise)].cdf).pvalue > 1e-3)


@pytest.mark.parametrize("noise", NOISES)
def test_the_noise_has_its_law(noise: Noise) -> None:
    assert fits(noise, 1)
    assert fits(noise, 2)


@pytest.mark.parametrize("noise", NOISES)
def test_the_check_fails_if_the_noise_is_off_or_weaker(
    noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(noise).add
    monkeypatch.setattr(
        type(noise),
        "add",
        lambda self, values, generator: (values + real(self, values, generator)) / 2,
    )
    assert not fits(noise, 1)
    monkeypatch.setattr(type(noise), "add", lambda self, values, generator: values)
    assert not fits(noise, 1)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("bound", [SoftLabels(3, 2), ClippedRows(2)])
def test_a_release_is_the_noised_bound_and_its_generator_decides(
    noise: Noise, bound: SoftLabels | ClippedRows
) -> None:
    mechanism, logits = Noised(bound, noise), 4 * torch.randn(50, 6, generator=draws(9))
    got = mechanism.release(logits, draws(1))
    expected = bound.tidy(noise.add(bound.apply(logits), draws(1)))
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(got, mechanism.release(logits, draws(1)))
    assert not torch.equal(got, mechanism.release(logits, draws(2)))


def passes_the_wire(values: Tensor) -> bool:
    n, c = values.shape
    answer = Answer(0, 1, np.arange(n, dtype=np.int32), values.numpy())
    blob = payload_answers.encode_answer(answer)
    payload_answers.decode_answer(blob, client=0, round_=1, n_samples=n, n_classes=c, simplex=True)
    return True


@pytest.mark.parametrize(
    "mechanism",
    [
        Noised(SoftLabels(), Gaussian(60)),
        Noised(SoftLabels(5, 3), Laplace(0.1)),
        HardLabels(SoftLabels(5, 3)),
        RandomisedResponse(1, 7),
        TopOne(),
    ],
)
def test_what_leaves_is_fit_for_the_wire(
    mechanism: Noised | HardLabels | RandomisedResponse | TopOne,
) -> None:
    logits = 5 * torch.randn(40, 7, generator=draws())
    values = mechanism.release(logits, draws())
    assert values.dtype == torch.float32
    assert values.shape == (40, 7)
    assert passes_the_wire(values)
    assert mechanism.release(logits[:0], draws()).shape == (0, 7)


# What it costs


@pytest.mark.parametrize(
    ("epsilon", "multiplier"),
    [(0.5, 7.03), (1, 3.73), (2, 1.99), (4, 1.08), (8, 0.600), (16, 0.344)],
)
def test_the_noise_multipliers_of_the_reference(epsilon: float, multiplier: float) -> None:
    """At delta = 1e-5; and by the definition of (epsilon, delta), from SciPy's normal alone."""
    sigma = Gaussian.calibrated(epsilon, 1e-5, 1).sigma
    assert sigma == pytest.approx(multiplier, abs=0.005 if multiplier > 1 else 0.0005)
    tail = stats.norm.cdf(0.5 / sigma - epsilon * sigma)
    delta = tail - math.exp(epsilon) * stats.norm.cdf(-0.5 / sigma - epsilon * sigma)
    assert delta == pytest.approx(1e-5, rel=1e-6)


def test_the_textbook_s_formula_would_be_too_small() -> None:
    textbook = math.sqrt(2 * math.log(1.25 / 1e-5)) / 16
    assert textbook == pytest.approx(0.303, abs=5e-4)
    assert gaussian_epsilon(1 / textbook, 1e-5) > 18


@pytest.mark.parametrize(
    ("epsilon", "clients", "rows", "std"),
    [
        (1, 1, 100, 52.8),
        (1, 1, 5_000, 373),
        (8, 1, 5_000, 60.0),
        (8, 50, 1_000, 0.54),
        (8, 250, 5_000, 0.24),
    ],
)
def test_the_noise_on_a_mean_over_clients(
    epsilon: float, clients: int, rows: int, std: float
) -> None:
    """The reference's table: plain soft labels, one client replaced, delta = 1e-5."""
    row = SoftLabels().sensitivity(2, "replace one client", 10)
    noise = Gaussian.calibrated(epsilon, 1e-5, row * math.sqrt(rows))
    assert noise.sigma / clients == pytest.approx(std, rel=0.02)
    event = Noised(SoftLabels(), noise).cost(rows, 10).event
    assert gaussian_mechanism.get_epsilon_gaussian(event.noise_multiplier, 1e-5) == pytest.approx(
        epsilon, abs=1e-6
    )


@given(
    sigma=st.floats(0.3, 50), rows=st.integers(1, 500), b=st.floats(0.5, 10), t=st.floats(0.5, 50)
)
@settings(deadline=None, max_examples=40)
def test_the_gaussian_release_costs_what_dp_accounting_says(
    sigma: float, rows: int, b: float, t: float
) -> None:
    """Row by row under its own composition, and by the closed form of Gaussian DP."""
    cost = Noised(SoftLabels(b, t), Gaussian(sigma)).cost(rows, 2)
    sensitivity = math.sqrt(2) * math.tanh(b / t)
    assert cost.sensitivity == pytest.approx(sensitivity, rel=1e-9)
    assert cost.pure_epsilon is None
    mu = math.sqrt(rows) * sensitivity / sigma
    assert cost.event.noise_multiplier == pytest.approx(1 / mu, rel=1e-9)
    if mu > 30:
        return
    epsilon = gaussian_epsilon(mu, 1e-5)
    if epsilon > 0:

        def excess(eps: float) -> float:
            other = math.exp(eps + stats.norm.logcdf(-eps / mu - mu / 2))
            return float(stats.norm.cdf(-eps / mu + mu / 2) - other - 1e-5)

        assert brentq(excess, 0, epsilon + 1, xtol=1e-12) == pytest.approx(epsilon, abs=1e-6)


def test_gaussian_rows_compose_as_dp_accounting_composes_them() -> None:
    mechanism = Noised(SoftLabels(), Gaussian(20))
    per_row = dp_accounting.GaussianDpEvent(20 / math.sqrt(2))
    one, many = (
        dp_accounting.rdp.RdpAccountant(neighboring_relation=REPLACE).compose(event, count)
        for event, count in ((mechanism.cost(300, 10).event, 1), (per_row, 300))
    )
    assert one.get_epsilon(1e-5) == pytest.approx(many.get_epsilon(1e-5), abs=1e-9)


def test_the_laplace_release_is_pure_and_its_event_says_so() -> None:
    mechanism = Noised(SoftLabels(5, 20), Laplace(0.5))
    cost = mechanism.cost(3, 10)
    row = 2 * math.tanh(0.25) / 0.5  # each row's epsilon
    assert cost.pure_epsilon == pytest.approx(3 * row, abs=1e-12)
    accountant = dp_accounting.pld.PLDAccountant().compose(cost.event)
    by_hand = pld.from_laplace_mechanism(1 / row).self_compose(3)
    assert accountant.get_epsilon(1e-5) == pytest.approx(
        by_hand.get_epsilon_for_delta(1e-5), abs=1e-6
    )
    assert accountant.get_epsilon(1e-5) <= cost.pure_epsilon + 1e-3


def test_one_long_laplace_step_dominates_the_same_length_in_two_values() -> None:
    """Why a row of many values may be charged as one Laplace mechanism at its L1 length."""
    one = pld.from_laplace_mechanism(1.0)
    for part in (0.1, 0.3, 0.5):
        two = pld.from_laplace_mechanism(1 / part).compose(
            pld.from_laplace_mechanism(1 / (1 - part))
        )
        for epsilon in (0.0, 0.2, 0.5, 0.8):
            assert two.get_delta_for_epsilon(epsilon) <= one.get_delta_for_epsilon(epsilon) + 2e-4


def test_calibrated_laplace_costs_its_epsilon() -> None:
    size = SoftLabels(5, 20).sensitivity(1, "replace one client", 10)
    noise = Laplace.calibrated(1.5, 7 * size)
    cost = Noised(SoftLabels(5, 20), noise).cost(7, 10)
    assert cost.pure_epsilon == pytest.approx(1.5, abs=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_adding_a_client_costs_less_than_replacing_it(noise: Noise) -> None:
    replaced = Noised(SoftLabels(), noise).cost(4, 10)
    added = Noised(SoftLabels(), noise, "add or remove one client").cost(4, 10)
    assert added.neighbours == "add or remove one client"
    assert replaced.neighbours == "replace one client"
    ratio = math.sqrt(2) if isinstance(noise, Gaussian) else 2
    assert replaced.sensitivity == pytest.approx(ratio * (added.sensitivity or 0))


@pytest.mark.parametrize("noise", NOISES)
def test_nothing_released_costs_nothing(noise: Noise) -> None:
    accountant = dp_accounting.pld.PLDAccountant(REPLACE)
    accountant.compose(Noised(SoftLabels(), noise).cost(0, 10).event)
    accountant.compose(HardLabels(SoftLabels(1)).cost(0, 10).event)
    accountant.compose(RandomisedResponse(1, 10).cost(0).event)
    assert accountant.get_epsilon(1e-5) == 0


# Labels


def frequencies(onehot: Tensor) -> NDArray[np.float64]:
    assert bool(((onehot == 0) | (onehot == 1)).all())
    assert bool((onehot.sum(1) == 1).all())
    return onehot.sum(0).double().numpy()


def test_a_drawn_label_has_the_probabilities_of_its_soft_label() -> None:
    labels = SoftLabels(2, 1.5)
    logits = torch.tensor([[5.0, 1.0, -3.0, 0.2]])
    counts = frequencies(HardLabels(labels).release(logits.expand(40_000, 4), draws()))
    assert stats.chisquare(counts, 40_000 * labels.apply(logits)[0].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("n_classes", [2, 10, 100])
@pytest.mark.parametrize("temperature", [1.0, 5.0, 20.0])
def test_a_drawn_label_costs_its_worst_ratio(n_classes: int, temperature: float) -> None:
    labels = SoftLabels(2.5, temperature)
    mechanism = HardLabels(labels)
    one = torch.full((1, n_classes), -9.0)
    one[0, 0] = 9
    p, q = labels.apply(one)[0], labels.apply(-one)[0]
    epsilon = mechanism.cost(1, n_classes).pure_epsilon
    assert epsilon is not None
    assert epsilon == pytest.approx(float((p / q).log().abs().max()), abs=1e-9)
    assert epsilon <= 4 * 2.5 / temperature + 1e-12
    assert mechanism.cost(7, n_classes).pure_epsilon == pytest.approx(7 * epsilon)
    # The event's delta at any epsilon is at least that of the mechanism itself.
    for eps in (0.0, 0.3 * epsilon, 0.9 * epsilon):
        itself = float((p - math.exp(eps) * q).clamp(min=0).sum())
        event = mechanism.cost(1, n_classes).event.event
        kept = 1 - event.noise_parameter + event.noise_parameter / 2
        assert kept / (1 - kept) == pytest.approx(math.exp(epsilon))
        assert itself <= kept - math.exp(eps) * (1 - kept) + 1e-12


def test_labels_of_logits_that_are_not_clipped_are_refused() -> None:
    with pytest.raises(FedkdError, match="only if logits are clipped"):
        HardLabels(SoftLabels(temperature=20))


@given(st.floats(1e-3, 30), st.integers(2, 100))
@settings(deadline=None, max_examples=60)
def test_randomised_response_tells_the_truth_as_often_as_it_should(
    epsilon: float, n_classes: int
) -> None:
    beta = RandomisedResponse(epsilon, n_classes).beta
    truth = beta + (1 - beta) / n_classes
    assert truth == pytest.approx(math.exp(epsilon) / (math.exp(epsilon) + n_classes - 1), rel=1e-9)


def test_randomised_response_draws_what_it_says() -> None:
    mechanism = RandomisedResponse(1.2, 5)
    logits = torch.tensor([[0.0, 0.0, 9.0, 1.0, 0.0]])
    counts = frequencies(mechanism.release(logits.expand(40_000, 5), draws(3)))
    truth = math.exp(1.2) / (math.exp(1.2) + 4)
    expected = 40_000 * np.where(np.arange(5) == 2, truth, (1 - truth) / 4)
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_no_epsilon_is_too_large_to_compute() -> None:
    mechanism = RandomisedResponse(900, 5)
    assert mechanism.beta == 1
    assert RandomisedResponse(20, 10).epsilon_after(100, 1e-5) == pytest.approx(2000, abs=1e-4)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 4.0])
def test_the_server_s_shares_are_unbiased(epsilon: float) -> None:
    """Over 60,000 clients within 4.5 standard errors of the truth, where raw means are not."""
    mechanism, clients = RandomisedResponse(epsilon, 4), 60_000
    shares = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
    truth = torch.repeat_interleave(torch.arange(4), (shares * clients).long())
    answers = mechanism.release(torch.eye(4)[truth], draws(5)).double()
    raw = answers.mean(0, keepdim=True)
    got = mechanism.unbias(raw)
    error = 4.5 * 0.5 / math.sqrt(clients) / mechanism.beta
    assert float((got - shares).abs().max()) < error
    assert float(got.sum()) == pytest.approx(1, abs=1e-9)
    assert float((raw - shares).abs().max()) > error


def test_unbiasing_is_exact_in_expectation() -> None:
    mechanism = RandomisedResponse(0.8, 3)
    b = mechanism.beta
    shares = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(mechanism.unbias(b * shares + (1 - b) / 3), shares)


def test_a_hundred_uses_cost_37_and_not_1() -> None:
    """dp-accounting 0.6 charges a count of randomised response once; its PLD by hand, all."""
    mechanism = RandomisedResponse(1.0, 10)
    got = mechanism.epsilon_after(100, 1e-5)
    assert got == pytest.approx(37.206, abs=1e-3)
    looped = pld.from_randomized_response(1 - mechanism.beta, 10).self_compose(100)
    assert got == pytest.approx(looped.get_epsilon_for_delta(1e-5), abs=1e-2)
    assert got <= looped.get_epsilon_for_delta(1e-5)
    renyi = dp_accounting.rdp.RdpAccountant(neighboring_relation=REPLACE)
    renyi.compose(mechanism.cost(100).event)
    assert got < renyi.get_epsilon(1e-5) < 50


@pytest.mark.parametrize(("uses", "epsilon"), [(10, 1.00), (100, 0.344), (1000, 0.114)])
def test_the_labels_that_a_budget_of_8_buys(uses: int, epsilon: float) -> None:
    got = RandomisedResponse(epsilon, 10).epsilon_after(uses, 1e-5)
    assert got == pytest.approx(8, rel=0.012)


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("uses", [1, 3, 8])
@pytest.mark.parametrize("delta", [1e-8, 1e-4, 0.05])
def test_composed_randomised_response_equals_brute_force(
    n_classes: int, uses: int, delta: float
) -> None:
    """Every outcome's probability under both neighbours, from SciPy's multinomial."""
    mechanism = RandomisedResponse(0.7, n_classes)
    e = math.exp(0.7)
    truth, lie = e / (e + n_classes - 1), 1 / (e + n_classes - 1)
    rest = max(0.0, 1 - truth - lie)
    outcomes = [(i, j, uses - i - j) for i in range(uses + 1) for j in range(uses + 1 - i)]
    p = stats.multinomial(uses, [truth, lie, rest]).pmf(outcomes)
    q = stats.multinomial(uses, [lie, truth, rest]).pmf(outcomes)

    def excess(epsilon: float) -> float:
        return float(np.maximum(p - math.exp(epsilon) * q, 0).sum()) - delta

    expected = brentq(excess, 0, uses * 0.7 + 1e-9, xtol=1e-12) if excess(0) > 0 else 0.0
    assert mechanism.epsilon_after(uses, delta) == pytest.approx(expected, abs=1e-6)


def test_a_delta_that_rounding_could_reach_is_refused() -> None:
    with pytest.raises(FedkdError, match="delta is out of range; got 0"):
        RandomisedResponse(1, 2).epsilon_after(3, 0)


def test_the_top_label_claims_nothing() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.9], [5.0, 1.0, 1.0]])
    assert TopOne().release(logits, draws()).tolist() == [[0, 1, 0], [1, 0, 0]]
    cost = TopOne().cost(1)
    assert cost.pure_epsilon is None
    accountant = dp_accounting.pld.PLDAccountant(REPLACE).compose(cost.event)
    assert accountant.get_epsilon(1e-5) == math.inf


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_noise_must_be_positive(bad: float) -> None:
    for make in (Gaussian, Laplace, lambda value: RandomisedResponse(value, 3)):
        with pytest.raises(FedkdError, match="must be positive; got"):
            make(bad)

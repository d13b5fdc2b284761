"""Budgets and events against dp-accounting and closed forms, noise by KS test, the public view."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting import LaplaceDpEvent, NonPrivateDpEvent, SelfComposedDpEvent
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.decomposition import PCA
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.summaries import (
    check_labels,
    gaussian_event,
    laplace,
    noise_multiplier,
    normal,
    pure_event,
    to_ball,
    view,
)
from small_digits import seeded

DELTA = 1e-5


def samples(seed: int, n: int, d: int) -> Tensor:
    return torch.rand(n, d, generator=seeded(seed))


# --- budgets ---


@given(st.floats(0.05, 20), st.sampled_from([1e-9, 1e-5, 1e-2]))
@settings(deadline=None, max_examples=30)
def test_the_multiplier_spends_exactly_epsilon(epsilon: float, delta: float) -> None:
    multiplier = noise_multiplier(epsilon, delta)
    assert get_epsilon_gaussian(multiplier, delta) == pytest.approx(epsilon, rel=1e-6)
    t = epsilon * multiplier  # Balle and Wang's equation 6, written out
    half = 1 / (2 * multiplier)
    spent = stats.norm.cdf(half - t) - math.exp(epsilon) * stats.norm.cdf(-half - t)
    assert spent == pytest.approx(delta, rel=1e-5)


def test_no_noise_is_no_privacy() -> None:
    assert noise_multiplier(math.inf, DELTA) == 0
    for event in (gaussian_event(0), pure_event(math.inf)):
        assert event == NonPrivateDpEvent()
        accountant = PLDAccountant()
        accountant.compose(event)
        assert accountant.get_epsilon(DELTA) == math.inf


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_a_pure_event_costs_what_randomised_response_does(epsilon: float) -> None:
    accountant = PLDAccountant()
    accountant.compose(pure_event(epsilon))
    assert accountant.get_epsilon(0) == pytest.approx(epsilon, abs=1e-6)
    assert accountant.get_delta(0) == pytest.approx(math.tanh(epsilon / 2), abs=1e-6)
    promised = PLDAccountant()
    promised.compose(LaplaceDpEvent(1 / epsilon))
    assert promised.get_delta(0) < accountant.get_delta(0) - 0.01  # why it is not a Laplace event


def test_pure_events_compose() -> None:
    """Against the binomial sum over how many of k binary randomised responses told the truth."""
    epsilon, k = 0.5, 6
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(pure_event(epsilon), k))
    truth = 1 / (1 + math.exp(-epsilon))
    for target in (0.0, 1.0, 2.0):
        delta = sum(
            stats.binom.pmf(i, k, truth) * max(0.0, 1 - math.exp(target - epsilon * (2 * i - k)))
            for i in range(k + 1)
        )
        assert accountant.get_delta(target) == pytest.approx(delta, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(FedkdError, match="epsilon"):
        noise_multiplier(epsilon, DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_delta_must_lie_between_0_and_1(delta: float) -> None:
    with pytest.raises(FedkdError, match="delta"):
        noise_multiplier(1.0, delta)


# --- noise ---


def test_normal_noise_is_normal() -> None:
    found = normal((200, 200), 2.5, seeded(0)).flatten().numpy()
    assert stats.kstest(found, stats.norm(scale=2.5).cdf).pvalue > 0.01
    assert stats.kstest(found, stats.norm(scale=2.4).cdf).pvalue < 0.01


def test_laplace_noise_is_laplace() -> None:
    found = laplace((200, 200), 2.5, seeded(0)).flatten().numpy()
    assert stats.kstest(found, stats.laplace(scale=2.5).cdf).pvalue > 0.01
    assert stats.kstest(found, stats.laplace(scale=2.3).cdf).pvalue < 0.01
    assert stats.pearsonr(found[1:], found[:-1]).pvalue > 0.01


# --- the public view ---


def test_the_view_is_scikit_learn_s_pca() -> None:
    proxy = samples(0, 300, 12) @ torch.diag(torch.linspace(3, 0.5, 12))
    seen = view(proxy, 4, cover=1.0).look(proxy)
    rival = PCA(4).fit_transform(proxy.double().numpy())
    np.testing.assert_allclose(seen.abs().numpy(), np.abs(rival), atol=1e-5)


@given(st.integers(0, 2**31), st.floats(0.1, 1.0), st.floats(0.01, 1e6))
@settings(deadline=None, max_examples=50)
def test_whatever_is_seen_lies_in_the_ball(seed: int, cover: float, scale: float) -> None:
    look = view(samples(seed, 30, 6), 3, cover)
    seen = look.look(scale * torch.randn(20, 6, generator=seeded(seed)))
    assert seen.norm(dim=1).max() <= look.radius * (1 + 1e-12)


def test_the_ball_holds_what_it_covers() -> None:
    proxy = samples(0, 1000, 6)
    look = view(proxy, 6, cover=0.9)
    moved = (proxy.double() - look.mean) @ look.axes
    assert (moved.norm(dim=1) <= look.radius).double().mean() == pytest.approx(0.9, abs=0.002)


def test_a_short_row_is_left_alone_and_a_long_one_keeps_its_direction() -> None:
    x = torch.tensor([[0.0, 0.0], [0.3, 0.4], [30.0, 40.0]]).double()
    expected = torch.tensor([[0.0, 0.0], [0.3, 0.4], [0.6, 0.8]]).double()
    torch.testing.assert_close(to_ball(x, 1.0), expected)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 5),
        torch.zeros(4),
        torch.full((1, 4), math.nan),
        torch.full((1, 4), math.inf),
    ],
)
def test_samples_that_do_not_fit_are_refused(x: Tensor) -> None:
    with pytest.raises(FedkdError, match="samples"):
        view(samples(0, 10, 4), 2).look(x)


@pytest.mark.parametrize(
    ("proxy", "n_axes", "cover"),
    [
        (torch.ones(5, 3), 2, 0.9),
        (torch.empty(0, 3), 2, 0.9),
        (samples(0, 5, 3), 4, 0.9),
        (samples(0, 5, 3), 0, 0.9),
        (samples(0, 5, 3), 2, 0.0),
        (torch.full((5, 3), math.nan), 2, 0.9),
    ],
)
def test_a_proxy_without_a_view_is_refused(proxy: Tensor, n_axes: int, cover: float) -> None:
    with pytest.raises(FedkdError):
        view(proxy, n_axes, cover)


@pytest.mark.parametrize(
    ("y", "n_classes"),
    [
        (torch.tensor([0, 2]), 2),
        (torch.tensor([-1, 0]), 2),
        (torch.tensor([0]), 2),
        (torch.tensor([0.0, 1.0]), 2),
        (torch.tensor([0, 0]), 0),
    ],
)
def test_labels_that_do_not_fit_are_refused(y: Tensor, n_classes: int) -> None:
    with pytest.raises(FedkdError):
        check_labels(torch.zeros(2, 3), y, n_classes)

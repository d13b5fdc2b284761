"""Swing: hotter where it is more private, and charged by what readers know of that."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.mechanisms import Gaussian, Laplace, Noise, gaussian_epsilon
from privacy.sensitivity import l1_sensitivity, l2_sensitivity
from privacy.swing import Swing, gaussian_mu, loss, rows

NOISES = [Gaussian(0.3), Laplace(0.2)]
ORIGINS = pytest.mark.parametrize("origin", ["public", "private"])
DEGREES = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def swing(origin: str = "public", noise: Noise | None = NOISES[0], **changes: float) -> Swing:
    return Swing(degrees=origin, noise=noise, **changes)  # type: ignore[arg-type]


@given(DEGREES, st.floats(0.5, 2), st.floats(2, 100), st.floats(0.2, 5))
@settings(deadline=None, max_examples=60)
def test_temperature_rises_from_t_min_to_t_max_with_the_degree(
    degrees: NDArray[np.float64], t_min: float, t_max: float, sharpness: float
) -> None:
    mechanism = swing(t_min=t_min, t_max=t_max, sharpness=sharpness)
    got = mechanism.temperatures(torch.from_numpy(np.sort(degrees))).numpy()
    logs = (1 - np.sort(degrees) ** sharpness) * np.log(t_min)
    logs += np.sort(degrees) ** sharpness * np.log(t_max)
    np.testing.assert_allclose(np.log(got), logs, atol=1e-9)
    assert (np.diff(got) >= -1e-9).all()
    ends = mechanism.temperatures(torch.tensor([0.0, 1.0]))
    np.testing.assert_allclose(ends, [t_min, t_max], rtol=1e-12)


def test_a_soft_label_is_scipy_s_softmax_of_what_was_clipped() -> None:
    logits = torch.tensor([[30.0, -30.0, 2.0], [1.0, 0.0, -1.0]])
    got = swing(bound=5, t_min=1, t_max=16).soften(logits, torch.tensor([0.5, 0.0]))
    np.testing.assert_allclose(got[0], softmax(np.array([5, -5, 2]) / 4), rtol=1e-12)
    np.testing.assert_allclose(got[1], softmax([1, 0, -1]), rtol=1e-12)


@ORIGINS
@given(DEGREES)
@settings(deadline=None, max_examples=30)
def test_a_weight_never_lets_the_noise_grow(origin: str, degrees: NDArray[np.float64]) -> None:
    d = torch.from_numpy(degrees)
    got = swing(origin).release(torch.zeros(len(d), 4), d, draws())
    assert bool((got.weights <= got.temperatures**-2 * (1 + 1e-12)).all())
    silent = swing(origin, None).release(torch.zeros(len(d), 4), d, draws())
    assert torch.equal(silent.weights, torch.ones(len(d), dtype=torch.float64))


@ORIGINS
@pytest.mark.parametrize("noise", NOISES)
def test_what_leaves_is_a_distribution_that_its_generator_decides(
    origin: str, noise: Noise
) -> None:
    logits, d = 9 * torch.randn(60, 5, generator=draws(3)), torch.linspace(0, 1, 60)
    mechanism = swing(origin, noise)
    got = mechanism.release(logits, d, draws(1))
    assert got.values.dtype == torch.float32
    assert bool((got.values >= 0).all())
    torch.testing.assert_close(got.values.sum(1), torch.ones(60))
    assert torch.equal(got.values, mechanism.release(logits, d, draws(1)).values)
    assert not torch.equal(got.values, mechanism.release(logits, d, draws(2)).values)


def moved(mechanism: Swing) -> bool:
    """Does a release differ from the soft label by about what its noise promises?

    At T so high that soft labels are uniform and noise so low that no value reaches 0, projecting
    only takes the mean off: what is left has (C-1)/C of the variance.
    """
    n, c = 4_000, 5
    got = mechanism.release(torch.zeros(n, c), torch.ones(n), draws()).values.double()
    assert isinstance(mechanism.noise, Gaussian)
    expected = mechanism.noise.sigma * math.sqrt((c - 1) / c)
    return abs(float((got - 1 / c).square().mean().sqrt()) / expected - 1) < 0.05


def test_the_noise_is_in_what_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = swing(noise=Gaussian(0.02))
    assert moved(mechanism)
    monkeypatch.setattr(Gaussian, "add", lambda self, values, generator: values)
    assert not moved(mechanism)


# What may be claimed


@pytest.mark.parametrize("kind", ["random", "extreme"])
@ORIGINS
def test_no_neighbour_moves_a_position_further_than_it_is_charged(origin: str, kind: str) -> None:
    """Private degrees change with the client too: the neighbour has its own."""
    mechanism = swing(origin, bound=3, t_min=1.5, t_max=30)
    generator, m = draws(5), 2_000
    if kind == "random":
        scale = 10 ** torch.linspace(-1, 2, m)[:, None]
        mine, theirs = scale * torch.randn(2, m, 4, generator=generator)
    else:
        mine = 99 * (torch.rand(m, 4, generator=generator) < 0.5).float()
        theirs = -mine
    d = torch.rand(m, generator=generator)
    other = torch.rand(m, generator=generator) if origin == "private" else d
    if origin == "private":
        d[:10], other[:10] = 0, 0
        mine[:10], theirs[:10] = torch.tensor([9.0, 9, -9, -9]), torch.tensor([-9.0, -9, 9, 9])
    far = mechanism.soften(mine, d) - mechanism.soften(theirs, other)
    told = mechanism.told(d)
    assert bool((far.abs().sum(1) <= l1_sensitivity(3, told) * (1 + 1e-9)).all())
    assert bool((far.norm(dim=1) <= l2_sensitivity(3, told, 4) * (1 + 1e-9)).all())
    if origin == "private":  # the charge at t_min is not only enough, it is needed
        assert float(far.abs().sum(1).max()) == pytest.approx(2 * math.tanh(2), rel=1e-9)
        own = swing(bound=3, t_min=1.5, t_max=30).told(d)
        assert not bool((far.abs().sum(1) <= l1_sensitivity(3, own) * (1 + 1e-9)).all())


@given(DEGREES, st.floats(0.05, 5), st.integers(2, 100))
@settings(deadline=None, max_examples=40)
def test_public_degrees_compose_exactly(
    degrees: NDArray[np.float64], sigma: float, n_classes: int
) -> None:
    """mu^2 is the sum over positions, by hand; for two classes it is the reference's formula."""
    d = torch.from_numpy(degrees)
    mechanism = swing(noise=Gaussian(sigma), bound=4)
    cost = mechanism.cost(d, n_classes)
    t = mechanism.temperatures(d)
    mu = gaussian_mu(4, t, torch.tensor(sigma, dtype=torch.float64), n_classes)
    simple = math.sqrt(sum(2 * math.tanh(4 / at) ** 2 / sigma**2 for at in t.tolist()))
    assert mu <= simple * (1 + 1e-12)
    if n_classes == 2:
        assert mu == pytest.approx(simple, rel=1e-9)
    assert cost.event.noise_multiplier == pytest.approx(1 / mu, rel=1e-9)
    assert cost.pure_epsilon is None
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(
        gaussian_mechanism.get_epsilon_gaussian(cost.event.noise_multiplier, 1e-5),
        rel=1e-9,
        abs=1e-6,
    )


def test_each_position_may_have_its_own_sigma() -> None:
    t = torch.tensor([1.0, 10.0], dtype=torch.float64)
    sigmas = torch.tensor([2.0, 0.5], dtype=torch.float64)
    expected = 2 * math.tanh(3) ** 2 / 4 + 2 * math.tanh(0.3) ** 2 / 0.25
    assert gaussian_mu(3, t, sigmas, 2) ** 2 == pytest.approx(expected, rel=1e-9)
    apart = [
        dp_accounting.GaussianDpEvent(1 / gaussian_mu(3, t[i : i + 1], sigmas[i : i + 1], 2))
        for i in range(2)
    ]
    together = dp_accounting.GaussianDpEvent(1 / gaussian_mu(3, t, sigmas, 2))
    pair, one = (dp_accounting.pld.PLDAccountant() for _ in range(2))
    pair.compose(apart[0]).compose(apart[1])
    one.compose(together)
    assert one.get_epsilon(1e-5) == pytest.approx(pair.get_epsilon(1e-5), abs=1e-3)


def test_laplace_positions_add_their_epsilons() -> None:
    d = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5])
    mechanism = swing(noise=Laplace(0.2), bound=5, t_min=1, t_max=100)
    cost = mechanism.cost(d, 10)
    expected = [2 * math.tanh(5 / t) / 0.2 for t in (1, 100, 100, 1, 10)]
    assert cost.pure_epsilon == pytest.approx(sum(expected), rel=1e-9)
    multipliers = [
        part.event.noise_multiplier for part in cost.event.events for _ in range(part.count)
    ]
    assert sorted(multipliers) == pytest.approx(sorted(1 / each for each in expected))


@given(DEGREES)
@settings(deadline=None, max_examples=30)
def test_private_degrees_change_neither_the_charge_nor_what_readers_are_told(
    degrees: NDArray[np.float64],
) -> None:
    d = torch.from_numpy(degrees)
    for noise in NOISES:
        mechanism = swing("private", noise)
        assert mechanism.cost(d, 10) == mechanism.cost(torch.zeros_like(d), 10)
        got = mechanism.release(torch.zeros(len(d), 10), d, draws())
        assert torch.equal(got.temperatures, torch.ones_like(d))
        assert torch.equal(got.weights, torch.ones_like(d))
        public, private = (
            swing(origin, noise).cost(d, 10).event for origin in ("public", "private")
        )
        if isinstance(noise, Gaussian):
            assert private.noise_multiplier <= public.noise_multiplier * (1 + 1e-12)


@ORIGINS
def test_without_noise_nothing_is_claimed(origin: str) -> None:
    cost = swing(origin, None).cost(torch.ones(5), 10)
    assert cost.pure_epsilon is None
    assert cost.sensitivity is None
    accountant = dp_accounting.pld.PLDAccountant().compose(cost.event)
    assert accountant.get_epsilon(1e-5) == math.inf


@pytest.mark.parametrize("noise", [*NOISES, None])
def test_no_position_is_no_release(noise: Noise | None) -> None:
    got = swing(noise=noise).release(torch.zeros(0, 4), torch.zeros(0), draws())
    assert got.values.shape == (0, 4)
    if noise is not None:
        accountant = dp_accounting.pld.PLDAccountant()
        accountant.compose(swing(noise=noise).cost(torch.zeros(0), 4).event)
        assert accountant.get_epsilon(1e-5) == 0


# What the student learns


def test_the_student_s_loss_is_the_weighted_kl_of_scipy() -> None:
    mechanism = swing(noise=None, t_min=1, t_max=9)
    swung = mechanism.release(
        torch.randn(6, 4, generator=draws(2)), torch.linspace(0, 1, 6), draws()
    )
    student = torch.randn(6, 4, generator=draws(7))
    t = swung.temperatures.numpy()
    q = softmax(student.numpy() / t[:, None], axis=1)
    kl = rel_entr(swung.values.double().numpy(), q).sum(1)
    assert loss(student, rows(swung)).tolist() == pytest.approx((t**2 * kl).tolist(), rel=1e-4)
    noised = swung._replace(weights=swung.temperatures**-2)
    assert loss(student, rows(noised)).tolist() == pytest.approx(kl.tolist(), rel=1e-4)


def test_a_student_that_learns_ends_at_the_target() -> None:
    swung = swing(noise=None, t_max=4).release(
        torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]]), torch.tensor([0.0, 1.0]), draws()
    )
    student = torch.zeros(2, 3, requires_grad=True)
    optimiser = torch.optim.Adam([student], lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        value: Tensor = loss(student, rows(swung)).mean()
        torch.autograd.backward(value)
        optimiser.step()
    got = torch.softmax(student.detach() / swung.temperatures[:, None].float(), 1)
    torch.testing.assert_close(got, swung.values, atol=1e-3, rtol=0)


@pytest.mark.parametrize("bad", [[-0.1], [1.1], [math.nan], [[0.5]]])
def test_degrees_must_be_degrees(bad: list[float]) -> None:
    with pytest.raises(FedkdError, match="degrees of privacy"):
        swing().temperatures(torch.tensor(bad))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(FedkdError, match=r"highest temperature is below the lowest; got 1\.0"):
        swing(t_min=2, t_max=1.0)
    with pytest.raises(FedkdError, match="gain nothing from a temperature"):
        swing(bound=math.inf)
    assert swing(noise=None, bound=math.inf).bound == math.inf

"""The distillation loss against SciPy, closed-form gradients, and the traps of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import Tensor

from fedkd.exchange.distill import DISTILLS, KL
from fedkd.exchange.release import RELEASES, Logits, Probabilities

TEMPERATURES = [0.5, 1.0, 4.0]
EVERY_T = pytest.mark.parametrize("temperature", TEMPERATURES)
LOGITS = hnp.arrays(np.float64, (3, 5), elements=st.floats(-30, 30))


def tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array)


def gradient(loss: KL, logits: NDArray[np.float64], target: NDArray[np.float64]) -> Tensor:
    student = tensor(logits).clone().requires_grad_()
    (found,) = torch.autograd.grad(loss.loss(student, tensor(target)).sum(), student)
    return found


@EVERY_T
@given(LOGITS, LOGITS)
@settings(deadline=None, max_examples=60)
def test_it_is_scipy_s_relative_entropy(
    temperature: float, student: NDArray[np.float64], teacher: NDArray[np.float64]
) -> None:
    target = softmax(teacher / temperature, axis=1)
    got = KL(temperature=temperature).loss(tensor(student), tensor(target))
    expected = temperature**2 * entropy(target, softmax(student / temperature, axis=1), axis=1)
    assert got.shape == (3,)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12)
    assert (got > -1e-12).all()  # bounded below, by Gibbs


@EVERY_T
def test_a_class_that_the_target_rules_out_costs_nothing(temperature: float) -> None:
    """0 log 0 = 0: a one-hot target gives the cross-entropy, without an epsilon anywhere."""
    logits = np.array([[2.0, -1.0, -300.0], [2.0, -1.0, -300.0]])
    target = np.eye(3)[[1, 2]]
    got = KL(temperature=temperature).loss(tensor(logits), tensor(target))
    expected = -(temperature**2) * log_softmax(logits / temperature, axis=1)[[0, 1], [1, 2]]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@EVERY_T
@given(LOGITS)
@settings(deadline=None, max_examples=60)
def test_it_is_zero_and_flat_at_the_teacher(
    temperature: float, teacher: NDArray[np.float64]
) -> None:
    loss, target = KL(temperature=temperature), softmax(teacher / temperature, axis=1)
    for shift in (0.0, 7.0):  # logits are free up to a constant
        got = loss.loss(tensor(teacher + shift), tensor(target))
        np.testing.assert_allclose(got, 0, atol=1e-10)
        np.testing.assert_allclose(gradient(loss, teacher + shift, target), 0, atol=1e-10)


@EVERY_T
def test_autograd_agrees_with_finite_differences_and_the_closed_form(temperature: float) -> None:
    draws = np.random.default_rng(0)
    student, teacher = draws.normal(size=(2, 4, 6), scale=2)
    loss, target = KL(temperature=temperature), softmax(teacher / temperature, axis=1)
    inputs = tensor(student).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss.loss(z, tensor(target)), inputs)
    expected = temperature * (softmax(student / temperature, axis=1) - target)
    np.testing.assert_allclose(gradient(loss, student, target), expected, rtol=1e-10, atol=1e-14)


def test_the_gradient_keeps_its_size_when_the_temperature_grows() -> None:
    """Hinton et al. 2015: for large T it tends to that of matching centred logits, (z - v) / C."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 4, 6))
    limit = (student - teacher) / 6
    limit -= limit.mean(axis=1, keepdims=True)
    for temperature, within in ((1e2, 3e-2), (1e4, 3e-4)):
        target = softmax(teacher / temperature, axis=1)
        got = gradient(KL(temperature=temperature), student, target)
        np.testing.assert_allclose(got, limit, atol=within * np.abs(limit).max())


@pytest.mark.parametrize("release", RELEASES)
@EVERY_T
@pytest.mark.parametrize("teacher", [(2.0, -1.0, -3.0), (0.3, 0.2, 0.1), (9.0, 9.0, -9.0)])
def test_the_minimum_is_at_the_teacher(
    release: str, temperature: float, teacher: tuple[float, ...]
) -> None:
    """HtFLlib's FD takes raw mean logits as class probabilities: -18, -36, -90, -360 here."""
    row: Probabilities | Logits = RELEASES[release](temperature=temperature)  # type: ignore[assignment,call-arg]
    loss = KL(temperature=temperature)
    logits = torch.tensor([teacher], dtype=torch.float64)
    target = row.target(row.release(logits))
    assert target.sum() == pytest.approx(1, abs=1e-12)
    scales = [-1.0, 0.0, 0.2, 0.5, 0.9, 1.0, 1.1, 2.0, 5.0, 20.0]
    losses = [float(loss.loss(scale * logits, target)) for scale in scales]
    at_teacher = scales.index(1.0)
    assert losses[at_teacher] == pytest.approx(0, abs=1e-12)
    steps = np.diff(losses)
    assert (steps[:at_teacher] < 0).all()
    assert (steps[at_teacher:] > 0).all()


@given(LOGITS, hnp.arrays(np.float64, (3, 5), elements=st.floats(-1, 1)))
@settings(deadline=None, max_examples=60)
def test_no_step_away_from_the_teacher_makes_it_smaller(
    teacher: NDArray[np.float64], step: NDArray[np.float64]
) -> None:
    target = softmax(teacher, axis=1)
    assert (KL().loss(tensor(teacher + step), tensor(target)) >= -1e-10).all()


@pytest.mark.parametrize("name", DISTILLS)
def test_far_logits_give_finite_losses_and_gradients(name: str) -> None:
    # The square of a logit of 1e30 is beyond float32.
    space = {"space": "probabilities"} if name == "mse" else {}
    loss: KL = DISTILLS[name](**space)  # type: ignore[assignment,arg-type]
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e30]], requires_grad=True)
    got = loss.loss(logits, torch.eye(3)[[1, 2]])
    (slope,) = torch.autograd.grad(got.sum(), logits)
    assert got.isfinite().all()
    assert slope.isfinite().all()


def test_samples_are_not_reduced_and_do_not_mix() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 4, generator=draws), torch.rand(6, 4, generator=draws)
    target /= target.sum(dim=1, keepdim=True)
    alone = torch.cat([KL().loss(logits[i : i + 1], target[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(KL().loss(logits, target), alone)

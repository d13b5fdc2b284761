"""Every objective against a slow oracle, finite differences, its limits and its least value."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize_scalar
from scipy.special import expit, logsumexp, rel_entr, softmax
from scipy.stats import entropy
from torch import Tensor

from fedkd.exchange.distill import DISTILLS, KL
from fedkd.exchange.objectives.base import FLOOR, Objective, forward_kl, reverse_kl
from fedkd.exchange.objectives.classes import DKD, NKD, BinaryKL, TopKLoss
from fedkd.exchange.objectives.divergences import (
    AdaptiveKL,
    Alpha,
    BalancedKL,
    CrossEntropy,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
)
from fedkd.exchange.objectives.values import L1, MSE, AdaptiveTemperature, Sinkhorn

Row = NDArray[np.float64]
Rows = NDArray[np.float64]
QUICK = settings(deadline=None, max_examples=20)
C = 5
LOGITS = hnp.arrays(np.float64, (3, C), elements=st.floats(-12, 12))
TEMPERATURES = st.sampled_from([0.5, 1.0, 3.0])


def js(p: Row, q: Row, beta: float) -> float:
    m = beta * p + (1 - beta) * q
    return float(beta * rel_entr(p, m).sum() + (1 - beta) * rel_entr(q, m).sum())


def akl(p: Row, q: Row, head: float) -> float:
    in_head, mass = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: (-p[i], i)):
        if mass < head:
            in_head.append(i)
        mass += p[i]
    gap = sum(abs(p[i] - q[i]) for i in range(len(p)))
    weight = sum(abs(p[i] - q[i]) for i in in_head) / gap if gap else 0.5
    return float(weight * rel_entr(p, q).sum() + (1 - weight) * rel_entr(q, p).sum())


def bd(p: Row, q: Row, balance: float) -> float:
    surer = entropy(q) < entropy(p)
    forward, reverse = rel_entr(p, q).sum(), rel_entr(q, p).sum()
    return float(balance * forward + reverse if surer else forward + balance * reverse)


def alpha(p: Row, q: Row, a: float) -> float:
    return (1 - sum(p[i] ** a * q[i] ** (1 - a) for i in range(len(p)))) / (a * (1 - a))


def without(row: Row, label: int) -> Row:
    rest = np.delete(row, label)
    return rest / rest.sum()


def nkd(p: Row, q: Row, gamma: float) -> float:
    t = int(p.argmax())
    others = sum(a * np.log(b) for a, b in zip(without(p, t), without(q, t), strict=True))
    return float(-p[t] * np.log(q[t]) - gamma * others)


def dkd(p: Row, q: Row, a: float, b: float) -> float:
    t = int(p.argmax())
    two = entropy([p[t], 1 - p[t]], [q[t], np.delete(q, t).sum()])
    return float(a * two + b * entropy(without(p, t), without(q, t)))


def top_k(p: Row, q: Row, k: int) -> float:
    order = np.argsort(-p, kind="stable")
    groups = [[i] for i in order[:k]] + [order[k:]]
    return float(sum(rel_entr(p[g].sum(), q[g].sum()) for g in groups))


def transport(p: Row, q: Row, epsilon: float) -> float:
    """The dual value of entropic transport by plain log-domain Sinkhorn on the whole matrix."""
    cost = 1 - np.eye(len(p))
    f, g = np.zeros(len(p)), np.zeros(len(p))
    for _ in range(60):
        f = -epsilon * logsumexp((g - cost) / epsilon, b=q, axis=1)
        g = -epsilon * logsumexp((f[:, None] - cost) / epsilon, b=p[:, None], axis=0)
    return float(p @ f + q @ g)


def sinkhorn(p: Row, q: Row, epsilon: float) -> float:
    return transport(p, q, epsilon) - (transport(p, p, epsilon) + transport(q, q, epsilon)) / 2


ORACLES: list[tuple[Objective, Callable[[Row, Row], float]]] = [
    (CrossEntropy(), lambda p, q: -sum(p * np.log(q))),
    (ReverseKL(), lambda p, q: entropy(q, p)),
    (JensenShannon(), lambda p, q: js(p, q, 0.5)),
    (JensenShannon(beta=0.2), lambda p, q: js(p, q, 0.2)),
    (SkewKL(skew=0.3), lambda p, q: entropy(p, 0.3 * p + 0.7 * q)),
    (SkewReverseKL(skew=0.3), lambda p, q: entropy(q, 0.3 * q + 0.7 * p)),
    (AdaptiveKL(), lambda p, q: akl(p, q, 0.5)),
    (AdaptiveKL(head=0.9), lambda p, q: akl(p, q, 0.9)),
    (BalancedKL(balance=3), lambda p, q: bd(p, q, 3)),
    (Alpha(alpha=0.3), lambda p, q: alpha(p, q, 0.3)),
    (NKD(gamma=0.7), lambda p, q: nkd(p, q, 0.7)),
    (DKD(alpha=2, beta=3), lambda p, q: dkd(p, q, 2, 3)),
    (TopKLoss(k=2), lambda p, q: top_k(p, q, 2)),
    (Sinkhorn(), lambda p, q: sinkhorn(p, q, 0.5)),
]
"""Objectives of a target p and of q, and the slow value at temperature 1 of one sample."""


@pytest.mark.parametrize(("row", "oracle"), ORACLES, ids=lambda v: getattr(v, "name", ""))
@given(z=LOGITS, v=LOGITS, t=TEMPERATURES)
@settings(deadline=None, max_examples=10)
def test_a_divergence_is_that_of_a_slow_loop(
    row: Objective, oracle: Callable[[Row, Row], float], z: Rows, v: Rows, t: float
) -> None:
    v = np.clip(v, -4, 4) * t  # no target below FLOOR
    v += 1e-3 * np.arange(C)  # no two the same, so that the order of classes is one
    p, q = softmax(v / t, axis=1), softmax(z / t, axis=1)
    got = row.model_copy(update={"temperature": t}).loss(torch.from_numpy(z), torch.from_numpy(p))
    assert got.shape == (3,)
    expected = [t**2 * oracle(*pair) for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)


@given(z=LOGITS, v=LOGITS, t=TEMPERATURES)
@QUICK
def test_numbers_are_compared_class_by_class(z: Rows, v: Rows, t: float) -> None:
    p, q = softmax(v / t, axis=1), softmax(z / t, axis=1)
    spaces = {
        "logits": (z - v, v),
        "log-probabilities": (t * (np.log(q) - np.log(np.maximum(p, FLOOR))), p),
        "probabilities": (t * (q - p), p),
    }
    for space, (gap, target) in spaces.items():
        pair = torch.from_numpy(z), torch.from_numpy(target)
        one = L1(space=space, temperature=t)  # type: ignore[arg-type]
        two = MSE(space=space, temperature=t)  # type: ignore[arg-type]
        assert one.raw == two.raw == (space == "logits")
        np.testing.assert_allclose(one.loss(*pair), abs(gap).mean(axis=1), rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(two.loss(*pair), (gap**2).mean(axis=1), rtol=1e-8, atol=1e-12)


@given(z=LOGITS, v=LOGITS, t=TEMPERATURES)
@QUICK
def test_each_class_is_a_question_of_its_own(z: Rows, v: Rows, t: float) -> None:
    p, q = expit(v / t), expit(z / t)
    each = abs(p - q) * (rel_entr(p, q) + rel_entr(1 - p, 1 - q))
    row, target = BinaryKL(temperature=t), torch.from_numpy(v)
    logits = torch.from_numpy(z).requires_grad_()
    got = row.loss(logits, target)
    np.testing.assert_allclose(got.detach(), t**2 * each.sum(axis=1), rtol=1e-5, atol=1e-7)
    (slope,) = torch.autograd.grad(got.sum(), logits)
    np.testing.assert_allclose(slope, t * abs(p - q) * (q - p), rtol=1e-8, atol=1e-10)
    assert row.raw


@given(z=LOGITS, v=LOGITS, t=TEMPERATURES, strength=st.sampled_from([0.2, 1.0, 10.0]))
@settings(deadline=None, max_examples=20)
def test_the_temperature_of_a_sample_is_the_least_one(
    z: Rows, v: Rows, t: float, strength: float
) -> None:
    row, p = AdaptiveTemperature(strength=strength, temperature=t), softmax(v, axis=1)
    got = row.loss(torch.from_numpy(z), torch.from_numpy(p))
    for sample, value in enumerate(got.tolist()):

        def cost(s: float, k: int = sample) -> float:
            soft = s * (logsumexp(z[k] / s) - np.log(C)) - p[k] @ z[k]
            return float(soft + strength / 2 * (s - t) ** 2)

        found = minimize_scalar(cost, bounds=(t, t + np.log(C) / strength), method="bounded")
        assert value / t == pytest.approx(min(found.fun, cost(t)), rel=1e-5, abs=1e-5)
    strong = AdaptiveTemperature(strength=1e9, temperature=t)
    plain = CrossEntropy(temperature=t).loss(torch.from_numpy(z), torch.from_numpy(p))
    limit = plain - t**2 * np.log(C)
    torch.testing.assert_close(strong.loss(torch.from_numpy(z), torch.from_numpy(p)), limit)


FLAT = {"bckd", "akl"}
"""Their weights have no gradient, so finite differences of the value are not theirs."""
EACH = [cls() for name, cls in DISTILLS.items() if name not in FLAT]
WHOLE = [L1(space="probabilities"), MSE(space="log-probabilities")]


@pytest.mark.parametrize("row", [*EACH, *WHOLE], ids=lambda row: row.name)
@pytest.mark.parametrize("temperature", [0.7, 3.0])
def test_autograd_agrees_with_finite_differences(row: Objective, temperature: float) -> None:
    draws = np.random.default_rng(0)
    z, v = torch.from_numpy(draws.normal(size=(2, 4, 6), scale=2))
    row = row.model_copy(update={"temperature": temperature})
    target = v if row.raw else torch.softmax(v / temperature, dim=1)
    assert torch.autograd.gradcheck(lambda x: row.loss(x, target), z.clone().requires_grad_())


@given(z=LOGITS, v=LOGITS)
@QUICK
def test_the_weights_of_adaptive_kl_have_no_gradient(z: Rows, v: Rows) -> None:
    log_q = torch.from_numpy(z).log_softmax(dim=1)
    p = torch.from_numpy(v).softmax(dim=1)
    weight = AdaptiveKL().weight(log_q, p)
    assert bool(((weight >= 0) & (weight <= 1)).all())

    def slope(loss: Callable[[Tensor], Tensor]) -> Tensor:
        logits = torch.from_numpy(z).clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(logits).sum(), logits)
        return found

    forward = slope(lambda x: forward_kl(x.log_softmax(dim=1), p))
    reverse = slope(lambda x: reverse_kl(x.log_softmax(dim=1), p))
    expected = weight[:, None] * forward + (1 - weight[:, None]) * reverse
    torch.testing.assert_close(slope(lambda x: AdaptiveKL().loss(x, p)), expected)


AT_LEAST_ZERO = [
    cls() for name, cls in DISTILLS.items() if name not in {"ce", "nkd", "aldr-kl", "top-k"}
] + WHOLE


@pytest.mark.parametrize("row", AT_LEAST_ZERO, ids=lambda row: row.name)
@given(z=LOGITS, v=hnp.arrays(np.float64, (3, C), elements=st.floats(-6, 6)), t=TEMPERATURES)
@settings(deadline=None, max_examples=10)
def test_nothing_is_below_the_teacher_which_costs_nothing(
    row: Objective, z: Rows, v: Rows, t: float
) -> None:
    row = row.model_copy(update={"temperature": t})
    v = v * min(t, 1.0)
    target = torch.from_numpy(v if row.raw else softmax(v / t, axis=1))
    assert bool((row.loss(torch.from_numpy(z), target) >= -1e-8).all())
    at_teacher = row.loss(torch.from_numpy(v), target)
    np.testing.assert_allclose(at_teacher, 0, atol=1e-8)


@given(z=LOGITS, v=LOGITS)
@QUICK
def test_what_the_rows_tend_to(z: Rows, v: Rows) -> None:
    logits = torch.from_numpy(z / 3)
    p = torch.from_numpy(softmax(v / 3, axis=1))
    kl, reverse = KL().loss(logits, p), ReverseKL().loss(logits, p)
    near = {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(JensenShannon(beta=1e-5).loss(logits, p) / 1e-5, kl, **near)
    torch.testing.assert_close(JensenShannon(beta=1 - 1e-5).loss(logits, p) / 1e-5, reverse, **near)
    torch.testing.assert_close(SkewKL(skew=1e-6).loss(logits, p), kl, **near)
    torch.testing.assert_close(SkewReverseKL(skew=1e-6).loss(logits, p), reverse, **near)
    torch.testing.assert_close(Alpha(alpha=1 - 1e-6).loss(logits, p), kl, **near)
    torch.testing.assert_close(Alpha(alpha=1e-6).loss(logits, p), reverse, **near)
    torch.testing.assert_close(BalancedKL(balance=1).loss(logits, p), kl + reverse)
    for k in (C - 1, C, 99):
        torch.testing.assert_close(TopKLoss(k=k).loss(logits, p), kl)
    for k in range(1, C):
        assert bool((TopKLoss(k=k).loss(logits, p) <= kl + 1e-12).all())


@given(z=LOGITS, v=LOGITS)
@QUICK
def test_kl_is_its_decoupled_parts(z: Rows, v: Rows) -> None:
    """Zhao et al. 2022: KL = TCKD + (1 - p_t) NCKD."""
    logits, p = torch.from_numpy(z), torch.from_numpy(softmax(v, axis=1))
    two = DKD(alpha=1, beta=0).loss(logits, p)
    rest = DKD(alpha=0, beta=1).loss(logits, p)
    whole = two + (1 - p.max(dim=1).values) * rest
    torch.testing.assert_close(whole, KL().loss(logits, p), rtol=1e-6, atol=1e-8)


def test_with_little_blur_sinkhorn_is_optimal_transport() -> None:
    p, z = np.array([0.7, 0.2, 0.1, 0.0]), np.array([0.0, 1.0, 2.0, -1.0])
    q, cost = softmax(z), (1 - np.eye(4)).ravel()
    sums = [np.kron(np.eye(4), np.ones(4)), np.kron(np.ones(4), np.eye(4))]
    exact = linprog(cost, A_eq=np.vstack(sums), b_eq=np.concatenate([p, q])).fun
    pair = torch.from_numpy(z)[None], torch.from_numpy(p)[None]
    far = [
        abs(float(Sinkhorn(epsilon=epsilon, iterations=2000).loss(*pair)) - exact)
        for epsilon in (0.4, 0.2, 0.1)
    ]
    print(far, exact)
    assert far == sorted(far, reverse=True)
    assert far[-1] < 0.1 * exact
    variation = L1(space="probabilities").loss(*pair) * 4 / 2
    assert float(variation) == pytest.approx(exact, rel=1e-9)


def test_twenty_iterations_are_enough_of_sinkhorn() -> None:
    """The bound of its docstring, for the distributions that are furthest apart."""
    rows = torch.tensor([[40.0, 0, 0, 0], [40.0, 0, 0, 0]]).double(), torch.eye(4)[1:3].double()
    got, limit = (Sinkhorn(iterations=n).loss(*rows) for n in (20, 2000))
    torch.testing.assert_close(got, limit, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("row", [cls() for cls in DISTILLS.values()], ids=lambda row: row.name)
def test_samples_stand_alone_and_classes_have_no_order(row: Objective) -> None:
    draws = torch.Generator().manual_seed(3)
    z = torch.randn(6, C, generator=draws).double()
    target = torch.softmax(torch.randn(6, C, generator=draws).double(), dim=1)
    whole = row.loss(z, target)
    alone = torch.cat([row.loss(z[i : i + 1], target[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(whole, alone)
    order = torch.randperm(C, generator=draws)
    torch.testing.assert_close(row.loss(z[:, order], target[:, order]), whole)


@pytest.mark.parametrize("row", [cls() for cls in DISTILLS.values()], ids=lambda row: row.name)
def test_learning_comes_near_to_the_teacher(row: Objective) -> None:
    """By the top class at least; those whose least value is the teacher, by its distribution."""
    v = torch.tensor([[2.0, 0.5, -1.0, 0.0], [-1.0, 0.0, 0.5, 1.5]])
    target = v if row.raw else torch.softmax(v, dim=1)
    z = torch.zeros(2, 4, requires_grad=True)
    steps = torch.optim.Adam([z], lr=0.03)
    for _ in range(400):
        steps.zero_grad()
        row.loss(z, target).sum().backward()  # type: ignore[no-untyped-call]
        steps.step()
    got = z.detach()
    assert torch.equal(got.argmax(dim=1), v.argmax(dim=1))
    if row.name not in {"nkd", "aldr-kl"}:
        torch.testing.assert_close(got.softmax(dim=1), v.softmax(dim=1), rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations([cls() for cls in DISTILLS.values()], 2))
)
def test_no_two_rows_are_one(first: Objective, second: Objective) -> None:
    """Slopes, since a constant teaches nothing; `ce` and `kl` do differ by that alone."""
    if {first.name, second.name} == {"ce", "kl"}:
        return
    v = torch.tensor([[1.0, -2.0, 0.5, 0.25, -0.5, 1.5, 0.0]]).double()

    def slope(row: Objective) -> Tensor:
        z = torch.tensor([[0.3, 0.1, -0.4, 1.2, 0.8, -1.0, 0.6]]).double().requires_grad_()
        target = v if row.raw else v.softmax(dim=1)
        (found,) = torch.autograd.grad(row.loss(z, target).sum(), z)
        return found

    assert not torch.allclose(slope(first), slope(second), rtol=1e-3, atol=1e-6)

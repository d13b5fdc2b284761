"""Confident-GNMax answers as its noise decides, and costs PATE's data-independent Renyi DP."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fedkd.errors import FedkdError
from privacy.gnmax import ConfidentGNMax
from privacy.mechanisms import Gaussian

ORDERS = [1.5, 2, 3, 5, 8, 16, 32, 64]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    s1=st.floats(0.5, 200),
    s2=st.floats(0.5, 200),
    queries=st.integers(1, 1000),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_the_cost_is_pate_s_renyi_bound(s1: float, s2: float, queries: int, share: float) -> None:
    answered = int(share * queries)
    cost = ConfidentGNMax(200, s1, s2).cost(queries, answered)
    accountant = RdpAccountant(ORDERS).compose(cost.event)
    for order, got in zip(ORDERS, accountant._rdp, strict=True):
        expected = queries * order / (2 * s1**2) + answered * order / s2**2
        assert got == pytest.approx(expected, rel=1e-9)


def test_the_authors_setting_for_mnist_costs_what_their_formula_gives() -> None:
    """250 teachers, T = 200, 150 and 40, 640 queries, delta 1e-5, all answered."""
    cost = ConfidentGNMax(200, 150, 40).cost(640, 640)
    mu = math.sqrt(640 * (1 / 150**2 + 2 / 40**2))
    assert cost.event.noise_multiplier == pytest.approx(1 / mu, rel=1e-12)
    assert cost.neighbours == "replace one client"
    assert cost.pure_epsilon is None


def test_one_client_replaced_moves_votes_by_sqrt_2_at_most_and_the_top_by_1() -> None:
    """Random and extreme clients, hard and soft; the extreme pair attains both."""
    generator = draws(1)
    worst_sum, worst_top = 0.0, 0.0
    for scale in (0.1, 1.0, 10.0, 1000.0):
        for _ in range(200):
            others = 5 * torch.rand(10, generator=generator)
            p, q = torch.softmax(scale * torch.randn(2, 10, generator=generator), 1)
            worst_sum = max(worst_sum, float((p - q).norm()))
            worst_top = max(worst_top, abs(float((others + p).max() - (others + q).max())))
    assert worst_sum <= math.sqrt(2) + 1e-6
    assert worst_top <= 1 + 1e-6
    assert worst_sum > 1.41
    one, other = torch.eye(10)[:2]
    assert float((5 * one + one).max() - (5 * one + other).max()) == 1


def test_adding_a_client_costs_less() -> None:
    replaced = ConfidentGNMax(5, 3, 2).cost(7, 4).event.noise_multiplier
    added = ConfidentGNMax(5, 3, 2, "add or remove one client").cost(7, 4).event.noise_multiplier
    assert added == pytest.approx((7 / 9 + 4 / 4) ** -0.5)
    assert replaced == pytest.approx((7 / 9 + 2 * 4 / 4) ** -0.5)


@pytest.mark.parametrize("soft", [False, True])
def test_answers_are_as_frequent_as_the_noise_makes_them(soft: bool) -> None:
    votes = torch.tensor([3.0, 2.25, 0.5] if soft else [3.0, 2.0, 1.0])
    n, mechanism = 30_000, ConfidentGNMax(3.5, 1.5, 0.8)
    got = mechanism.release(votes.expand(n, 3), draws(2))
    clear = stats.norm.sf(3.5, loc=3, scale=1.5)
    assert stats.binomtest(len(got.rows), n, clear).pvalue > 1e-3

    def wins(row: int) -> float:
        rivals = [float(v) for i, v in enumerate(votes) if i != row]
        law = stats.norm(scale=0.8)
        found, _ = integrate.quad(
            lambda x: law.pdf(x - float(votes[row])) * np.prod([law.cdf(x - r) for r in rivals]),
            -10,
            15,
        )
        return float(found)

    expected = np.array([wins(row) for row in range(3)])
    counts = np.bincount(got.labels.numpy(), minlength=3)
    assert stats.chisquare(counts, len(got.labels) * expected / expected.sum()).pvalue > 1e-3


def test_without_its_noise_it_would_answer_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = torch.tensor([3.0, 2.0, 1.0]).expand(2_000, 3)
    mechanism = ConfidentGNMax(3.5, 1.5, 0.8)
    real = mechanism.release(votes, draws())
    assert 0 < len(real.rows) < 2_000
    assert len(real.labels.unique()) > 1
    monkeypatch.setattr(Gaussian, "add", lambda self, values, generator: values)
    assert len(mechanism.release(votes, draws()).rows) == 0


def test_clear_votes_are_answered_and_unclear_ones_are_not() -> None:
    votes = torch.tensor([[200.0, 1, 0], [70, 66, 65], [0, 0, 201]])
    got = ConfidentGNMax(150, 3, 3).release(votes, draws())
    assert got.rows.tolist() == [0, 2]
    assert got.labels.tolist() == [0, 2]
    again = ConfidentGNMax(150, 3, 3).release(votes, draws())
    assert torch.equal(got.rows, again.rows)


def test_no_query_costs_nothing() -> None:
    got = ConfidentGNMax(5, 3, 3).release(torch.zeros(0, 4), draws())
    assert len(got.rows) == len(got.labels) == 0
    event = ConfidentGNMax(5, 3, 3).cost(0, 0).event
    assert isinstance(event, dp_accounting.NoOpDpEvent)


def test_votes_must_be_votes_and_noise_noise() -> None:
    with pytest.raises(FedkdError, match="votes are sums of distributions"):
        ConfidentGNMax(5, 3, 3).release(torch.tensor([[1.0, -0.1]]), draws())
    with pytest.raises(FedkdError, match="sigma_threshold must be positive"):
        ConfidentGNMax(5, 0, 3)
    with pytest.raises(FedkdError, match="sigma must be positive"):
        ConfidentGNMax(5, 3, 0)

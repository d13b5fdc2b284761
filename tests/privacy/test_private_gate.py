"""Private thresholds: the exponential mechanism against brute force, privacy by exact densities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.exchange.gate import Quantile, share
from privacy import private_gate as module
from privacy.private_gate import held_out, private_quantile, private_scores

LOW, HIGH, BINS = -2.0, 3.0, 400
SCORES = st.lists(st.floats(-3, 4), max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def density(scores: Tensor, q: float, epsilon: float) -> np.ndarray:
    """The mechanism's density on a fine grid, from its definition: [BINS] at the middles."""
    t = LOW + (np.arange(BINS) + 0.5) * (HIGH - LOW) / BINS
    below = (scores.clamp(LOW, HIGH).numpy()[None] < t[:, None]).sum(1)
    weight = np.exp(-epsilon * np.abs(below - q * len(scores)) / (2 * max(q, 1 - q)))
    return weight / weight.sum()


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("epsilon", [0.3, 2.0])
@pytest.mark.parametrize("m", [0, 1, 7])
def test_draws_follow_the_definition(q: float, epsilon: float, m: int) -> None:
    # Scores on the edges of the fine grid, so that its density is exact.
    edges = torch.linspace(LOW, HIGH, BINS + 1, dtype=torch.float64)
    scores = edges[torch.randint(BINS + 1, (m,), generator=seeded(m))]
    generator = seeded(1)
    drawn = [private_quantile(scores, q, LOW, HIGH, epsilon, generator) for _ in range(1000)]
    cumulative = np.concatenate([[0], density(scores, q, epsilon).cumsum()])
    found = stats.kstest(drawn, lambda t: np.interp(t, edges.numpy(), cumulative))
    assert found.pvalue > 0.001
    if epsilon == 2.0 and m == 7:
        wrong = np.concatenate([[0], density(scores, q, epsilon / 4).cumsum()])
        assert stats.kstest(drawn, lambda t: np.interp(t, edges.numpy(), wrong)).pvalue < 0.001


@given(SCORES, st.floats(-3, 4), st.floats(0, 1), st.floats(0.01, 5))
@settings(deadline=None, max_examples=300)
def test_no_neighbour_is_told_apart_by_more_than_epsilon(
    scores: Tensor, more: float, q: float, epsilon: float
) -> None:
    """Brute force over neighbours: of the definition that the draws above follow."""
    grown = torch.cat([scores, scores.new_tensor([more])])
    loss = np.log(density(grown, q, epsilon) / density(scores, q, epsilon))
    assert np.abs(loss).max() <= epsilon + 1e-9


def test_epsilon_is_reached() -> None:
    """So half the exponent's divisor would be a broken promise."""
    scores = torch.tensor([LOW] * 20 + [HIGH - 0.1] * 22).double()
    grown = torch.cat([scores, scores.new_tensor([LOW])])
    loss = np.log(density(grown, 0.5, 1.0) / density(scores, 0.5, 1.0))
    assert np.abs(loss).max() == pytest.approx(1, abs=0.01)


@given(SCORES.filter(len), st.floats(0, 1), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_without_noise_it_is_a_best_quantile(scores: Tensor, q: float, seed: int) -> None:
    t = private_quantile(scores, q, LOW, HIGH, math.inf, seeded(seed))
    clamped = scores.clamp(LOW, HIGH)
    candidates = torch.cat([clamped, clamped.new_tensor([LOW, HIGH])]).unique()
    middles = (candidates[1:] + candidates[:-1]) / 2
    best = min(abs(int((clamped < at).sum()) - q * len(scores)) for at in middles.tolist())
    assert abs(int((clamped < t).sum()) - q * len(scores)) == pytest.approx(best)


def test_many_scores_leave_little_doubt() -> None:
    scores = torch.randn(5000, generator=seeded(0))
    found = [private_quantile(scores, 0.9, -9, 9, 1.0, seeded(seed)) for seed in range(50)]
    assert np.std(found) > 0
    assert np.abs(np.array(found) - float(scores.quantile(0.9))).max() < 0.05


# --- the histogram ---


def test_without_noise_the_scores_come_back_at_the_edges() -> None:
    scores = torch.tensor([-5.0, 0.0, 0.1, 0.9, 1.0, 1.5, 7.0])
    edges = torch.tensor([0.0, 1.0, 2.0])
    found = private_scores(scores, edges, math.inf, seeded(0))
    assert found.tolist() == [1.0] * 5 + [2.0] * 2


def test_each_count_has_laplace_noise_of_one_over_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(below: np.ndarray, y_min: float) -> np.ndarray:
        seen.append(np.diff(below, prepend=0))
        return np.maximum.accumulate(below.clip(0))

    monkeypatch.setattr(module, "isotonic_regression", spy)
    edges = torch.linspace(0, 1, 41)
    scores = (torch.arange(4000) + 0.5) / 4000
    for seed in range(50):
        private_scores(scores, edges, 0.5, seeded(seed))
    noise = np.concatenate(seen) - 100
    assert stats.kstest(noise, stats.laplace(scale=2).cdf).pvalue > 0.01
    assert stats.kstest(noise, stats.laplace(scale=1.8).cdf).pvalue < 0.01


@given(
    st.lists(st.floats(-1, 2), max_size=30),
    st.floats(-1, 2),
    st.lists(st.floats(0, 1), min_size=2, max_size=9, unique=True),
)
@settings(deadline=None, max_examples=200)
def test_one_score_moves_one_count_by_one(
    scores: list[float], more: float, edges: list[float]
) -> None:
    ends = torch.tensor(sorted(edges), dtype=torch.float64)

    def counts(values: list[float]) -> np.ndarray:
        found = private_scores(torch.tensor(values, dtype=torch.float64), ends, math.inf, seeded(0))
        return np.array([(found == end).sum().item() for end in ends[1:]])

    assert np.abs(counts([*scores, more]) - counts(scores)).sum() == 1


def test_gates_run_on_private_scores() -> None:
    own = torch.randn(2000, generator=seeded(0)).double()
    pool = torch.cat([own[:1000] + 0.01, 6 + torch.randn(3000, generator=seeded(1)).double()])
    edges = pool.quantile(torch.linspace(0, 1, 33, dtype=torch.float64))
    found = private_scores(own[1000:], edges, 1.0, seeded(2))
    assert len(found) == pytest.approx(1000, abs=60)
    assert share(found, pool) == pytest.approx(share(own[1000:], pool), abs=0.05)
    empty = torch.empty(0).double()
    assert Quantile(q=0.5).threshold(found, empty, pool) == pytest.approx(0, abs=0.5)


def test_no_scores_and_one_score_work() -> None:
    edges = torch.linspace(0, 1, 9)
    for scores in (torch.empty(0), torch.tensor([0.4])):
        assert private_scores(scores, edges, 1.0, seeded(0)).isfinite().all()
        assert 0 <= private_quantile(scores, 0.5, 0, 1, 1.0, seeded(0)) <= 1


# --- coins ---


def test_a_coin_of_its_own_holds_each_record_out() -> None:
    many = held_out(20_000, 0.1, seeded(0))
    assert stats.binomtest(int(many.sum()), 20_000, 0.1).pvalue > 0.01
    assert torch.equal(held_out(500, 0.1, seeded(0)), held_out(501, 0.1, seeded(0))[:500])


# --- input that is refused ---


@pytest.mark.parametrize(
    ("scores", "q", "low", "high", "epsilon"),
    [
        (torch.tensor([math.nan]), 0.5, 0, 1, 1.0),
        (torch.tensor([math.inf]), 0.5, 0, 1, 1.0),
        (torch.zeros(2, 2), 0.5, 0, 1, 1.0),
        (torch.zeros(2), 1.5, 0, 1, 1.0),
        (torch.zeros(2), 0.5, 1, 1, 1.0),
        (torch.zeros(2), 0.5, 0, math.inf, 1.0),
        (torch.zeros(2), 0.5, 0, 1, 0.0),
    ],
)
def test_a_quantile_of_nonsense_is_refused(
    scores: Tensor, q: float, low: float, high: float, epsilon: float
) -> None:
    with pytest.raises(FedkdError):
        private_quantile(scores, q, low, high, epsilon, seeded(0))


@pytest.mark.parametrize("edges", [[0.0], [0.0, 0.0], [1.0, 0.0], [0.0, math.nan]])
def test_bins_need_rising_edges(edges: list[float]) -> None:
    with pytest.raises(FedkdError):
        private_scores(torch.zeros(3), torch.tensor(edges), 1.0, seeded(0))


@pytest.mark.parametrize("fraction", [0.0, 1.0, math.nan])
def test_a_fraction_lies_between(fraction: float) -> None:
    with pytest.raises(FedkdError, match="fraction"):
        held_out(10, fraction, seeded(0))

"""What the server does before it tells a consensus, against closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize

from fedkd.errors import FedkdError
from fedkd.exchange.consensus import Consensus
from fedkd.protection import GnMax, Privacy, RandomisedResponse, TopOne
from privacy import accounting, claims, protect
from privacy.events import Gaussian, Protects
from privacy.mechanisms import RandomisedResponse as Mechanism


def response(epsilon: float) -> Privacy:
    return Privacy(release=RandomisedResponse(epsilon=epsilon))


def consensus(values: NDArray[np.float64]) -> Consensus:
    return Consensus(np.arange(len(values), dtype=np.int32), values.astype(np.float32))


def nearest(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest distribution: max(v - t, 0) with the one t that makes its sum 1, by bisection."""
    t = optimize.brentq(lambda t: np.maximum(v - t, 0).sum() - 1, v.min() - 1, v.max(), xtol=1e-15)
    return np.maximum(v - float(t), 0)


@given(st.floats(0.3, 8), st.integers(2, 12), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_the_mean_of_lies_becomes_the_mean_of_the_truth(
    epsilon: float, n_classes: int, seed: int
) -> None:
    """In expectation, an answer is the truth with beta = (e^eps - 1) / (e^eps - 1 + C)."""
    truth = np.random.default_rng(seed).dirichlet(np.ones(n_classes), 5)
    beta = (math.exp(epsilon) - 1) / (math.exp(epsilon) - 1 + n_classes)
    lies = beta * truth + (1 - beta) / n_classes
    got = protect.consensus_of(response(epsilon), consensus(lies))
    assert got.values.dtype == np.float32
    assert np.abs(got.values - truth).max() < 1e-6 / beta
    assert np.abs(lies - truth).max() > 1e-6 / beta or epsilon > 7  # there was something to undo


@given(st.floats(0.3, 8), st.integers(2, 12), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_an_estimate_outside_the_simplex_becomes_the_nearest_distribution(
    epsilon: float, n_classes: int, seed: int
) -> None:
    """Means of few answers: shares of 1/3 and the like, which unbiasing throws far out."""
    votes = np.random.default_rng(seed).multinomial(3, np.ones(n_classes) / n_classes, 4) / 3
    beta = (math.exp(epsilon) - 1) / (math.exp(epsilon) - 1 + n_classes)
    mean = votes.astype(np.float32).astype(np.float64)
    expected = np.array([nearest(row) for row in (mean - (1 - beta) / n_classes) / beta])
    got = protect.consensus_of(response(epsilon), consensus(votes))
    assert got.values == pytest.approx(expected, abs=1e-6)
    assert got.values.sum(1) == pytest.approx(1, abs=1e-6)
    assert (got.values >= 0).all()


def test_many_clients_lies_show_what_they_think() -> None:
    """20,000 clients, 3 classes in shares of 0.6, 0.3 and 0.1: within 5 standard errors."""
    n, epsilon = 20_000, 1.0
    truth = torch.tensor([0] * 12_000 + [1] * 6_000 + [2] * 2_000)
    logits = torch.nn.functional.one_hot(truth, 3).float()
    told = Mechanism(epsilon, 3).release(logits, torch.Generator().manual_seed(3))
    mean = told.double().mean(0, keepdim=True).numpy()
    got = protect.consensus_of(response(epsilon), consensus(mean)).values[0]
    error = 0.5 / math.sqrt(n) / Mechanism(epsilon, 3).beta
    assert got == pytest.approx([0.6, 0.3, 0.1], abs=5 * error)
    assert mean[0, 0] < 0.6 - 10 * error  # as it was told


@pytest.mark.parametrize("privacy", [Privacy(), Privacy(release=TopOne())])
def test_other_answers_are_told_as_they_are(privacy: Privacy) -> None:
    given = consensus(np.eye(3))
    assert protect.consensus_of(privacy, given) is given


def test_no_answers_have_no_bias() -> None:
    got = protect.consensus_of(response(1.0), consensus(np.empty((0, 4))))
    assert got.values.shape == (0, 4)


QUIET = GnMax(threshold=3.5, sigma_threshold=1e-6, sigma=1e-6)


def test_without_noise_to_speak_of_the_clear_winners_are_told() -> None:
    votes = np.array([[3.0, 1, 0], [0.5, 3.6, 1], [0, 0, 0], [0, 0, 9.0]])
    told = protect.clear_labels(QUIET, votes, torch.Generator().manual_seed(1))
    assert told.ids.tolist() == [1, 3]
    assert told.ids.dtype == np.int32
    assert told.values.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert told.values.dtype == np.float32


def test_noise_is_on_the_threshold_and_on_the_winner() -> None:
    """How often rows are told, and told wrongly, by the normal distribution function."""
    n = 40_000
    row = GnMax(threshold=4.0, sigma_threshold=2.0, sigma=1.5)
    votes = np.tile([3.0, 2.0], (n, 1))
    told = protect.clear_labels(row, votes, torch.Generator().manual_seed(2))
    share = len(told.ids) / n
    expected = 0.5 * math.erfc((4 - 3) / 2 / math.sqrt(2))
    assert share == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(n))
    wrong = told.values[:, 1].mean()
    expected = 0.5 * math.erfc((3 - 2) / (1.5 * math.sqrt(2)) / math.sqrt(2))
    assert wrong == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(len(told.ids)))


@given(st.integers(1, 3000), st.floats(0.5, 100), st.floats(0.5, 100))
@settings(deadline=None, max_examples=40)
def test_every_query_is_charged_whatever_was_told(n: int, s1: float, s2: float) -> None:
    """n thresholds that move by 1 and n winners that move by sqrt(2): one Gaussian, closed form."""
    row = GnMax(threshold=1.0, sigma_threshold=s1, sigma=s2)
    claim = claims.claim_of_labels(row, n)
    (event,) = claim.events
    assert isinstance(event, Gaussian)
    assert event.protects == Protects("client", "replace")
    assert 1 / event.noise_multiplier**2 == pytest.approx(n * (1 / s1**2 + 2 / s2**2))
    assert claim.guarantee == "proved"


def test_an_epsilon_of_a_run_with_many_clients() -> None:
    """1,000 queries at PATE's noise: mu-GDP, whose epsilon at delta is the Gaussian's own."""
    row = GnMax(threshold=200, sigma_threshold=150, sigma=40)
    claim = claims.claim_of_labels(row, 1000)
    spent = accounting.epsilon(claim.events, Protects("client", "replace"), 1e-5)
    mu = math.sqrt(1000 * (1 / 150**2 + 2 / 40**2))

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def delta(eps: float) -> float:
        return normal(mu / 2 - eps / mu) - math.exp(eps) * normal(-mu / 2 - eps / mu)

    exact = optimize.brentq(lambda eps: delta(eps) - 1e-5, 0, 50)
    assert spent.pld == pytest.approx(exact, rel=1e-3)
    assert spent.epsilon >= exact * (1 - 1e-9)


def test_votes_that_are_no_sums_of_distributions_are_refused() -> None:
    with pytest.raises(FedkdError, match="votes are sums of distributions"):
        protect.clear_labels(QUIET, np.array([[1.0, -1.0]]), torch.Generator())

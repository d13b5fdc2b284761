"""A filter with a guarantee: what it costs, what it sees, and that its noise is there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedkd.data.federation import Federation, build
from fedkd.data.partition import Strong
from fedkd.data.proxy import Public as PublicProxy
from fedkd.data.sources import Digits
from fedkd.errors import FedkdError
from fedkd.exchange.gate import Constant, Gate, Quantile, Share
from fedkd.protection import DpClassMeans, DpKernel, DpKMeans
from fedkd.rng import torch_stream
from fedkd.training import inputs
from privacy import accounting, class_means, interval_trees, private_gate, private_kmeans, summaries
from privacy.events import Gaussian, Pure
from privacy.private_filter import GATES_PART, RECORD, Public, Row, cost, private_mask

ROWS: list[type[Row]] = [DpKMeans, DpClassMeans, DpKernel]
DELTA = 1e-5


def digits() -> Federation:
    """Ten clients of one class each, and 200 public digits of all classes."""
    return build(Digits(), Strong(clients=10), PublicProxy(size=200), 0.0, 1)


def proxy_x() -> Tensor:
    x = digits().public_x
    assert x is not None
    return inputs(x).flatten(1)


def records(client: int) -> Tensor:
    return inputs(digits().client(client)[0]).flatten(1)


def public(row: Row) -> Public:
    return Public.of(row, proxy_x(), torch_stream(1, "public"))


def mask(row: Row, x: Tensor, seed: int = 1, gate: Gate | None = None) -> tuple[Tensor, float]:
    own = torch.zeros(200, dtype=torch.bool)
    noise = torch_stream(seed, "noise")
    return private_mask(public(row), x, own, gate or Quantile(q=0.8), 0.2, DELTA, noise)


# --- what it costs ---


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(ROWS), st.floats(0.1, 10), st.sampled_from([1e-3, 1e-5, 1e-8]))
def test_a_filter_costs_its_epsilon_at_most_by_either_accountant(
    row: type[Row], epsilon: float, delta: float
) -> None:
    events = cost(row(epsilon=epsilon), delta)
    spent = accounting.epsilon(events, RECORD, delta)
    assert spent.epsilon <= epsilon * (1 + 1e-9)
    assert all(event.protects == RECORD for event in events)
    if row is DpKernel:
        assert accounting.epsilon(events, RECORD, 0.0).epsilon == pytest.approx(epsilon)


def test_the_cost_is_what_dp_accounting_finds_for_its_two_parts() -> None:
    """A Gaussian and a pure mechanism, put together by hand."""
    summary, threshold = cost(DpKMeans(epsilon=2.0), DELTA)
    assert isinstance(summary, Gaussian)
    assert threshold == Pure(epsilon=0.5, unit="record", relation="add-remove")
    noise = pld.from_gaussian_mechanism(summary.noise_multiplier)
    answers = pld.from_randomized_response(2 / (math.exp(0.5) + 1), 2)
    tight = noise.compose(answers).get_epsilon_for_delta(DELTA)
    assert 1.8 < tight <= 2.0


def test_the_noise_is_the_least_that_keeps_the_epsilon() -> None:
    for epsilon in (0.3, 2.0, 8.0):
        threshold = Pure(epsilon=GATES_PART * epsilon, unit="record", relation="add-remove")
        least = accounting.least_gaussian(epsilon, RECORD, DELTA, (threshold,))
        at = least.noise_multiplier
        for factor, fits in ((1.0, True), (0.999, False)):
            event = least.model_copy(update={"noise_multiplier": factor * at})
            spent = accounting.rdp_epsilon((event, threshold), RECORD, DELTA)
            assert (spent <= epsilon) == fits
        assert accounting.least_gaussian(epsilon, RECORD, DELTA).noise_multiplier < at


def test_an_epsilon_that_no_noise_can_keep_is_refused() -> None:
    threshold = Pure(epsilon=1.0, unit="record", relation="add-remove")
    with pytest.raises(FedkdError, match="no noise keeps this within the budget"):
        accounting.least_gaussian(0.5, RECORD, 1e-9, (threshold,))


# --- what it does ---


@pytest.mark.parametrize("row", ROWS)
def test_a_client_answers_what_looks_like_its_own(row: type[Row]) -> None:
    """At a generous epsilon, and of a class each: better than by chance, on public digits."""
    strata = digits().public_strata
    assert strata is not None
    right = answered = 0
    for client in range(10):
        accepted, threshold = mask(row(epsilon=20.0), records(client), seed=client)
        assert math.isfinite(threshold)
        right += int((torch.from_numpy(strata)[accepted] == client).sum())
        answered += int(accepted.sum())
    assert right / answered > 0.3  # 0.1 is chance


@pytest.mark.parametrize("row", ROWS)
def test_the_same_generator_gives_the_same_mask_and_another_does_not(row: type[Row]) -> None:
    x = records(3)
    first, again, other = (mask(row(epsilon=1.0), x, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert first[1] != other[1]


@pytest.mark.parametrize("row", ROWS)
def test_what_a_client_contributed_is_always_answered(row: type[Row]) -> None:
    own = torch.arange(200) % 7 == 0
    noise = torch_stream(1, "noise")
    shut = Constant(value=-1e9)
    found, threshold = private_mask(public(row()), records(0), own, shut, 0.2, DELTA, noise)
    assert torch.equal(found, own)
    assert threshold == -1e9


@pytest.mark.parametrize("gate", [Quantile(q=0.5), Share()])
def test_a_client_that_noise_has_hidden_answers_nothing(gate: Gate) -> None:
    """Two records and a small epsilon: often no held-out score is left, which is no failure."""
    thresholds = []
    for seed in range(30):
        accepted, threshold = mask(DpKernel(epsilon=0.4), records(0)[:2], seed, gate)
        thresholds.append(threshold)
        assert bool(accepted.any()) <= (threshold > -math.inf)
    assert -math.inf in thresholds
    assert max(thresholds) > -math.inf


def test_what_cannot_be_filtered_is_refused() -> None:
    with pytest.raises(FedkdError, match="needs records"):
        mask(DpKMeans(), records(0)[:0])
    with pytest.raises(FedkdError, match="1 to 64 axes"):
        public(DpKMeans(axes=65))


# --- the noise is there ---


def noised(row: Row, x: Tensor) -> None:
    """What was released of x, less what is counted here, is the noise that was charged.

    Raises: AssertionError if it does not look like it.
    """
    made, (event, _) = public(row), cost(row, DELTA)
    points = made.view.look(x)
    nowhere = torch.zeros(len(x), dtype=torch.int64)
    found: Any = made.summarise(x, nowhere, 1, event, torch_stream(2, "noise"))
    match row:
        case DpKMeans():
            assert isinstance(event, Gaussian)
            seeds = found.seeds.centroids
            nearest = torch.cdist(points, seeds).argmin(1)
            noise = found.counts[0] - torch.bincount(nearest, minlength=len(seeds))
            # One record moves one of the sums by 1 at most (in radii) and one of the counts by 1.
            law = stats.norm(0, math.sqrt(2) * event.noise_multiplier)
        case DpClassMeans():
            assert isinstance(event, Gaussian)
            noise = found.inner.sums[0] - found.inner.features.of(points).sum(0)
            law = stats.norm(0, class_means.SENSITIVITY * event.noise_multiplier)
        case DpKernel():
            assert isinstance(event, Pure)
            grid = found.grid
            noise = found.nodes.flatten() - _nodes(x, grid)
            law = stats.laplace(0, len(grid.low) * grid.levels / event.epsilon)
    assert stats.kstest(noise.numpy(), law.cdf).pvalue > 1e-3


def _nodes(x: Tensor, grid: interval_trees.Grid) -> Tensor:
    """How many records each node of each coordinate's tree covers, by `distance_sums` at infinity.

    Infinite epsilon adds no noise: its own tests hold these counts against plain counting.
    """
    nowhere = torch.zeros(len(x), dtype=torch.int64)
    quiet = torch_stream(1, "never used")
    return interval_trees.distance_sums(x, nowhere, 1, grid, math.inf, quiet).nodes.flatten()


@pytest.mark.parametrize("row", ROWS)
def test_a_summary_is_noised(row: type[Row]) -> None:
    noised(row(epsilon=2.0), records(5))


@pytest.mark.parametrize("row", ROWS)
def test_a_summary_whose_noise_is_switched_off_is_caught(
    row: type[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(shape: Any, scale: float, generator: torch.Generator) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.float64)

    for module, name in (
        (private_kmeans, "normal"),
        (class_means, "normal"),
        (interval_trees, "laplace"),
    ):
        assert getattr(module, name) is getattr(summaries, name)
        monkeypatch.setattr(module, name, none)
    with pytest.raises(AssertionError):
        noised(row(epsilon=2.0), records(5))


def thresholds_vary() -> None:
    """With one summary, the threshold still varies with the noise on the histogram alone."""
    scores = torch.linspace(0, 1, 40, dtype=torch.float64)
    edges = torch.linspace(0, 1, 9, dtype=torch.float64)
    found = {
        len(private_gate.private_scores(scores, edges, 0.5, torch_stream(seed, "gate")))
        for seed in range(10)
    }
    assert len(found) > 3


def test_a_threshold_whose_noise_is_switched_off_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thresholds_vary()
    monkeypatch.setattr(
        private_gate, "laplace", lambda shape, scale, generator: torch.zeros(tuple(shape))
    )
    with pytest.raises(AssertionError):
        thresholds_vary()

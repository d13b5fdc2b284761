"""From settings to releases and claims: each row against a formula of its own."""

from __future__ import annotations

import math
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from torch import Tensor

from fedkd import config, protection
from fedkd.config import Scenario
from fedkd.config_sections import Phase, Training
from fedkd.errors import FedkdError
from fedkd.rng import torch_stream
from privacy import accounting, asked, claims, mechanisms, protect
from privacy.asked import CLIENT, RECORD, Occasion
from privacy.claims import Claim
from privacy.events import Event, Gaussian, Laplace, RandomisedResponse, SampledGaussian

M, C = 40, 10
DELTA = 1e-5
ROWS: dict[str, protection.ReleaseRow] = {
    "gaussian": protection.GaussianRelease(),
    "laplace": protection.LaplaceRelease(),
    "sampled-label": protection.SampledLabel(),
    "randomised-response": protection.RandomisedResponse(),
    "swing-gaussian": protection.Swing(noise="gaussian"),
    "swing-laplace": protection.Swing(noise="laplace"),
}
"""Every release that draws anything."""


def logits(m: int = M, seed: int = 1) -> Tensor:
    return 4 * torch.randn(m, C, generator=torch_stream(seed, "logits"))


def occasion(**changes: Any) -> Occasion:
    degrees = torch.linspace(0, 1, M, dtype=torch.float64)
    usual: dict[str, Any] = {
        "temperature": 2.0,
        "most_rows": 3 * M,
        "delta": DELTA,
        "degrees": degrees,
    }
    return Occasion(**{**usual, **changes})


def released(row: protection.ReleaseRow, seed: int = 1, **changes: Any) -> tuple[Tensor, Claim]:
    privacy = protection.Privacy(release=row)
    noise = torch_stream(seed, "noise")
    at = occasion(**changes)
    values = protect.answers(privacy, logits(), at, noise)
    return values, claims.claim_of_rows(privacy, at, len(values), C)


def clipped(bound: float = 5.0) -> Tensor:
    z = logits().double()
    middle = (z.max(1, keepdim=True).values + z.min(1, keepdim=True).values) / 2
    return (z - middle).clip(-bound, bound)


def clean(row: protection.ReleaseRow) -> Tensor:
    """What the row would tell if nothing were drawn."""
    match row:
        case protection.Swing():
            t = row.t_min * (row.t_max / row.t_min) ** torch.linspace(0, 1, M).double()
            return torch.softmax(clipped() / t[:, None], 1)
        case protection.GaussianRelease() | protection.LaplaceRelease():
            return torch.softmax(clipped() / 2.0, 1)
        case _:
            return torch.nn.functional.one_hot(logits().argmax(1), C).double()


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, Theorem 8, solved for epsilon."""

    def excess(eps: float) -> float:
        upper, lower = stats.norm.cdf(mu / 2 - eps / mu), stats.norm.cdf(-mu / 2 - eps / mu)
        return float(upper - math.exp(eps) * lower - delta)

    return float(brentq(excess, 0, 200))


# --- answers ---


def test_top_one_is_the_arg_max_and_claims_nothing() -> None:
    values, claim = released(protection.TopOne())
    assert torch.equal(values.double(), clean(protection.TopOne()))
    assert claim == Claim("empirical", "top-1")


def test_swing_without_noise_is_the_formula_and_claims_nothing() -> None:
    values, claim = released(protection.Swing())
    torch.testing.assert_close(values, clean(protection.Swing()).float())
    assert claim.guarantee == "empirical"
    assert claim.events == ()


def noised(row: protection.ReleaseRow) -> None:
    """At least one answer in ten is not what it would be without noise, and all are soft labels.

    Raises: AssertionError otherwise.
    """
    values, _ = released(row)
    assert values.shape == (M, C)
    assert values.dtype == torch.float32
    assert bool((values >= 0).all())
    torch.testing.assert_close(values.sum(1), torch.ones(M))
    differ = ((values - clean(row)).abs() > 1e-4).any(1)
    assert differ.double().mean() > 0.1


@pytest.mark.parametrize("name", ROWS)
def test_what_leaves_is_noised(name: str) -> None:
    noised(ROWS[name])
    assert torch.equal(released(ROWS[name])[0], released(ROWS[name])[0])
    assert not torch.equal(released(ROWS[name], 1)[0], released(ROWS[name], 2)[0])


@pytest.mark.parametrize("name", ROWS)
def test_noise_that_is_switched_off_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanisms.Gaussian, "add", lambda self, values, generator: values)
    monkeypatch.setattr(mechanisms.Laplace, "add", lambda self, values, generator: values)
    monkeypatch.setattr(mechanisms.RandomisedResponse, "beta", 1.0)
    monkeypatch.setattr(
        mechanisms.torch, "multinomial", lambda q, n, generator: q.argmax(1, keepdim=True)
    )
    with pytest.raises(AssertionError):
        noised(ROWS[name])


@given(st.floats(0.1, 20), st.integers(1, 50), st.floats(0.5, 20))
@settings(deadline=None, max_examples=25)
def test_gaussian_answers_of_a_whole_run_cost_its_epsilon(
    epsilon: float, rounds: int, temperature: float
) -> None:
    """All rows together are one Gaussian mechanism, whose epsilon has a closed form."""
    row = protection.GaussianRelease(epsilon=epsilon)
    values, claim = released(row, most_rows=rounds * M, temperature=temperature)
    assert values.isfinite().all()
    assert claim.guarantee == "proved"
    (event,) = claim.events
    assert isinstance(event, Gaussian)
    assert event.protects == CLIENT
    mu = math.sqrt(rounds) / event.noise_multiplier
    exact = gaussian_epsilon(mu, DELTA)
    assert 0.75 * epsilon < exact <= epsilon
    assert accounting.epsilon([event] * rounds, CLIENT, DELTA).epsilon <= epsilon * (1 + 1e-9)
    assert accounting.epsilon([event] * (rounds + 1), CLIENT, DELTA).epsilon > epsilon


@given(st.floats(0.1, 20), st.integers(1, 50))
@settings(deadline=None, max_examples=20)
def test_laplace_answers_of_a_whole_run_cost_its_epsilon_without_delta(
    epsilon: float, rounds: int
) -> None:
    _, claim = released(protection.LaplaceRelease(epsilon=epsilon), most_rows=rounds * M)
    assert all(isinstance(event, Laplace) and event.protects == CLIENT for event in claim.events)
    assert sum(event.count for event in claim.events) == M
    spent = accounting.epsilon(claim.events * rounds, CLIENT, 0.0).epsilon
    assert spent == pytest.approx(epsilon)


def test_a_sampled_label_costs_the_log_of_its_largest_odds() -> None:
    """Of two clients at opposite corners of the box, by hand: B = 5, T = 2, ten classes."""
    corner = torch.full((1, C), -5.0, dtype=torch.float64)
    corner[0, 3] = 5.0
    likely, unlikely = (torch.softmax(sign * corner / 2.0, 1)[0, 3] for sign in (1, -1))
    _, claim = released(protection.SampledLabel())
    (event,) = claim.events
    assert isinstance(event, RandomisedResponse)
    assert event.count == M
    assert event.epsilon == pytest.approx(math.log(likely / unlikely), rel=1e-9)


def test_randomised_response_costs_its_epsilon_a_row() -> None:
    _, claim = released(protection.RandomisedResponse(epsilon=0.7))
    (event,) = claim.events
    assert isinstance(event, RandomisedResponse)
    assert (event.n_categories, event.count) == (C, M)
    assert event.epsilon == pytest.approx(0.7)
    assert event.protects == CLIENT


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 36.0, 60.0, 299.0])
def test_a_large_epsilon_is_charged_in_full(epsilon: float) -> None:
    """Where all but nobody lies, 1 minus the chance of the truth is 0 in floating point."""
    (event,) = released(protection.RandomisedResponse(epsilon=epsilon))[1].events
    assert isinstance(event, RandomisedResponse)
    assert event.epsilon == pytest.approx(epsilon, rel=1e-9)
    (event,) = released(protection.SampledLabel(bound=epsilon / 4), temperature=1.0)[1].events
    assert isinstance(event, RandomisedResponse)
    assert epsilon / 2 <= event.epsilon <= epsilon
    with pytest.raises(FedkdError, match="less than or equal to 300"):
        released(protection.RandomisedResponse(epsilon=301))


def test_swing_pays_for_public_temperatures_each_and_for_private_ones_the_lowest() -> None:
    row = protection.Swing(noise="gaussian", scale=2.0, t_max=8.0)
    everybody, nobody = (
        accounting.epsilon(released(row, origin=origin)[1].events, CLIENT, DELTA).epsilon
        for origin in ("public", "private")
    )
    coldest = 2 * math.tanh(5.0 / 1.0) ** 2
    # With the simple bound of each row, sqrt(2) tanh(B / T_min): never below the true one.
    assert everybody < nobody <= gaussian_epsilon(math.sqrt(M * coldest) / 2.0, DELTA) * 1.15


def test_no_rows_are_no_event_and_no_failure() -> None:
    none = torch.zeros(0, C)
    for row in (*ROWS.values(), protection.TopOne()):
        privacy = protection.Privacy(release=row)
        at = occasion(degrees=torch.zeros(0))
        values = protect.answers(privacy, none, at, torch_stream(1, "noise"))
        claim = claims.claim_of_rows(privacy, at, 0, C)
        assert values.shape == (0, C)
        assert claim.events == ()
        assert claim.guarantee != "proved"


def test_what_cannot_be_released_is_refused() -> None:
    with pytest.raises(FedkdError, match="degree for each position"):
        released(protection.Swing(), degrees=None)
    with pytest.raises(FedkdError, match="no mechanism of this name"):
        released(protection.PlainRelease())
    broken = logits()
    broken[3, 4] = math.nan
    for row in (*ROWS.values(), protection.TopOne()):
        with pytest.raises(FedkdError, match="NaN or infinity"):
            protect.answers(
                protection.Privacy(release=row), broken, occasion(), torch_stream(1, "noise")
            )


# --- training ---

N, PHASE = 600, Phase(batch_size=60, epochs=2)


def composed(events: tuple[Event, ...], rounds: int) -> float:
    return accounting.rdp_epsilon(events * rounds, RECORD, DELTA)


def test_dp_sgd_costs_a_record_what_dp_accounting_says() -> None:
    row = protection.DpSgd(noise_multiplier=2.0, clip=0.3)
    claim = claims.claim_of_training(row, N, PHASE)
    assert claim.guarantee == "proved"
    assert claim.sensitivity is not None
    assert claim.sensitivity.bound == 0.3
    accountant = RdpAccountant()
    step = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(2.0))
    accountant.compose(step, 3 * 20)
    with accounting.quiet():
        wanted = accountant.get_epsilon(DELTA)
    assert composed(claim.events, 3) == pytest.approx(wanted, rel=1e-9)
    (event,) = claim.events
    assert isinstance(event, SampledGaussian)
    assert (event.rate, event.count) == (0.1, 20)


def test_dp_sgd_without_noise_claims_nothing() -> None:
    row = protection.DpSgd(noise_multiplier=0.0)
    assert not row.noisy
    assert claims.claim_of_training(row, N, PHASE) == claims.NOTHING
    assert protection.DpSgd(noise_multiplier=0.0, epsilon=1.0).noisy


def test_error_feedback_is_charged_by_composition_alone() -> None:
    """Each step as a full Gaussian on a sum that moves by C + 2 C2 times the expected batch."""
    row = protection.DpSgd(noise_multiplier=3.0, clip=1.0, error_clip=0.5)
    claim = claims.claim_of_training(row, N, PHASE)
    (event,) = claim.events
    assert isinstance(event, Gaussian)
    assert event.count == 20
    assert event.noise_multiplier == pytest.approx(3.0 * math.sqrt(2.0) / (1 + 2 * 0.5 * 60))


def test_nfdp_and_plain_training_claim_no_proof() -> None:
    claim = claims.claim_of_training(protection.Nfdp(fraction=0.25), N, PHASE)
    assert claim.guarantee == "empirical"
    assert claim.events == ()
    assert f"{math.log(601 / 451):.3g}, 0.25" in claim.reason
    assert claims.claim_of_training(protection.PlainTraining(), N, PHASE) == claims.NOTHING


@pytest.mark.parametrize("participation", [1.0, 0.2])
def test_noise_is_calibrated_for_the_run_once(participation: float) -> None:
    training = Training(rounds=20, participation=participation, local=PHASE)
    wanted = protection.DpSgd(epsilon=3.0)
    row = asked.dp_sgd_of(wanted, N, 10, training, DELTA)
    events = claims.claim_of_training(row, N, PHASE).events
    paid = 20 if participation == 1 else int(stats.binom.ppf(0.95, 20, participation))
    assert 2.95 < composed(events, paid) <= 3.0
    assert composed(events, paid + 1) > 3.0
    plain = row.model_copy(update={"epsilon": None})
    assert asked.dp_sgd_of(plain, N, 10, training, DELTA) == plain


@pytest.mark.parametrize(
    ("participation", "n_clients", "drawn"),
    [(0.2, 10, 2), (0.001, 10, 1), (0.5, 3, 2), (0.24, 10, 2), (0.99, 10, 10), (1.0, 7, 7)],
)
def test_noise_is_for_as_many_rounds_as_clients_are_really_drawn_for(
    participation: float, n_clients: int, drawn: int
) -> None:
    """At least one client takes part, and a whole number of them: a client's chance is of these."""
    training = Training(rounds=20, participation=participation)
    most = asked.most_rounds(training, n_clients)
    assert most == int(stats.binom.ppf(0.95, 20, drawn / n_clients))


# --- the mask ---


def with_filter(gate: str, name: str) -> Scenario:
    method = {"name": "edgefd", "gate": {"name": gate}}
    return config.parse({"method": method, "privacy": {"filter": {"name": name}}})


@pytest.mark.parametrize("name", ["plain", "dp-kmeans", "dp-class-means", "dp-kernel"])
def test_a_mask_costs_what_its_filter_does_or_nothing(name: str) -> None:
    assert claims.claim_of_mask(with_filter("open", name)) is None
    assert claims.claim_of_mask(with_filter("own", name)) is None
    claim = claims.claim_of_mask(with_filter("share", name))
    assert claim is not None
    if name == "plain":
        assert (claim.guarantee, claim.events) == ("none", ())
    else:
        assert claim.guarantee == "proved"
        assert accounting.epsilon(claim.events, RECORD, DELTA).epsilon <= 2.0

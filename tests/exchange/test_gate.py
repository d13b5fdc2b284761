"""Gates: thresholds against NumPy and brute force, `share` on mixtures whose share is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients import filters
from clients.client import Client, ProxySet
from fedkd import config
from fedkd.data import federation
from fedkd.data.partition import Iid
from fedkd.data.proxy import Contributed
from fedkd.data.sources import Digits
from fedkd.exchange.gate import (
    CONFIDENCE,
    GATES,
    Budget,
    Constant,
    Gate,
    Open,
    Oracle,
    Own,
    Quantile,
    Share,
    accept,
    share,
)
from fedkd.models.zoo import build
from fedkd.payload import Pool
from fedkd.rng import torch_stream

NONE = torch.empty(0)
QUICK = settings(deadline=None, max_examples=100)
SCORE = st.floats(-100, 100, width=32)
SCORES = st.lists(SCORE, min_size=1, max_size=40).map(torch.tensor)
MAYBE_NONE = st.lists(SCORE, max_size=40).map(lambda values: torch.tensor(values).float())
EVERY = pytest.mark.parametrize(
    "gate",
    [Open(), Own(), Constant(value=0.5), Quantile(q=0.3), Share(), Budget(m=3), Oracle()],
    ids=lambda gate: gate.name,
)


def normal(seed: int, n: int, mean: float = 0.0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) + mean


def test_the_cases_below_are_all_gates() -> None:
    """And `soft`, which has no threshold: see test_soft_weights."""
    assert set(GATES) == {
        "soft",
        "oracle",
        "open",
        "own",
        "constant",
        "quantile",
        "share",
        "budget",
    }


# --- thresholds ---


@given(SCORES, st.floats(0, 1), SCORES)
@QUICK
def test_a_quantile_is_numpy_s(heldout: Tensor, q: float, pool: Tensor) -> None:
    got = Quantile(q=q).threshold(heldout, NONE, pool)
    scale = float(heldout.abs().max())
    assert got == pytest.approx(np.quantile(heldout.numpy(), q), rel=1e-5, abs=1e-5 * scale)


@given(SCORES, SCORES, SCORE)
@QUICK
def test_open_own_and_constant_look_at_no_scores(
    heldout: Tensor, pool: Tensor, value: float
) -> None:
    assert Open().threshold(heldout, NONE, pool) == math.inf
    assert Own().threshold(heldout, NONE, pool) == -math.inf
    assert Constant(value=value).threshold(heldout, NONE, pool) == value


@given(SCORES, SCORES, st.floats(0.1, 10))
@QUICK
def test_the_share_gate_is_the_quantile_at_a_power_of_the_share(
    heldout: Tensor, pool: Tensor, power: float
) -> None:
    """With a floor where the client contributed nothing, and none where it did."""
    gate = Share(power=power, floor=0.4)
    q = share(heldout, pool) ** power
    got = gate.threshold(heldout, NONE, pool)
    assert got == Quantile(q=max(q, 0.4)).threshold(heldout, NONE, pool)
    got = gate.threshold(heldout[:-1], heldout[-1:], pool)
    assert got == Quantile(q=q).threshold(heldout, NONE, pool)


@given(
    st.lists(SCORE, min_size=1, max_size=40, unique=True).map(torch.tensor),
    st.integers(1, 50),
    st.data(),
)
@QUICK
def test_a_budget_buys_the_most_familiar_of_the_others(
    pool: Tensor, m: int, data: st.DataObject
) -> None:
    flags = st.lists(st.booleans(), min_size=len(pool), max_size=len(pool))
    own = torch.tensor(data.draw(flags))
    mask, _ = accept(Budget(m=m), NONE, pool, own)
    assert bool(mask[own].all())
    bought = pool[mask & ~own].tolist()
    assert sorted(bought) == sorted(pool[~own].tolist())[:m]


# --- accept ---


@EVERY
@given(SCORES, SCORES, st.data())
@QUICK
def test_what_is_accepted_is_familiar_or_own(
    gate: Gate, heldout: Tensor, pool: Tensor, data: st.DataObject
) -> None:
    flags = st.lists(st.booleans(), min_size=len(pool), max_size=len(pool))
    own = torch.tensor(data.draw(flags))
    mask, threshold = accept(gate, heldout, pool, own)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [
        mine or score <= threshold for mine, score in zip(own.tolist(), pool.tolist(), strict=True)
    ]
    if gate.name == "open":
        assert mask.all()
    if gate.name == "own":
        assert torch.equal(mask, own)


def test_own_samples_in_the_pool_are_held_out_too() -> None:
    """The score was not fitted on them, so they say how strange own samples look."""
    heldout, pool = torch.tensor([1.0, 2.0]), torch.tensor([9.0, 3.0, 0.0])
    own = torch.tensor([True, False, False])
    mask, threshold = accept(Quantile(q=1), heldout, pool, own)
    assert threshold == 9
    assert mask.all()


def test_own_samples_in_the_pool_do_not_count_as_the_others() -> None:
    """Half of the pool is one's own, yet nothing that the others gave is familiar."""
    heldout, given, others = normal(0, 200), normal(1, 300), normal(2, 300, mean=50)
    own = torch.arange(600) < 300
    _, threshold = accept(Share(), heldout, torch.cat([given, others]), own)
    assert threshold == torch.cat([heldout, given]).min()


@pytest.mark.parametrize(
    "gates",
    [
        [Quantile(q=q) for q in (0, 0.1, 0.5, 0.9, 1)],
        [Constant(value=value) for value in (-1, 0, 0.5, 2)],
        [Share(power=power) for power in (8, 2, 1, 0.5, 0.01)],
        [Own(), Constant(value=0), Open()],
    ],
    ids=lambda gates: gates[-1].name,
)
def test_a_wider_gate_accepts_all_that_a_narrower_one_does(gates: list[Gate]) -> None:
    heldout = normal(0, 200)
    pool = torch.cat([normal(1, 300), normal(2, 500, mean=2)])
    own = torch.arange(800) % 7 == 0
    found = [accept(gate, heldout, pool, own) for gate in gates]
    for (narrow, low), (wide, high) in itertools.pairwise(found):
        assert low <= high
        assert not (narrow & ~wide).any()
    assert found[0][0].sum() < found[-1][0].sum()


# --- the share of a mixture ---


def brute_share(heldout: list[float], pool: list[float]) -> float:
    """The definition, one threshold after another."""
    if not heldout or not pool:
        return 1.0
    m, n = len(heldout), len(pool)
    slack_m, slack_n = (math.sqrt(math.log(1 / CONFIDENCE) / (2 * size)) for size in (m, n))
    best, found = math.inf, 1.0
    for rank, t in enumerate(sorted(heldout), start=1):
        own, seen = rank / m, sum(score <= t for score in pool) / n
        if own > slack_m and (seen + slack_n) / (own - slack_m) < best:
            best = (seen + slack_n) / (own - slack_m)
            found = min(1.0, seen / own)
    return found


@given(MAYBE_NONE, MAYBE_NONE)
@QUICK
def test_the_share_is_its_definition(heldout: Tensor, pool: Tensor) -> None:
    got = share(heldout, pool)
    assert 0 <= got <= 1
    assert got == pytest.approx(brute_share(heldout.tolist(), pool.tolist()), abs=1e-12)


@pytest.mark.parametrize("pi", [0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("m", "n", "within"), [(300, 2000, 0.1), (2000, 20_000, 0.05)])
def test_the_share_of_a_mixture_is_found(pi: float, m: int, n: int, within: float) -> None:
    """pool = pi * own + (1 - pi) * far others; the mean over a few draws."""
    n_own = round(pi * n)
    estimates = [
        share(
            normal(3 * seed, m),
            torch.cat([normal(3 * seed + 1, n_own), normal(3 * seed + 2, n - n_own, mean=20)]),
        )
        for seed in range(5)
    ]
    assert np.mean(estimates) == pytest.approx(pi, abs=within)
    assert max(estimates) < pi + within  # "at most": it does not promise too much


def test_others_that_come_nearer_raise_it_and_never_lower_it() -> None:
    """It is a bound: others that look like own samples count as such."""
    pi, n = 0.3, 20_000
    own = normal(0, 5000)
    shares = [
        share(own, torch.cat([normal(1, int(pi * n)), normal(2, int((1 - pi) * n), mean=distance)]))
        for distance in (20.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.0)
    ]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(pi, abs=0.03)
    assert shares[-1] > 0.95


def test_equal_distributions_share_all_and_disjoint_ones_nothing() -> None:
    own = normal(0, 2000)
    assert share(own, normal(1, 20_000)) > 0.95
    assert share(own, own) == 1
    assert share(own, normal(1, 20_000, mean=50)) == 0
    assert share(own, normal(1, 20_000, mean=-50)) == 1  # familiar beyond doubt


def test_without_evidence_the_share_is_one() -> None:
    none, some = torch.empty(0), normal(0, 100)
    assert share(none, some) == share(some, none) == share(none, none) == 1
    assert share(torch.tensor([0.0]), torch.tensor([9.0])) == 1  # one sample tells nothing


@given(SCORES, SCORES)
@QUICK
def test_only_the_order_of_scores_counts(heldout: Tensor, pool: Tensor) -> None:
    both = torch.cat([heldout, pool])
    ranks = torch.unique(both, return_inverse=True)[1]
    warped = (ranks.double() ** 3).float()
    expected = share(heldout, pool)
    assert share(warped[: len(heldout)], warped[len(heldout) :]) == expected
    assert share(heldout.flip(0), pool.flip(0)) == expected


@given(SCORES, st.integers(1, 5))
@QUICK
def test_a_pool_of_strangers_only_is_not_shared(heldout: Tensor, factor: int) -> None:
    assume(len(heldout) > 3)
    strangers = heldout.max() + torch.arange(1.0, 1 + factor * len(heldout))
    assert share(heldout, strangers) == 0


# --- the whole filter of a client, at its edge ---


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("gate", ["open", "own", "quantile", "share"])
def test_a_client_with_a_single_private_sample_still_filters(gate: str, per_class: bool) -> None:
    """Two samples, one of them given away: what is left must not all be held out."""
    scenario = config.parse({"method": {"score": {"per_class": per_class}, "gate": {"name": gate}}})
    world = federation.build(Digits(), Iid(clients=719), Contributed(fraction=0.1), 0.0, 1)
    lone = next(i for i in range(world.n_clients) if len(world.private[i]) == 1)
    x, _ = world.contribution(lone)
    pool = Pool(
        np.concatenate([x.numpy(), world.test.x[:20].numpy()]),
        np.array([lone] * len(x) + [0] * 20, np.int32),
    )
    client = Client(
        scenario=scenario, seed=1, id=lone, round=1, world=world, device=torch.device("cpu")
    )
    model = build("mlp", (1, 8, 8), 10, torch_stream(1, "test"))
    (mask,) = filters.filter_pool([client], [model], ProxySet.of(pool, client.device))
    assert mask.shape == (len(x) + 20,)
    assert mask[: len(x)].all()  # its own

"""Secure aggregation: the plain sum to the bit, nothing but noise in a single upload."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy import accounting, secagg
from privacy.events import Protects
from privacy.secagg import UNIT, Blinded, Cohort, Keys

M, C = 40, 10


def pairs(clients: range | list[int], seed: int = 1) -> dict[int, Keys]:
    return {c: secagg.keys(stream(seed, "client", 3, c, "secagg").bytes(32)) for c in clients}


def cohort_of(owned: dict[int, Keys], *, round_: int = 3, least: int = 2) -> Cohort:
    return Cohort(round_, {client: own.public for client, own in owned.items()}, least)


def answers(client: int, n_samples: int = M, classes: int = C) -> NDArray[np.float64]:
    rng = stream(2, "client", 3, client, "answers")
    ids = np.flatnonzero(rng.random(n_samples) < 0.6).astype(np.int32)
    values = rng.dirichlet(np.ones(classes), len(ids)).astype(np.float32)
    return secagg.table(ids, values, n_samples)


def upload(client: int, own: Keys, cohort: Cohort, full: NDArray[np.float64]) -> Blinded:
    shape = (full.shape[0], full.shape[1])
    return secagg.blind(full, secagg.mask(client, own, cohort, shape), len(cohort.public))


def add(uploads: list[Blinded]) -> Blinded:
    total = np.zeros_like(uploads[0])
    for one in uploads:
        total = total + one
    return total


def rounded(full: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.rint(full / UNIT) * UNIT


def test_both_sides_agree_on_a_secret_and_nobody_else_has_it() -> None:
    owned = pairs(range(4))
    cohort = cohort_of(owned)
    found = set()
    for a in range(4):
        for b in range(a):
            one = secagg.secret(a, owned[a], b, cohort)
            assert one == secagg.secret(b, owned[b], a, cohort)
            found.add(one)
    assert len(found) == 6
    assert {len(one) for one in found} == {32}


def test_keys_are_those_of_rfc_7748() -> None:
    """Section 5.2: the scalar 9, little-endian, times the base point."""
    public = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert secagg.keys(bytes([9]) + bytes(31)).public.hex() == public


@pytest.mark.parametrize("n_clients", [2, 3, 7])
def test_the_sum_has_the_bits_of_the_plain_sum(n_clients: int) -> None:
    owned = pairs(range(n_clients))
    cohort = cohort_of(owned)
    tables = {client: answers(client) for client in owned}
    total = add([upload(c, owned[c], cohort, tables[c]) for c in owned])
    got = secagg.unblind(total, cohort, frozenset(owned))
    expected = sum(rounded(full) for full in tables.values())
    assert np.array_equal(got, expected)
    assert np.array_equal(got[:, -1], sum(full[:, -1] for full in tables.values()))
    assert np.abs(got - sum(tables.values())).max() <= n_clients * UNIT / 2


@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=5, unique=True),
    st.integers(0, 5),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=25)
def test_any_cohort_size_and_order_of_arrival(
    clients: list[int], n_samples: int, classes: int, random: object
) -> None:
    owned = pairs(clients)
    cohort = cohort_of(owned)
    tables = {client: answers(client, n_samples, classes) for client in clients}
    random.shuffle(clients)  # type: ignore[attr-defined]
    total = add([upload(c, owned[c], cohort, tables[c]) for c in clients])
    got = secagg.unblind(total, cohort, frozenset(clients))
    assert np.array_equal(got, sum(rounded(full) for full in tables.values()))


@pytest.mark.parametrize("lost", [{4}, {0, 2}])
def test_lost_clients_are_repaired(lost: set[int]) -> None:
    owned = pairs(range(5))
    cohort = cohort_of(owned, least=3)
    present = frozenset(owned) - lost
    tables = {client: answers(client) for client in present}
    total = add([upload(c, owned[c], cohort, tables[c]) for c in sorted(present)])
    revealed = {c: secagg.reveal(c, owned[c], cohort, frozenset(lost)) for c in present}
    got = secagg.unblind(total, cohort, present, revealed)
    assert np.array_equal(got, sum(rounded(full) for full in tables.values()))
    del revealed[min(present)]
    with pytest.raises(FedkdError, match=f"client {min(present)} did not reveal"):
        secagg.unblind(total, cohort, present, revealed)
    with pytest.raises(FedkdError, match="did not reveal"):
        secagg.unblind(total, cohort, present)


def test_nobody_helps_to_uncover_too_few() -> None:
    owned = pairs(range(5))
    cohort = cohort_of(owned, least=3)
    lost = frozenset({0, 1, 2})
    with pytest.raises(FedkdError, match=r"too few clients are left .*got 2.*at least 3"):
        secagg.reveal(3, owned[3], cohort, lost)
    with pytest.raises(FedkdError, match="too few clients are left"):
        secagg.unblind(np.zeros((M, C + 1), np.uint64), cohort, frozenset({3, 4}))
    for wrong in (frozenset({3}), frozenset({9})):
        with pytest.raises(FedkdError, match="these clients cannot be lost"):
            secagg.reveal(3, owned[3], cohort, wrong)
    for least in (1, 6):
        with pytest.raises(FedkdError, match="hides nothing"):
            cohort_of(owned, least=least)


def uniform(data: Blinded) -> float:
    """The smallest p-value that says that these bytes are not uniform: as a whole, by position."""
    octets = data.view(np.uint8).reshape(-1, 8)
    every = stats.chisquare(np.bincount(octets.ravel(), minlength=256)).pvalue
    by_place = [stats.chisquare(np.bincount(o, minlength=256)).pvalue for o in octets.T]
    whole = stats.kstest(data.ravel() / 2.0**64, "uniform").pvalue
    return float(min(every, *by_place, whole))


def test_a_single_upload_looks_uniform_whatever_is_in_it() -> None:
    """A table of zeros, a table of ones, and their difference under masks of other rounds."""
    owned = pairs(range(3))
    shape = (4000, C + 1)
    zeros, ones = np.zeros(shape), np.ones(shape)
    first = upload(0, owned[0], cohort_of(owned), zeros)
    second = upload(0, owned[0], cohort_of(owned, round_=4), ones)
    for seen in (
        first,
        second,
        second - first,
        first + upload(1, owned[1], cohort_of(owned), ones),
    ):
        assert uniform(seen) > 1e-6
    plain = secagg.blind(ones, np.zeros(shape, np.uint64), 3)
    assert uniform(plain) < 1e-100  # the same test on what is not blinded


def test_uploads_say_nothing_of_each_other() -> None:
    """Two clients' masks in a cohort of three are not each other's negatives."""
    owned = pairs(range(3))
    one, other = (secagg.mask(c, owned[c], cohort_of(owned), (4000, C)) for c in (0, 1))
    top = [m.ravel() / 2.0**64 for m in (one, other)]
    assert abs(stats.pearsonr(*top).statistic) < 5 / math.sqrt(one.size)
    assert uniform(one + other) > 1e-6


def disturbed(change: str) -> tuple[Blinded, Cohort]:
    """The sum of four uploads, one of which was made with something else; and the cohort."""
    owned = pairs(range(4))
    cohort = cohort_of(owned)
    other, own = cohort, owned[1]
    if change == "round":
        other = cohort_of(owned, round_=4)
    elif change == "peers":
        other = cohort_of({c: owned[c] for c in (0, 1, 2)})
    elif change == "least":
        other = cohort_of(owned, least=3)
    elif change == "keys":
        own = pairs(range(4), seed=9)[1]
        other = cohort_of({**owned, 1: own})
    uploads = [upload(c, owned[c], cohort, answers(c)) for c in (0, 2, 3)]
    return add([*uploads, upload(1, own, other, answers(1))]), cohort


@pytest.mark.parametrize("change", ["round", "peers", "least", "keys"])
def test_masks_of_another_round_or_cohort_do_not_cancel_and_that_is_seen(change: str) -> None:
    total, cohort = disturbed(change)
    with pytest.raises(FedkdError, match="the masks did not cancel"):
        secagg.unblind(total, cohort, frozenset(range(4)))
    with pytest.raises(FedkdError, match="the masks did not cancel"):
        secagg.unblind(total, cohort, frozenset(range(4)), std=100.0)
    total, cohort = disturbed("nothing")
    secagg.unblind(total, cohort, frozenset(range(4)))


def test_an_upload_counted_twice_or_left_out_is_seen() -> None:
    owned = pairs(range(3))
    cohort = cohort_of(owned)
    uploads = [upload(c, owned[c], cohort, answers(c)) for c in owned]
    for wrong in (uploads[:2], [*uploads, uploads[0]]):
        with pytest.raises(FedkdError, match="the masks did not cancel"):
            secagg.unblind(add(wrong), cohort, frozenset(owned))
    with pytest.raises(FedkdError, match=r"not of this round; got \[7\]"):
        secagg.unblind(add(uploads), cohort, frozenset({0, 1, 2, 7}))


def test_a_client_whose_key_was_replaced_refuses() -> None:
    owned = pairs(range(3))
    cohort = cohort_of({**owned, 1: pairs([1], seed=9)[1]})
    with pytest.raises(FedkdError, match="does not hold this client's key; got 1"):
        secagg.mask(1, owned[1], cohort, (M, C))


@pytest.mark.parametrize("key", [bytes(32), b"short", b""])
def test_a_key_that_is_none_is_refused(key: bytes) -> None:
    """Zeros are a point of low order: the shared secret would be known to all."""
    own = pairs([0])[0]
    cohort = Cohort(1, {0: own.public, 1: key}, 2)
    with pytest.raises(FedkdError, match="the key of client 1 is no X25519 key"):
        secagg.mask(0, own, cohort, (M, C))
    with pytest.raises(FedkdError, match="a private key has 32 bytes"):
        secagg.keys(b"short")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**32, -(2.0**32)])
def test_values_that_could_wrap_around_are_refused(value: float) -> None:
    full = np.zeros((M, C + 1))
    secagg.blind(full + 2.0**31, np.zeros(full.shape, np.uint64), 2)
    full[3, 2] = value
    with pytest.raises(FedkdError, match="does not fit the sum"):
        secagg.blind(full, np.zeros(full.shape, np.uint64), 2)


@pytest.mark.parametrize("n_clients", [4, 8])
def test_shares_of_noise_add_up_to_gaussian_noise(n_clients: int) -> None:
    """Exactly `std` over the fewest clients, more over more; all entries, each by itself."""
    std, n, least = 0.7, 2000, 4
    owned = pairs(range(n_clients))
    cohort = cohort_of(owned, least=least)
    uploads = []
    for client, own in owned.items():
        rng = stream(5, "client", 3, client, "noise")
        noisy = secagg.add_noise(answers(client, n), std, least, rng)
        uploads.append(upload(client, own, cohort, noisy))
    got = secagg.unblind(add(uploads), cohort, frozenset(owned), std=std)
    noise = (got - sum(answers(client, n) for client in owned)) / math.sqrt(n_clients / least)
    assert stats.kstest(noise.ravel(), "norm", (0, std)).pvalue > 1e-4
    assert stats.kstest(noise[:, -1], "norm", (0, std)).pvalue > 1e-4
    assert np.abs(np.corrcoef(noise.T) - np.eye(C + 1)).max() < 5 / math.sqrt(n)
    assert stats.kstest(noise.ravel() * 0, "norm", (0, std)).pvalue < 1e-100  # were it off


def test_what_a_noisy_sum_costs() -> None:
    """The worst change of one client's table: all other labels, and all answers instead of none."""
    ids = np.arange(M, dtype=np.int32)
    one, other = (np.eye(C, dtype=np.float32)[np.full(M, k)] for k in (0, 1))
    nobody = np.zeros((M, C + 1))
    a, b = secagg.table(ids, one, M), secagg.table(ids, other, M)
    worst = max(np.linalg.norm(a - b), np.linalg.norm(a - nobody))
    event = secagg.sum_event(3.0, M, "replace")
    assert event.noise_multiplier == pytest.approx(3.0 / worst, rel=1e-12)
    for client in range(20):
        assert np.linalg.norm(answers(client) - answers(client + 1)) <= worst
    protects = Protects("client", "replace")
    mu = math.sqrt(2 * M) / 3.0
    eps = accounting.epsilon([event], protects, 1e-5).pld
    assert eps is not None
    delta = stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu)
    assert delta == pytest.approx(1e-5, rel=1e-6)

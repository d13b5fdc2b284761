"""Filters of outlying votes and weights of clients, against slow code and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from test_every_vote import QUICK, SEEDS, Answer, C, N, answers_of, votes_on

from fedkd.exchange import robust, trust
from fedkd.exchange.combine import Combine
from fedkd.exchange.every_vote import Cronus, EveryVote, Spectral
from fedkd.exchange.weighed import Agreement, ExpGuard, Vouched, Weighed

EVERY_WEIGHED = pytest.mark.parametrize(
    "rule", [ExpGuard(), Agreement(), Vouched()], ids=lambda rule: rule.name
)


def heard(
    rule: EveryVote, answers: list[Answer], order: list[int] | None = None, **belief: float
) -> object:
    votes = rule.start(N, C)
    votes.belief.update({int(client[1:]): value for client, value in belief.items()})
    for client in order or range(len(answers)):
        rule.add(votes, *answers[client], client)
    return votes


def scores(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the votes on one sample: projections on the first eigenvector of their covariance."""
    way = votes - votes.mean(axis=0)
    return np.abs(way @ np.linalg.eigh(way.T @ way)[1][:, -1])


def kept(votes: NDArray[np.float64], keep: float) -> NDArray[np.float64]:
    found = scores(votes)
    return votes[found <= np.quantile(found, keep) + 1e-9]


@given(SEEDS)
@QUICK
def test_spectral_and_cronus_are_those_of_each_sample_alone(seed: int) -> None:
    answers = answers_of(seed)
    for rule in (Spectral(keep=0.6), Cronus()):
        consensus = rule.finish(heard(rule, answers))  # type: ignore[arg-type]
        for sample, row in zip(consensus.ids, consensus.values, strict=True):
            votes = votes_on(int(sample), answers)
            for _ in range(2 if isinstance(rule, Cronus) else 1):
                n = len(votes)
                votes = kept(
                    votes, 1 - (-(-n // 2) - 1) / (2 * n) if rule.name == "cronus" else 0.6
                )
            np.testing.assert_allclose(row, votes.mean(axis=0), atol=1e-5)


def test_spectral_leaves_out_one_liar_among_five() -> None:
    honest = np.array([[0.7, 0.2, 0.1]] * 4) + np.linspace(0, 0.01, 4)[:, None]
    votes = np.concatenate([honest, [[0.0, 0.0, 1.0]]])[:, None]
    left, many = robust.filtered(votes, np.array([5]), 0.8)
    assert many.tolist() == [4]
    np.testing.assert_array_equal(np.sort(left[:4, 0, 0]), np.sort(honest[:, 0]))


def pairs(answers: list[Answer]) -> NDArray[np.float64]:
    """On how many samples each two clients agree, over how many both answered; NaN for none."""
    found = np.full((len(answers), len(answers), 2), 0.0)
    for i, (ids, rows) in enumerate(answers):
        for j, (others, theirs) in enumerate(answers):
            for a, row in zip(ids, rows, strict=True):
                for b, other in zip(others, theirs, strict=True):
                    if i != j and a == b:
                        found[i, j] += (row.argmax() == other.argmax(), 1)
    return found


@given(SEEDS)
@QUICK
def test_agreement_and_vouched_are_counts_over_pairs(seed: int) -> None:
    answers = answers_of(seed, share=0.3)
    ids, values = zip(*answers, strict=True)
    agreed, vouched = trust.agreement(ids, values, N), trust.vouched(ids, values, N)
    found = pairs(answers)
    for i in range(len(answers)):
        same, both = found[i].sum(axis=0)
        assert agreed[i] == pytest.approx(same / both if both else 1)
        each = [s / b if b else 1 for j, (s, b) in enumerate(found[i]) if j != i]
        assert vouched[i] == pytest.approx(np.mean(each))


@EVERY_WEIGHED
@given(SEEDS)
@QUICK
def test_the_consensus_is_the_weighted_mean_in_any_order(rule: Weighed, seed: int) -> None:
    answers = answers_of(seed)
    consensus = rule.finish(heard(rule, answers))  # type: ignore[arg-type]
    weights = rule.weights(heard(rule, answers))  # type: ignore[arg-type]
    for sample, row in zip(consensus.ids, consensus.values, strict=True):
        there = [k for k, (ids, _) in enumerate(answers) if sample in ids]
        mass = np.array([weights[k] for k in there])
        expected = mass @ votes_on(int(sample), answers) / mass.sum()
        np.testing.assert_allclose(row, expected, atol=1e-6)
    turned = rule.finish(heard(rule, answers, list(range(len(answers)))[::-1]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(turned.ids, consensus.ids)
    np.testing.assert_allclose(turned.values, consensus.values, atol=1e-6)


@given(SEEDS)
@QUICK
def test_expguard_without_eta_is_the_mean_and_remembers_else(seed: int) -> None:
    answers = answers_of(seed)
    still = ExpGuard(eta=0)
    assert set(still.weights(heard(still, answers)).values()) == {1.0}  # type: ignore[arg-type]
    rule = ExpGuard(eta=2)
    votes = heard(rule, answers, c1=-3.0)
    rule.finish(votes)  # type: ignore[arg-type]
    for client, (ids, _) in enumerate(answers):
        found = []
        for sample in ids:
            there = [k for k, (mine, _) in enumerate(answers) if sample in mine]
            found.append(scores(votes_on(int(sample), answers))[there.index(client)])
        log = -2 * (np.mean(found) if found else 0) - 3 * (client == 1)
        assert votes.belief[client] == pytest.approx(log, abs=1e-6)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("log", "n"), [(-50, 2), (-110, 2), (-660, 2), (-740, 1), (-800, 1)])
def test_whom_nobody_believes_any_more_is_heard_rightly_or_not_at_all(log: float, n: int) -> None:
    """After many rounds; the weights of float32 ended at e^-103, and left rows of zeros."""
    row = np.array([[0.2, 0.3, 0.5]], np.float32)
    rule = ExpGuard()
    votes = rule.start(2, 3)
    votes.belief.update({0: 0.0, 1: log})
    for client in range(2):
        rule.add(votes, np.array([client], np.int32), row, client)
    consensus = rule.finish(votes)
    assert consensus.ids.tolist() == list(range(n))
    np.testing.assert_allclose(consensus.values, np.repeat(row, n, axis=0), atol=1e-7)


def test_who_claims_everything_meets_the_objections_of_all() -> None:
    """Five honest clients with samples of their own, and two liars that answer all of them."""
    n = 50
    truth = np.arange(n) % 3
    sure = np.eye(3, dtype=np.float32)
    own = [np.arange(10 * k, 10 * k + 10, dtype=np.int32) for k in range(5)]
    answers: list[Answer] = [(ids, sure[truth[ids]]) for ids in own]
    everything = np.arange(n, dtype=np.int32)
    answers += [(everything, sure[(truth + shift) % 3]) for shift in (1, 2)]
    found: dict[str, float] = {}
    rules: list[Combine] = [Vouched(), Spectral(), Cronus(), Agreement()]
    for rule in rules:
        assert isinstance(rule, EveryVote)
        votes = rule.start(n, 3)
        for client, (ids, rows) in enumerate(answers):
            rule.add(votes, ids, rows, client)
        consensus = rule.finish(votes)
        right = consensus.values.argmax(axis=1) == truth[consensus.ids]
        found[rule.name] = right.sum() / n
        if isinstance(rule, Vouched):
            trusted = rule.trust(votes)
            assert all(trusted[k] == pytest.approx(4 / 6) for k in range(5))
            assert trusted[5] == trusted[6] == 0
    assert found["vouched"] == 1
    assert max(found[name] for name in ("spectral", "cronus", "agreement")) < 0.9

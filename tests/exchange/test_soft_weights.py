"""Answers that count by weights: the gate by SciPy, the sum by fractions, the wire, the limits."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import payload, payload_answers
from fedkd.codecs import ArgMax
from fedkd.errors import FedkdError, PayloadError
from fedkd.exchange.combine import Mean, Power, Summed, TrueLabel, Variance
from fedkd.exchange.gate import Soft
from fedkd.payload_answers import Answer
from fedkd.rng import stream
from privacy.ledger import Ledger
from scenario_tables import refusal
from scenarios.simulate import simulate
from server.measures import filter_quality
from small_runs import consensus, facts, small

N, C = 12, 4
SEEDS = st.integers(0, 2**16)
SPREAD = {"name": "edgefd", "gate": {"name": "soft", "by": "spread"}}


def said(seed: int, n_clients: int) -> list[Answer]:
    draws = stream(seed, "test")
    found = []
    for client in range(n_clients):
        ids = np.flatnonzero(draws.random(N) < 0.7).astype(np.int32)
        values = draws.dirichlet(np.ones(C), len(ids)).astype(np.float32)
        weights = 1 - draws.random(len(ids), np.float32)  # above 0, up to 1
        found.append(Answer(client, 1, ids, values, weights))
    return found


def together(rule: Summed, answers: list[Answer]) -> payload.Consensus:
    votes = rule.start_weighed(N, C)
    for one in answers:
        rule.add_weighed(votes, one.ids, one.values, one.weights)
    return rule.finish_weighed(votes)


# --- the gate ---


@settings(deadline=None)
@given(SEEDS)
def test_weights_are_probabilities_of_being_the_client_s(seed: int) -> None:
    draws = stream(seed, "test")
    heldout, pool = (torch.from_numpy(draws.normal(0, 30, n)) for n in (9, N))
    own = torch.from_numpy(draws.random(N) < 0.3)
    s = pool.numpy()
    mine = np.concatenate([heldout, s[own.numpy()]])
    low, middle, high = np.quantile(mine, [0.25, 0.5, 0.75])
    ratio = np.maximum(-s, 0)
    truth = {
        "odds": scipy.special.expit(-s),
        "ratio": ratio / (1 + ratio),
        "spread": scipy.special.expit((middle - s) / (high - low)),
    }
    for by, values in truth.items():
        found = Soft(by=by, floor=1e-3).weights(heldout, pool, own).numpy()  # type: ignore[arg-type]
        want = np.where(own.numpy(), 1, np.maximum(values, 1e-3))
        np.testing.assert_allclose(found, want, rtol=1e-5)
        assert found.dtype == np.float32
        order = np.argsort(s[~own.numpy()])
        assert (np.diff(found[~own.numpy()][order]) <= 1e-7).all()  # stranger counts less


def test_own_scores_without_a_spread_make_a_step() -> None:
    pool = torch.tensor([0.0, 1.0, 2.0])
    found = Soft(by="spread").weights(torch.ones(5), pool, torch.zeros(3, dtype=torch.bool))
    np.testing.assert_allclose(found, [1, 0.5, 1e-8])


# --- the sum ---


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_the_weighted_mean_is_that_of_fractions(seed: int, n_clients: int) -> None:
    answers = said(seed, n_clients)
    found = together(Mean(), answers)
    for sample in range(N):
        top, mass = [Fraction(0)] * C, Fraction(0)
        for one in answers:
            assert one.weights is not None
            for row in np.flatnonzero(one.ids == sample):
                weight = Fraction(float(one.weights[row]))
                mass += weight
                top = [
                    t + weight * Fraction(float(v))
                    for t, v in zip(top, one.values[row], strict=True)
                ]
        (at,) = np.nonzero(found.ids == sample)
        assert len(at) == (mass > 0)  # without a voter it is dropped
        if len(at):
            np.testing.assert_allclose(
                found.values[at[0]], [float(t / mass) for t in top], rtol=1e-6
            )


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), st.floats(1e-8, 1))
def test_equal_weights_are_the_mean(seed: int, n_clients: int, weight: float) -> None:
    for rule in (Mean(), Power(beta=2.0)):
        votes, answers = rule.start(N, C), said(seed, n_clients)
        for one in answers:
            rule.add(votes, one.ids, one.values)
        plain = rule.finish(votes)
        even = [a._replace(weights=np.full(len(a.ids), weight, np.float32)) for a in answers]
        found = together(rule, even)
        np.testing.assert_array_equal(found.ids, plain.ids)
        np.testing.assert_allclose(found.values, plain.values, atol=1e-6)


@settings(deadline=None)
@given(SEEDS)
def test_of_one_client_it_is_its_own_answers(seed: int) -> None:
    (alone,) = said(seed, 1)
    found = together(Mean(), [alone])
    np.testing.assert_array_equal(found.ids, alone.ids)
    np.testing.assert_allclose(found.values, alone.values, rtol=1e-6)


@settings(deadline=None)
@given(SEEDS)
def test_a_weight_of_next_to_nothing_is_a_mask(seed: int) -> None:
    first, second = said(seed, 2)
    faint = second._replace(weights=np.full(len(second.ids), 1e-8, np.float32))
    sure = first._replace(weights=np.ones(len(first.ids), np.float32))
    found = together(Mean(), [sure, faint])
    at = np.isin(found.ids, first.ids)
    np.testing.assert_allclose(found.values[at], first.values, atol=1e-6)
    np.testing.assert_array_equal(found.ids, np.union1d(first.ids, second.ids))


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_variance_weighs_by_numpy_s_and_drops_what_all_answer_evenly(seed: int, n: int) -> None:
    draws = stream(seed, "test")
    ids = np.arange(N, dtype=np.int32)
    values = draws.normal(size=(n, N, C)).astype(np.float32)
    values[:, 0] = 0.5
    found = together(Variance(), [Answer(i, 1, ids, v) for i, v in enumerate(values)])
    weights = values.astype(np.float64).var(axis=2)[:, 1:, None]
    truth = (weights * values[:, 1:]).sum(axis=0) / weights.sum(axis=0)
    np.testing.assert_array_equal(found.ids, ids[1:])
    np.testing.assert_allclose(found.values, truth, rtol=1e-5, atol=1e-6)


def labelled(labels: list[int], answers: list[Answer], rule: TrueLabel) -> payload.Consensus:
    votes = rule.start_weighed(len(labels), C, np.array(labels, np.int64))
    for one in answers:
        rule.add_weighed(votes, one.ids, one.values, one.weights)
    return rule.finish_weighed(votes)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_true_labels_weigh_as_in_weighted_fd(seed: int, n: int) -> None:
    """Its formula in a plain loop: softmax of the sum of -1 / log p(y) x p; unknown labels drop."""
    draws = stream(seed, "test")
    answers = [one._replace(weights=None) for one in said(seed, n)]
    labels = draws.integers(-1, C, N).tolist()
    found = labelled(labels, answers, TrueLabel())
    sums: dict[int, np.ndarray] = {}
    for one in answers:
        for sample, row in zip(one.ids.tolist(), one.values.astype(float), strict=True):
            if labels[sample] >= 0:
                weight = -1 / np.log(min(row[labels[sample]], 1 - 1e-6))
                sums[sample] = sums.get(sample, np.zeros(C)) + weight * row
    assert found.ids.tolist() == sorted(sums)
    for sample, values in zip(found.ids.tolist(), found.values, strict=True):
        np.testing.assert_allclose(values, scipy.special.softmax(sums[sample]), rtol=1e-4)


def test_a_client_that_is_sure_and_right_does_not_turn_the_label_round() -> None:
    """In the released code p = 1 becomes log 0, then a weight of -1e10."""
    sure = np.eye(C, dtype=np.float32)[[2]]
    wrong = np.array([[0.9, 0.1, 0.0, 0.0]], np.float32)  # gives the label nothing at all
    ids = np.array([0], np.int32)
    answers = [Answer(0, 1, ids, sure), Answer(1, 1, ids, wrong)]
    for some in (answers, answers[:1]):
        found = labelled([2], some, TrueLabel())
        assert found.values.argmax() == 2
        assert np.isfinite(found.values).all()
    (only_wrong,) = labelled([2], answers[1:], TrueLabel()).values
    assert only_wrong.argmax() == 0
    assert only_wrong.max() < 0.3  # it counts next to nothing: nearly even


OWN = {"name": "own", "clients": 3, "classes": 10}
FOREIGN = {"name": "foreign", "source": {"name": "pydoc"}}


@pytest.mark.parametrize("changes", [{"partition": OWN}, {"proxy": FOREIGN}])
@pytest.mark.parametrize(
    "method", [{"name": "weighted-fd"}, {"name": "edgefd", "gate": {"name": "oracle"}}]
)
def test_what_reads_the_true_labels_needs_some(
    changes: dict[str, Any], method: dict[str, Any]
) -> None:
    with pytest.raises(FedkdError, match="true labels, and nobody knows them"):
        small(method=method, **changes)


def test_the_oracle_is_no_private_filter() -> None:
    """Else a mask made of true labels would be charged as if it were private."""
    method = {"name": "edgefd", "gate": {"name": "oracle"}}
    with pytest.raises(FedkdError, match=r"dp-kmeans.*allowed: plain"):
        small(method=method, privacy={"filter": {"name": "dp-kmeans"}})


# --- the wire ---


@settings(deadline=None)
@given(SEEDS)
def test_weights_travel(seed: int) -> None:
    (answer,) = said(seed, 1)
    sizes: dict[str, Any] = {"client": 0, "round_": 1, "n_samples": N, "n_classes": C}
    back = payload_answers.decode_answer(
        payload_answers.encode_answer(answer), simplex=True, weighed=True, **sizes
    )
    np.testing.assert_array_equal(back.weights, answer.weights)
    data = payload_answers.encode_coded_answer(answer, ArgMax(), stream(1, "test"))
    coded = payload_answers.decode_coded_answer(data, coding=ArgMax(), weighed=True, **sizes)
    blocks = list(coded.blocks())
    np.testing.assert_array_equal(np.concatenate([b.weights for b in blocks]), answer.weights)


def arrived(answer: Answer, weighed: bool) -> Answer:
    sizes = {"client": 0, "round_": 1, "n_samples": N, "n_classes": C}
    data = payload_answers.encode_answer(answer)
    return payload_answers.decode_answer(data, simplex=True, weighed=weighed, **sizes)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ([0.0, 1.0], "not above 0"),
        ([1.5, 1.0], "at most 1"),
        ([np.nan, 1.0], "not finite"),
        ([np.inf, 1.0], "not finite"),
        ([-1.0, 1.0], "not above 0"),
        ([1.0], "one weight a sample"),
        ([[1.0], [1.0]], "one weight a sample"),
    ],
)
def test_weights_that_break_the_contract_are_refused(weights: list[Any], why: str) -> None:
    values = np.full((2, C), 1 / C, np.float32)
    answer = Answer(0, 1, np.array([1, 5], np.int32), values, np.array(weights, np.float32))
    with pytest.raises(PayloadError, match=why):
        arrived(answer, weighed=True)


@pytest.mark.parametrize("weighed", [False, True])
def test_weights_come_where_they_are_asked_for_and_nowhere_else(weighed: bool) -> None:
    (answer,) = said(1, 1)
    sent = answer._replace(weights=None) if weighed else answer
    with pytest.raises(PayloadError, match="wrong arrays"):
        arrived(sent, weighed=weighed)


# --- runs ---


def test_precision_is_the_share_of_the_weight() -> None:
    labels = np.array([0, 1, 1, 2])
    weights = np.array([0.5, 1, 0.25, 0.25], np.float32)
    found = filter_quality(np.arange(4, dtype=np.int32), labels, np.array([3, 0, 1]), weights)
    assert found["precision"] == 0.75 / 2
    assert found["accepted"] == 1


def test_weights_find_the_client_s_classes_and_are_in_its_ledger(tmp_path: Path) -> None:
    """Better than answers that all count alike, and charged each round: features change."""
    strong = {"name": "strong", "clients": 10}
    even = simulate(small(method={"name": "no-filter"}, partition=strong)).cells[0].of("round")[-1]
    method = {"name": "fedaux", "release": {"name": "probabilities"}}
    scenario = small(method=method, partition=strong)
    (cell,) = simulate(scenario, folder=tmp_path).cells
    assert cell.of("round")[-1]["precision"] > even["precision"] + 0.1
    for path in tmp_path.glob("fedaux/seed-1/clients/*/ledger.jsonl"):
        kept = [e for e in Ledger(path).entries() if e.what == "sample weights"]
        assert [e.round for e in kept] == [1, 2]
        assert {(e.guarantee, e.seen_by) for e in kept} == {("none", "server")}


def test_of_texts_and_of_pixels(tmp_path: Path) -> None:
    """Weights of pixels are made once; a text's positions share one."""
    text: dict[str, Any] = {
        "data": {"name": "pydoc", "owners": 3, "length": 48, "test_fraction": 0.1},
        "partition": {"name": "natural"},
        "proxy": {"name": "public", "size": 20},
        "model": {"names": ["gru"]},
        "training": {"rounds": 1, "local": {"epochs": 0.1}},
    }
    simulate(small(method={"name": "fedaux"}, **text), folder=tmp_path / "text")
    kept = consensus(tmp_path / "text" / "fedaux" / "seed-1")
    np.testing.assert_array_equal(kept["ids"], np.arange(20 * 48))
    result = simulate(small(method=SPREAD), folder=tmp_path / "pixels")
    assert not result.cells[0].of("refused")
    (path, *_) = sorted(tmp_path.glob("pixels/edgefd/seed-1/clients/*/ledger.jsonl"))
    assert [e.round for e in Ledger(path).entries() if e.what == "sample weights"] == [1]


def test_together_and_in_workers_it_is_the_same() -> None:
    alone = facts(simulate(small(method={"name": "fedaux"})))
    spread = small(method={"name": "fedaux"}, grid={"name": "workers", "workers": 2})
    assert facts(simulate(spread)) == alone


def test_a_liar_may_claim_everything_but_no_more_than_1() -> None:
    hostile = {"share": 0.34, "attack": {"name": "one-class"}, "everything": True}
    (cell,) = simulate(small(method=SPREAD, hostile=hostile)).cells
    assert not cell.of("refused")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"method": {**SPREAD, "combine": {"name": "median"}}},
            "method.combine.name = 'median'",
        ),
        ({"method": {"name": "edgefd", "gate": {"name": "soft"}}}, "method.score.name = 'kmeans'"),
        (
            {"method": SPREAD, "privacy": {"server": {"name": "secure-aggregation"}}},
            "privacy.server.name = 'secure-aggregation'",
        ),
        (
            {"method": SPREAD, "privacy": {"filter": {"name": "dp-kmeans"}}},
            "privacy.filter.name = 'dp-kmeans'",
        ),
        ({"method": SPREAD, "audit": True}, "audit = True"),
        (
            {"method": SPREAD, "privacy": {"budget": 3.0, "training": {"name": "dp-sgd"}}},
            "the gate soft tells of raw data",
        ),
    ],
)
def test_what_does_not_go_with_weights_is_refused(table: dict[str, Any], words: str) -> None:
    assert words in refusal(table)

"""FD: means by label, the others' share by loops, its loss by SciPy, messages, runs, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from clients.consent import Consent
from fedkd import payload
from fedkd.data.dataset import NO_LABEL
from fedkd.errors import FedkdError, PayloadError
from fedkd.exchange.distill import KL
from fedkd.exchange.label_means import LabelMeans, Own, means_of, of_others, regularised
from fedkd.rng import stream
from privacy.forecast import exact
from privacy.ledger import Ledger
from scenario_tables import refusal
from scenarios.simulate import simulate
from small_runs import facts, small, stopped_and_resumed

C = 5
SEEDS = st.integers(0, 2**16)
FD = {"method": {"name": "fd"}}


def said(seed: int, n_clients: int) -> dict[int, Own]:
    """Of each client, means of logits of the labels that it happens to hold."""
    draws = stream(seed, "test")
    found = {}
    for client in range(n_clients):
        ids = np.flatnonzero(draws.random(C) < 0.6).astype(np.int32)
        found[client] = Own(ids, draws.normal(0, 5, (len(ids), C)).astype(np.float32))
    return found


def summed(owns: dict[int, Own]) -> LabelMeans:
    total, voters = np.zeros((C, C)), np.zeros(C, np.int32)
    for own in owns.values():
        total[own.ids] += own.values
        voters[own.ids] += 1
    ids = np.flatnonzero(voters).astype(np.int32)
    return LabelMeans(np.array(sorted(owns), np.int32), ids, total[ids], voters[ids])


@settings(deadline=None)
@given(SEEDS, st.integers(0, 30))
def test_means_are_those_of_each_label(seed: int, n: int) -> None:
    draws = stream(seed, "test")
    values = draws.normal(size=(n, C)).astype(np.float32)
    labels = draws.choice([NO_LABEL, 0, 2, 3], size=n)
    own = means_of(torch.from_numpy(values), torch.from_numpy(labels))
    held = sorted(set(labels.tolist()) - {NO_LABEL})
    assert own.ids.tolist() == held
    for row, label in zip(own.values, held, strict=True):
        np.testing.assert_allclose(row, values[labels == label].mean(axis=0), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_a_client_hears_the_others_and_not_itself(seed: int, n_clients: int) -> None:
    owns = said(seed, n_clients)
    whole = summed(owns)
    for client in range(n_clients + 1):  # the last one said nothing
        found = of_others(whole, client, owns.get(client))
        for label in range(C):
            votes = [
                own.values[own.ids == label][0]
                for other, own in owns.items()
                if other != client and label in own.ids
            ]
            assert found.known[label] == bool(votes)  # what nobody else holds is unknown
            want = np.mean(votes, axis=0) if votes else np.zeros(C)
            np.testing.assert_allclose(found.values[label], want, rtol=1e-4, atol=1e-5)


def test_of_one_client_nothing_is_known_and_who_forgot_what_it_said_learns_nothing() -> None:
    assert not of_others(summed(said(3, 1)), 0, said(3, 1)[0]).known.any()
    assert not of_others(summed(said(3, 4)), 2, None).known.any()
    assert of_others(summed(said(3, 4)), 9, None).known.any()  # nothing of it is in there


@settings(deadline=None)
@given(SEEDS, st.floats(0, 5))
def test_the_loss_is_cross_entropy_and_gamma_times_the_divergence(seed: int, gamma: float) -> None:
    """The target is a distribution though raw logits are exchanged: HtFLlib's is none."""
    draws = stream(seed, "test")
    logits, teacher = draws.normal(size=(8, C)), draws.normal(0, 9, (2 * C, C))
    target, known = softmax(teacher, axis=1), draws.random(2 * C) < 0.5
    coded = draws.integers(2 * C, size=8)
    coded[0] = NO_LABEL
    log_q = log_softmax(logits, axis=1)
    want = np.zeros(8)
    for i in range(1, 8):
        p = target[coded[i]]
        want[i] = -log_q[i, coded[i] % C]
        if known[coded[i]]:
            want[i] += gamma * (p * (np.log(p) - log_q[i])).sum()
    args = torch.from_numpy(target), torch.from_numpy(known)
    found = regularised(*args, KL().loss, gamma)(torch.from_numpy(logits), torch.from_numpy(coded))
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-9)
    assert (found >= 0).all()


# --- messages ---


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_what_was_said_travels(seed: int, n_clients: int) -> None:
    whole = summed(said(seed, n_clients))
    back = payload.decode_label_means(payload.encode_label_means(whole, 3), round_=3, n_classes=C)
    assert all(np.array_equal(a, b) for a, b in zip(whole, back, strict=True))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"voters": np.array([9, 1], np.int32)}, "more than there are clients"),
        ({"voters": np.array([0, 1], np.int32)}, "no voters"),
        ({"voters": np.array([1], np.int32)}, "one number of voters"),
        ({"clients": np.array([1, 0], np.int32)}, "ascending"),
        ({"ids": np.array([0, 7], np.int32)}, "out of range"),
        ({"total": np.full((2, C), np.nan)}, "not finite"),
        ({"total": np.zeros((2, C + 1))}, "values are"),
    ],
)
def test_what_breaks_the_contract_is_refused(change: dict[str, Any], why: str) -> None:
    ids, voters = np.array([0, 2], np.int32), np.array([1, 2], np.int32)
    good = LabelMeans(np.array([0, 1], np.int32), ids, np.zeros((2, C)), voters)
    data = payload.encode_label_means(good._replace(**change), 1)
    with pytest.raises(PayloadError, match=why):
        payload.decode_label_means(data, round_=1, n_classes=C)
    with pytest.raises(PayloadError, match="another round"):
        payload.decode_label_means(payload.encode_label_means(good, 2), round_=1, n_classes=C)


# --- runs ---


def test_without_gamma_clients_learn_alone() -> None:
    """To the bit; and from the second round on with it they do not: the first has no means yet."""
    kept = ("accuracy", "own_accuracy", "train_loss")
    alone, none, some = (
        [
            {key: event[key] for key in kept}
            for event in simulate(small(method=method)).cells[0].of("client")
        ]
        for method in (
            {"name": "local-only"},
            {"name": "fd", "regulariser": {"gamma": 0}},
            {"name": "fd"},
        )
    )
    assert none == alone
    assert some[:3] == alone[:3]
    assert all(a != b for a, b in zip(some[3:], alone[3:], strict=True))


def test_clients_together_learn_what_each_learns_alone() -> None:
    one, block = (
        simulate(small(**FD, grid=grid)).cells[0].of("round")[-1]
        for grid in ({"name": "inline"}, {"name": "cohort", "block": 3})
    )
    assert block["accuracy"] == pytest.approx(one["accuracy"], abs=0.01)


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    scenario = small(**FD, training={"rounds": 4, "participation": 0.7})
    whole = facts(simulate(scenario))
    assert facts(stopped_and_resumed(scenario, tmp_path, 4)) == whole


def test_it_is_in_the_ledger_without_a_guarantee(tmp_path: Path) -> None:
    scenario = small(**FD)
    simulate(scenario, folder=tmp_path)
    paths = sorted(tmp_path.glob("fd/seed-1/clients/*/ledger.jsonl"))
    assert len(paths) == 3
    for path in paths:
        kept = [e for e in Ledger(path).entries() if e.rows]
        assert [(e.what, e.round) for e in kept] == [("label means", 1), ("label means", 2)]
        assert {(e.guarantee, e.seen_by) for e in kept} == {("none", "server and all clients")}
    assert not exact(scenario)


def test_a_deployed_client_must_name_it() -> None:
    with pytest.raises(FedkdError, match="does not agree to the exchange"):
        Consent().check(small(**FD))
    Consent(exchanges=("label-means",)).check(small(**FD))


def test_of_texts(tmp_path: Path) -> None:
    scenario = small(
        **FD,
        data={"name": "pydoc", "owners": 3, "length": 48, "test_fraction": 0.1},
        partition={"name": "natural"},
        model={"names": ["gru"]},
        training={"rounds": 2, "local": {"epochs": 0.1}},
    )
    (cell,) = simulate(scenario).cells
    assert not cell.of("refused")
    assert 0 < cell.of("round")[-1]["labels"] <= 1


def test_liars_lie_in_distributions() -> None:
    method = {"name": "fd", "release": {"name": "probabilities"}}
    hostile = {"share": 0.34, "attack": {"name": "lma"}}
    (cell,) = simulate(small(method=method, hostile=hostile)).cells
    assert not cell.of("refused")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"method": {"name": "edgefd", "regulariser": {"name": "labels"}}},
            "method.name = 'edgefd'",
        ),
        ({"method": {"name": "fd", "regulariser": {"name": "none"}}}, "method.regulariser.name"),
        (
            {"method": {"name": "fd", "combine": {"name": "geometric-median"}}},
            "method.combine.name",
        ),
        ({**FD, "wire": {"up": "float16"}}, "wire.up = 'float16'"),
        ({**FD, "audit": True}, "audit = True"),
        ({**FD, "privacy": {"release": {"name": "gaussian"}}}, "fd sends label-means"),
        ({**FD, "privacy": {"training": {"name": "dp-sgd"}}}, "has a loss of its own"),
        ({**FD, "privacy": {"budget": 1.0}}, "means over private records leave as they are"),
        ({**FD, "privacy": {"server": {"name": "secure-aggregation"}}}, "this method sends none"),
    ],
)
def test_what_does_not_go_with_it_is_refused(table: dict[str, Any], words: str) -> None:
    assert words in refusal(table)

"""The server's own model: by hand, played again, resumed, of texts, under sums; CFD's votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torch.nn.utils import parameters_to_vector

from fedkd import training
from fedkd.exchange.consensus import Consensus
from fedkd.lesson import lesson
from fedkd.models.zoo import build
from fedkd.payload import Pool
from fedkd.rng import stream, torch_stream
from scenario_tables import refusal
from scenarios.simulate import simulate
from server.job import Job, Roster
from server.student import Student
from small_runs import consensus, facts, small, stopped_and_resumed

N, C = 60, 10
IDS = np.arange(0, N, 2, dtype=np.int32)


def taught(seed: int, draws: int = 0) -> Consensus:
    values = stream(seed, "consensus", draws).dirichlet(np.ones(C), len(IDS))
    return Consensus(IDS, values.astype(np.float32))


def student(model: str = "mlp", **method: Any) -> Student:
    scenario = small(
        method={"name": "mhat", **method},
        model={"names": [model]},
        training={"student": {"epochs": 2, "batch_size": 8}},
    )
    x = stream(1, "pool").random((N, 1, 8, 8), dtype=np.float32)
    roster = Roster(
        nodes={0: 0},
        n_classes=C,
        shape=(1, 8, 8),
        dtype=torch.float32,
        pool=Pool(x, np.full(N, -1, np.int32)),
        truth=None,
        packed=None,
        digest="",
        holders=set(),
    )
    return Student(Job(scenario=scenario, seed=1, state_folder=""), roster)


def test_it_learns_as_a_client_does_and_tells_what_it_learnt() -> None:
    one, given = student(), taught(1)
    told, said = one.learn(1, given)
    shape = (1, 8, 8)
    init = torch_stream(1, "server", purpose="student init")
    model = build("mlp", shape, C, init, torch.float32)
    x = torch.from_numpy(stream(1, "pool").random((N, *shape), dtype=np.float32))
    scenario = one._scenario
    loss = training.fit(
        model,
        x[IDS],
        torch.from_numpy(given.values),
        lambda logits, p: -(p * torch.log_softmax(logits, 1)).sum(1) + torch.xlogy(p, p).sum(1),
        scenario.training.student,
        stream(1, "server", 1, purpose="student"),
    )
    assert said["server_loss"] == pytest.approx(loss, rel=1e-5)
    np.testing.assert_array_equal(told.ids, IDS)
    with torch.no_grad():
        logits = model.eval()(x[IDS]).numpy()
    np.testing.assert_allclose(told.values, softmax(logits, axis=1), atol=1e-5)
    assert 0 < said["server_accuracy"] < 1


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 99), lost=st.booleans())
def test_a_round_played_again_begins_with_what_it_began_with(seed: int, lost: bool) -> None:
    once, twice = student(), student()
    for one in (once, twice):
        one.learn(1, taught(seed))
    twice.learn(2, taught(seed, 1) if not lost else Consensus(IDS[:0], taught(0).values[:0]))
    ours, theirs = (one.learn(2, taught(seed, 2))[0] for one in (once, twice))
    np.testing.assert_array_equal(ours.values, theirs.values)
    mine, other = once.arrays(), twice.arrays()
    assert all(np.array_equal(mine[key], other[key]) for key in mine)


def test_nothing_to_learn_leaves_it_as_it_was() -> None:
    one = student()
    before = one.arrays()
    told, said = one.learn(1, Consensus(IDS[:0], taught(1).values[:0]))
    assert len(told.ids) == 0
    assert "server_loss" not in said
    assert all(np.array_equal(before[key], after) for key, after in one.arrays().items())


@pytest.mark.parametrize("model", ["mlp", "small-cnn"])
def test_a_checkpoint_brings_it_back_to_the_bit(model: str) -> None:
    whole, cut = student(model), student(model)
    whole.learn(1, taught(1))
    cut.restore(whole.arrays())
    ours, theirs = (one.learn(2, taught(2))[0] for one in (whole, cut))
    np.testing.assert_array_equal(ours.values, theirs.values)


def test_it_may_leave_the_word_to_the_consensus() -> None:
    """Then clients do what they do without it, to the bit."""
    without = facts(simulate(small(method={"name": "no-filter"})))
    beside = facts(simulate(small(method={"name": "mhat", "student": {"tells": "consensus"}})))
    server = {"server_accuracy", "server_loss", "cell"}
    assert [{k: v for k, v in e.items() if k != "cell"} for e in without] == [
        {k: v for k, v in e.items() if k not in server} for e in beside
    ]
    assert all("server_accuracy" in e for e in beside if e["event"] == "round")


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    scenario = small(method={"name": "cfd"}, training={"rounds": 3}, model={"names": ["small-cnn"]})
    whole = simulate(scenario)
    assert facts(stopped_and_resumed(scenario, tmp_path, 3)) == facts(whole)


def test_under_secure_sums_it_is_taught_the_same(tmp_path: Path) -> None:
    found = []
    for name in ("plain", "secure-aggregation"):
        folder = tmp_path / name
        what = small(method={"name": "mhat"}, privacy={"server": {"name": name}})
        simulate(what, folder=folder)
        found.append(consensus(folder / "mhat" / "seed-1"))
    assert any(key.startswith("student.") for key in found[0])
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][key], found[1][key]) for key in found[0])


def test_of_texts_it_learns_positions(tmp_path: Path) -> None:
    scenario = small(
        data={"name": "pydoc", "owners": 3, "length": 48, "test_fraction": 0.1},
        partition={"name": "natural"},
        proxy={"name": "public", "size": 20},
        model={"names": ["gru"]},
        method={"name": "mhat"},
        training={"rounds": 1, "local": {"epochs": 0.1}},
    )
    simulate(scenario, folder=tmp_path)
    kept = consensus(tmp_path / "mhat" / "seed-1")
    np.testing.assert_array_equal(kept["ids"], np.arange(20 * 48))
    np.testing.assert_allclose(kept["values"].sum(axis=1), 1, atol=1e-5)


@settings(deadline=None)
@given(ids=st.sets(st.integers(0, 29), min_size=1), seed=st.integers(0, 99))
def test_a_lesson_of_texts_says_what_each_position_is_to_learn(ids: set[int], seed: int) -> None:
    which = torch.tensor(sorted(ids))
    target = torch.rand(len(which), C, generator=torch_stream(seed, "t"))
    rows, targets, weight = lesson(which, target, 5)
    assert weight is not None
    assert {int(r) * 5 + p for i, r in enumerate(rows) for p in range(5) if weight[i, p]} == ids
    for row, place in zip(which, target, strict=True):
        at = (rows == row // 5).nonzero().item()
        assert torch.equal(targets[int(at), int(row % 5)], place)


def test_cfd_s_server_learns_shares_of_votes_and_answers_softly(tmp_path: Path) -> None:
    """Of 3 clients, every vote is a third: what the students would learn without the server."""
    for tells in ("consensus", "student"):
        method = {"name": "cfd", "student": {"tells": tells}}
        simulate(small(method=method, training={"rounds": 1}), folder=tmp_path / tells)
    votes, soft = (
        consensus(tmp_path / tells / "cfd" / "seed-1")["values"]
        for tells in ("consensus", "student")
    )
    np.testing.assert_allclose(votes * 3, np.rint(votes * 3), atol=1e-5)
    np.testing.assert_allclose(votes.sum(axis=1), 1, atol=1e-5)
    assert (soft > 0).all()
    assert np.abs(soft * 3 - np.rint(soft * 3)).max() > 0.1


def test_cfd_sends_a_byte_a_sample(tmp_path: Path) -> None:
    """Beside the ids, which a mask says in a bit each."""
    up = {}
    for name in ("cfd", "no-filter"):
        scenario = small(method={"name": name}, wire={"mask": True}, training={"rounds": 1})
        events = simulate(scenario).cells[0].events
        n = next(e["n_samples"] for e in events if e["event"] == "pool")
        sent = [e["bytes_up"] for e in events if e["event"] == "client"]
        up[name] = [b - (n if name == "cfd" else 40 * n) - -(-4 * n // 8) for b in sent]
        assert all(0 < b < 400 for b in up[name]), "headers"


def test_cfd_gets_better_once_models_know_something() -> None:
    training = {"rounds": 4, "local": {"epochs": 5}, "distill": {"epochs": 2}}
    (cell,) = simulate(small(method={"name": "cfd"}, training=training)).cells
    for key in ("accuracy", "server_accuracy"):
        found = [line[key] for line in cell.of("round")]
        assert found == sorted(found)
        assert found[-1] > 0.4


def test_its_weights_are_those_that_it_tells_with() -> None:
    one = student()
    before = parameters_to_vector(one._model.parameters()).clone()
    one.learn(1, taught(1))
    assert not torch.equal(before, parameters_to_vector(one._model.parameters()))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"method": {"name": "fedavg", "student": {"name": "server"}}}, "this method has none"),
        (
            {"method": {"name": "mhat", "student": {"model": "cnnn"}}},
            "unknown model in method.student.model; got 'cnnn'",
        ),
        (
            {
                "method": {"name": "mhat"},
                "privacy": {"release": {"name": "swing", "degree": "density"}},
            },
            "method.student.name = 'server'",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(table: dict[str, Any], said: str) -> None:
    assert said in refusal(table)

"""A draw of the pool a round: what is asked, that no more is answered, and what is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import payload
from fedkd.codecs import mask_of
from fedkd.errors import PayloadError
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.selection import Coverage, Random, Uncertain
from fedkd.rng import stream
from fedkd.wire import pack
from privacy.forecast import exact
from scenario_tables import refusal
from scenarios.simulate import simulate
from server.hearing import Sizes
from server.job import Job
from server.picker import Picker
from small_runs import consensus, facts, small, stopped_and_resumed

SEEDS = st.integers(0, 2**16)
DRAWS = ("random", "entropy", "coverage")


def method(name: str, share: float = 0.25, **more: Any) -> dict[str, Any]:
    return {"name": "edgefd", "select": {"name": name, "share": share}, **more}


def picker(name: str, n: int = 40, share: float = 0.25, positions: int = 1) -> Picker:
    job = Job(scenario=small(method=method(name, share)), seed=1, state_folder="")
    return Picker(job, Sizes(n * positions, 4, positions))


def asked(one: Picker, round_: int, n: int = 40) -> np.ndarray:
    data = one.ask(round_)
    assert data is not None
    return payload.decode_selection(data, round_=round_, n_records=n).asked


# --- the orders ---


@settings(deadline=None)
@given(SEEDS, st.integers(1, 50))
def test_every_order_is_of_all_records_and_never_told_comes_first(seed: int, n: int) -> None:
    draws = stream(seed, "test")
    entropy = np.where(draws.random(n) < 0.3, np.inf, draws.random(n))
    likeliest = np.where(np.isinf(entropy), -1, draws.integers(3, size=n))
    for row in (Random(), Uncertain(), Coverage()):
        order = row.order(entropy, likeliest, stream(seed, "draw"))
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
        if not isinstance(row, Random):
            fresh = int(np.isinf(entropy).sum())
            assert np.isinf(entropy[order[:fresh]]).all()
    known = [i for i in Uncertain().order(entropy, likeliest, draws) if not np.isinf(entropy[i])]
    assert (np.diff(entropy[known]) <= 0).all()


@settings(deadline=None)
@given(SEEDS)
def test_coverage_takes_as_many_of_each_class_as_there_are(seed: int) -> None:
    likeliest = stream(seed, "test").choice(3, p=[0.8, 0.15, 0.05], size=60)
    order = Coverage().order(np.zeros(60), likeliest, stream(seed, "draw"))
    there = np.bincount(likeliest, minlength=3)
    for k in range(1, 61):
        got = np.bincount(likeliest[order[:k]], minlength=3)
        most = got.max()
        assert all(g >= min(t, most - 1) for g, t in zip(got, there, strict=True))


@pytest.mark.parametrize("share", [0.001, 0.25, 1.0])
def test_the_share_of_the_pool_at_least_one(share: float) -> None:
    assert len(asked(picker("random", share=share), 1)) == max(1, round(40 * share))


# --- what the server remembers ---


def told(ids: list[int], rows: list[list[float]]) -> Consensus:
    return Consensus(np.array(ids, np.int32), np.array(rows, np.float32))


def test_the_least_certain_is_asked_again_once_all_are_known() -> None:
    one = picker("entropy", n=4, share=0.25)
    sure, unsure = [1.0, 0, 0, 0], [0.25] * 4
    one.learn(1, told([0, 1, 2, 3], [sure, sure, unsure, sure]))
    assert asked(one, 2, 4).tolist() == [2]
    one.learn(1, told([2], [sure]))
    one.learn(1, told([0], [[0.5, 0.5, 0, 0]]))
    assert asked(one, 3, 4).tolist() == [0]


def test_of_texts_the_mean_over_positions_counts() -> None:
    one = picker("entropy", n=2, share=0.5, positions=2)
    one.learn(1, told([0, 1, 2, 3], [[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [1.0, 0, 0, 0]]))
    np.testing.assert_allclose(one._entropy, [np.log(2) / 2, np.log(4) / 2])
    assert asked(one, 2, 2).tolist() == [1]


@pytest.mark.parametrize("name", DRAWS)
def test_a_round_asked_again_is_the_same_question_and_a_checkpoint_keeps_it(name: str) -> None:
    one, other = picker(name), picker(name)
    first = one.ask(1)
    rows = stream(1, "test").dirichlet(np.ones(4), 40).astype(np.float32)
    one.learn(1, Consensus(np.arange(40, dtype=np.int32), rows))
    assert one.ask(1) == first  # though it has learnt since
    other.restore(one.arrays())
    assert other.ask(2) == one.ask(2) != first


def test_nothing_but_what_was_asked_is_heard() -> None:
    one = picker("random")
    ids = asked(one, 1)
    one.check(1, ids)
    wrong = np.setdiff1d(np.arange(40), ids)[:1].astype(np.int32)
    with pytest.raises(PayloadError, match="not asked"):
        one.check(1, wrong)
    one.ask(2)
    one.check(1, ids)  # late
    with pytest.raises(PayloadError, match="not asked"):
        one.check(1, wrong)


@settings(deadline=None)
@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 9))
def test_a_question_travels(ids: set[int], round_: int) -> None:
    drawn = np.array(sorted(ids), np.int32)
    for asked in (drawn, drawn[::2], drawn[:0]):
        data = payload.encode_selection(payload.Question(asked, drawn), 100, round_)
        back = payload.decode_selection(data, round_=round_, n_records=100)
        assert back.asked.tolist() == asked.tolist()
        assert back.drawn.tolist() == drawn.tolist()
    for wrong in ({"round_": round_ + 1, "n_records": 100}, {"round_": round_, "n_records": 92}):
        with pytest.raises(PayloadError):
            payload.decode_selection(data, **wrong)


def test_a_question_about_nothing_is_refused() -> None:
    none, some = np.empty(0, np.int32), np.array([1, 2], np.int32)
    for question, words in (((none, none), "no record"), ((some, some[:1]), "not drawn")):
        masks = {"mask": mask_of(question[0], 100), "drawn": mask_of(question[1], 100)}
        with pytest.raises(PayloadError, match=words):
            payload.decode_selection(pack("selection", masks, round=1), round_=1, n_records=100)


# --- runs ---


def test_the_whole_pool_asked_is_the_run_without_a_draw() -> None:
    bare = {"cell", "bytes_up", "bytes_down"}
    plain, drawn = (
        [{k: v for k, v in event.items() if k not in bare} for event in facts(result)]
        for result in (simulate(small()), simulate(small(method=method("random", 1.0))))
    )
    assert plain == drawn


@pytest.mark.parametrize("name", DRAWS)
def test_a_share_is_answered_and_learnt(tmp_path: Path, name: str) -> None:
    scenario = small(method={"name": "no-filter", "select": {"name": name, "share": 0.25}})
    (cell,) = simulate(scenario, folder=tmp_path).cells
    assert not cell.of("refused")
    n = cell.of("pool")[0]["n_samples"]
    for line in cell.of("round"):
        assert line["accepted"] == line["kept"] == round(n / 4) / n
    assert len(consensus(tmp_path / "no-filter" / "seed-1")["ids"]) == round(n / 4)
    assert not exact(scenario)


@pytest.mark.parametrize("name", DRAWS)
def test_a_stopped_run_and_workers_ask_the_same(tmp_path: Path, name: str) -> None:
    rounds = {"rounds": 3}
    scenario = small(method={"name": "fedaux", "select": {"name": name}}, training=rounds)
    whole = facts(simulate(scenario))
    assert facts(stopped_and_resumed(scenario, tmp_path, 3)) == whole
    if name == "coverage":
        spread = scenario.on(small(grid={"name": "workers", "workers": 2}).grid)
        assert facts(simulate(spread)) == whole


def test_of_texts_too() -> None:
    text: dict[str, Any] = {
        "data": {"name": "pydoc", "owners": 3, "length": 48, "test_fraction": 0.1},
        "partition": {"name": "natural"},
        "proxy": {"name": "public", "size": 20},
        "model": {"names": ["gru"]},
        "training": {"rounds": 2, "local": {"epochs": 0.1}},
    }
    select = {"name": "entropy", "share": 0.5}
    (cell,) = simulate(small(method={"name": "no-filter", "select": select}, **text)).cells
    assert [line["kept"] for line in cell.of("round")] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"method": {"name": "fedavg", "select": {"name": "random"}}}, "this method has none"),
        (
            {"method": method("random"), "privacy": {"server": {"name": "secure-aggregation"}}},
            "tables under a mask are of the whole pool",
        ),
        (
            {
                "method": {"name": "no-filter", "select": {"name": "coverage"}},
                "data": {"name": "pydoc"},
                "partition": {"name": "natural"},
                "model": {"names": ["gru"]},
            },
            "a text has no class",
        ),
        ({"method": method("random", 0.0)}, "method.select.share"),
    ],
)
def test_what_no_draw_is_for_is_refused(table: dict[str, Any], words: str) -> None:
    assert words in refusal(table)

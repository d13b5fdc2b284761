"""The cache of soft labels: what stands is not asked, answered or told again, and still learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch import Tensor

from clients import recall
from clients.client import Client
from fedkd.exchange.consensus import Consensus
from fedkd.rng import stream
from scenario_tables import refusal
from scenarios.results import Result
from scenarios.simulate import simulate
from small_runs import consensus, facts, small, stopped_and_resumed

N, C = 12, 3
SEEDS = st.integers(0, 2**16)


def cached(cache: int, share: float = 0.5, rounds: int = 6, **changes: Any) -> Any:
    select = {"name": "random", "share": share, "cache": cache}
    training = {"rounds": rounds, "distill": {"epochs": 2}}
    method = {"name": "no-filter", "select": select}
    return small(method=method, training=training, **changes)


def of(cache: int, round_: int) -> Client:
    scenario = cached(cache)
    cpu = torch.device("cpu")
    return Client(
        scenario=scenario, seed=1, id=0, round=round_, world=scenario.world(1), device=cpu
    )


def totals(result: Result) -> dict[str, float]:
    rounds = result.cells[0].of("round")
    return {key: sum(line[key] for line in rounds) for key in ("bytes_up", "bytes_down", "kept")}


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 4), st.sampled_from([1, 2]))
def test_what_is_learnt_is_what_a_dictionary_says(seed: int, cache: int, positions: int) -> None:
    """A client that misses rounds too; by sample: the round in which it was told, and what."""
    draws = stream(seed, "test")
    state: dict[str, Tensor] = {}
    known: dict[int, tuple[int, list[float]]] = {}
    n_records = N // positions
    for round_ in range(1, 9):
        if draws.random() < 0.2:
            continue  # it was not there
        drawn = np.flatnonzero(draws.random(n_records) < 0.6).astype(np.int32)
        asked = [r for r in drawn if draws.random() < 0.5]
        ids = [r * positions + at for r in asked for at in range(positions)]
        values = draws.random((len(ids), C)).astype(np.float32)
        told = Consensus(np.array(ids, np.int32), values)
        recall.note(state, round_, drawn)
        found = recall.recalled(of(cache, round_), state, told, positions)
        known |= {i: (round_, row) for i, row in zip(ids, values.tolist(), strict=True)}
        known = {i: (at, row) for i, (at, row) in known.items() if round_ - at <= cache}
        wanted = sorted(i for i in known if i // positions in drawn)
        assert found.ids.tolist() == wanted
        assert found.values.tolist() == [known[i][1] for i in wanted]


def test_a_draw_of_another_round_recalls_nothing() -> None:
    state: dict[str, Tensor] = {}
    row = np.ones((1, C), np.float32) / C
    recall.note(state, 1, np.arange(N, dtype=np.int32))
    recall.recalled(of(9, 1), state, Consensus(np.array([3], np.int32), row), 1)
    told = Consensus(np.array([5], np.int32), row)
    assert recall.recalled(of(9, 2), state, told, 1).ids.tolist() == [5]


def test_nothing_is_asked_twice_while_it_stands() -> None:
    without, with_cache = simulate(cached(0)), simulate(cached(50))
    plain, saved = totals(without), totals(with_cache)
    n = with_cache.cells[0].of("pool")[0]["n_samples"]
    assert plain["kept"] == pytest.approx(6 * round(n / 2) / n)
    assert 0.9 < saved["kept"] <= 1  # each record once, and by then nearly all were drawn
    assert saved["bytes_up"] < 0.5 * plain["bytes_up"]
    assert saved["bytes_down"] < 0.6 * plain["bytes_down"]
    for line in with_cache.cells[0].of("client"):
        assert line["distill_samples"] == 2 * round(n / 2)  # as many as without a cache
    assert not with_cache.cells[0].of("refused")


def test_what_no_longer_stands_is_asked_again() -> None:
    """All of the pool is drawn each round, so a cache of 2 rounds is refilled in rounds 4 and 7."""
    (cell,) = simulate(cached(2, share=1.0, rounds=7)).cells
    assert [line["kept"] for line in cell.of("round")] == [1, 0, 0, 1, 0, 0, 1]
    assert all(line["distill_samples"] > 0 for line in cell.of("client"))


def test_a_client_keeps_what_it_was_told(tmp_path: Path) -> None:
    """The first round's consensus, to the bit, with which the third goes on."""
    simulate(cached(50, share=1.0, rounds=3), folder=tmp_path)
    cell = tmp_path / "no-filter" / "seed-1"
    first = load_file(cell / "checkpoints" / "round-00002" / "arrays.safetensors")
    assert len(first["ids"]) == len(consensus(cell)["ids"]) == 0
    told = np.unique(load_file(newest(cell, 0))[recall.TOLD_IN])
    assert told.tolist() == [1]
    states = [load_file(newest(cell, client)) for client in range(3)]
    for state in states[1:]:
        np.testing.assert_array_equal(state[recall.VALUES], states[0][recall.VALUES])


def newest(cell: Path, client: int) -> Path:
    return max((cell / "clients" / f"{client:06}").glob("*.safetensors"))


def test_a_stopped_run_and_workers_recall_the_same(tmp_path: Path) -> None:
    scenario = cached(3, rounds=4, wire={"up": "int8", "down": "int8", "mask": True, "zstd": 3})
    whole = facts(simulate(scenario))
    assert facts(stopped_and_resumed(scenario, tmp_path, 3)) == whole
    spread = scenario.on(small(grid={"name": "workers", "workers": 2}).grid)
    assert facts(simulate(spread)) == whole
    together = scenario.on(small(grid={"name": "cohort", "block": 3}).grid)
    assert [line["kept"] for line in simulate(together).cells[0].of("round")] == [
        line["kept"] for line in whole if line["event"] == "round"
    ]


def test_a_server_s_model_has_no_cache() -> None:
    select = {"name": "random", "cache": 5}
    words = refusal({"method": {"name": "mhat", "select": select}})
    assert "the server's model would have to as well" in words

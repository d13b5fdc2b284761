"""Runs in which some clients lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import config, payload
from fedkd.errors import FedkdError
from scenarios.results import Result
from scenarios.simulate import simulate
from small_runs import facts, small

LIES: dict[str, Any] = {"share": 0.4, "attack": {"name": "lma"}, "everything": True}


def run(folder: Path, rule: str, hostile: dict[str, Any], **training: Any) -> Result:
    return simulate(
        small(
            partition={"name": "strong", "clients": 10},
            method={"name": "edgefd", "combine": {"name": rule}},
            training={"rounds": 2, "local": {"epochs": 5}, "distill": {"epochs": 3}, **training},
            hostile=hostile,
        ),
        folder=folder,
    )


def test_vouching_finds_who_claims_everything(tmp_path: Path) -> None:
    mean = run(tmp_path / "mean", "mean", LIES).cells[0]
    vouched = run(tmp_path / "vouched", "vouched", LIES).cells[0]
    liars = small(hostile=LIES).hostile.clients(10, 1)
    assert len(liars) == 4
    for event in vouched.of("round"):
        believed = dict(zip(event["trusted"], event["trust"], strict=True))
        honest = [trust for client, trust in believed.items() if client not in liars]
        assert max(believed[client] for client in liars) < min(honest)
    for event in vouched.of("client"):
        assert event["client"] not in liars or event["accepted"] == 1
    assert vouched.last["consensus_accuracy"] > mean.last["consensus_accuracy"] + 0.2


def test_the_accuracy_is_that_of_honest_clients(tmp_path: Path) -> None:
    cell = run(tmp_path, "mean", LIES).cells[0]
    liars = small(hostile=LIES).hostile.clients(10, 1)
    last = [event for event in cell.of("client") if event["round"] == 2]
    honest = [event["accuracy"] for event in last if event["client"] not in liars]
    assert cell.last["accuracy"] == pytest.approx(np.mean(honest))


@pytest.mark.parametrize("grid", ["inline", "workers"])
def test_who_answers_more_than_may_be_is_refused(tmp_path: Path, grid: str) -> None:
    """`everything = true` does not pass a limit that each honest client keeps."""
    scenario = small(
        partition={"name": "strong", "clients": 10},
        training={"rounds": 1},
        hostile=LIES,
        limits={"rows": 0.5},
        grid={"name": grid, "workers": 2} if grid == "workers" else {},
    )
    result = simulate(scenario, folder=tmp_path)
    liars = scenario.hostile.clients(10, 1)
    refused = result.cells[0].of("refused")
    assert {event["client"] for event in refused} == liars
    assert "limits.rows allows" in refused[0]["reason"]


def test_a_rule_with_a_memory_is_the_same_when_a_run_is_resumed(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "expguard", LIES, rounds=3)
    run(tmp_path / "parts", "expguard", LIES, rounds=3)
    cell = tmp_path / "parts/edgefd/seed-1"
    (cell / "done").unlink()
    newest = max((cell / "checkpoints").glob("round-*"))
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    resumed = run(tmp_path / "parts", "expguard", LIES, rounds=3)
    assert facts(resumed) == facts(whole)
    trust = [event["trust"] for event in whole.cells[0].of("round")]
    assert trust[0] != trust[2]


def test_what_liars_give_to_the_pool_is_noise_and_bears_their_own_name(tmp_path: Path) -> None:
    pools = []
    for name, hostile in (("honest", {}), ("poisoned", {"share": 0.4, "pool": True})):
        table = small(hostile=hostile).model_dump() | {"audit": True}
        simulate(config.parse({**table, "training": {"rounds": 1}}), folder=tmp_path / name)
        file = tmp_path / name / "edgefd/seed-1/uploads/pool.safetensors"
        pools.append(payload.decode_pool(file.read_bytes()))
    honest, poisoned = pools
    liars = small(hostile={"share": 0.4}).hostile.clients(3, 1)
    np.testing.assert_array_equal(honest.contributor, poisoned.contributor)
    for client in range(3):
        mine = honest.contributor == client
        one, other = honest.x[mine], poisoned.x[mine]
        assert np.array_equal(one, other) == (client not in liars)
        np.testing.assert_array_equal(np.sort(one, axis=None), np.sort(other, axis=None))


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"partition": {"name": "own", "clients": 2}}, "data of its own"),
        ({"method": {"name": "fedmd"}}, "raw logits"),
    ],
)
def test_lies_that_cannot_be_told_are_refused(table: dict[str, Any], what: str) -> None:
    with pytest.raises(FedkdError, match=what):
        config.parse({"hostile": LIES, **table})

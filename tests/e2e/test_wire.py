"""Whole runs whose answers and consensus travel in fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import payload_answers
from scenarios.results import Result
from scenarios.simulate import simulate
from small_runs import consensus, facts, small


def but_bytes(result: Result) -> list[dict[str, Any]]:
    gone = ("bytes_up", "bytes_down")
    return [{k: v for k, v in fact.items() if k not in gone} for fact in facts(result)]


def sent(result: Result) -> int:
    return sum(event["bytes_up"] + event["bytes_down"] for event in result.cells[0].of("round"))


@pytest.mark.parametrize("grid", ["inline", "workers"])
def test_packing_changes_nothing_but_bytes(tmp_path: Path, grid: str) -> None:
    plain = simulate(small(), folder=tmp_path / "plain")
    packed = simulate(
        small(wire={"mask": True, "zstd": 3}, grid={"name": grid, "workers": 1}),
        folder=tmp_path / "packed",
    )
    assert but_bytes(packed) == but_bytes(plain)
    assert sent(packed) < 0.9 * sent(plain)


def hardest(answer: payload_answers.Answer) -> np.ndarray:
    """One-hot rows, one after the other."""
    rows = [[float(i == row.argmax()) for i in range(len(row))] for row in answer.values]
    return np.array(rows, np.float32).reshape(answer.values.shape)


def test_argmax_up_is_the_run_of_one_hot_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = simulate(small(wire={"up": "argmax"}), folder=tmp_path / "coded")
    encode = payload_answers.encode_answer
    monkeypatch.setattr(
        payload_answers,
        "encode_answer",
        lambda a, packing: encode(a._replace(values=hardest(a)), packing),
    )
    dense = simulate(small(), folder=tmp_path / "dense")
    assert but_bytes(coded) == but_bytes(dense)
    assert sent(coded) < sent(dense)


@pytest.mark.parametrize("server", ["plain", "secure-aggregation"])
def test_what_is_told_is_what_is_kept(tmp_path: Path, server: str) -> None:
    changes: dict[str, Any] = {"privacy": {"server": {"name": server}}}
    simulate(small(wire={"down": "argmax"}, **changes), folder=tmp_path)
    kept = consensus(tmp_path / "edgefd/seed-1")["values"]
    assert len(kept)
    assert set(np.unique(kept)) == {0, 1}
    assert (kept.sum(axis=1) == 1).all()


@pytest.mark.parametrize("method", ["fedmd", "scarlet"])
def test_eight_bits_do_nearly_what_thirty_two_do(tmp_path: Path, method: str) -> None:
    runs = [
        simulate(small(method={"name": method}, wire=wire), folder=tmp_path / name)
        for name, wire in (("whole", {}), ("eight", {"up": "int8", "down": "int8"}))
    ]
    whole, eight = (run.cells[0].last["accuracy"] for run in runs)
    assert abs(whole - eight) < 0.05
    assert sent(runs[1]) < 0.5 * sent(runs[0])


def test_true_labels_are_told_as_the_scenario_says(tmp_path: Path) -> None:
    method = {"name": "proxy-labels"}
    plain = simulate(small(method=method), folder=tmp_path / "plain")
    wire = {"down": "argmax", "mask": True, "zstd": 3}
    coded = simulate(small(method=method, wire=wire), folder=tmp_path / "coded")
    assert but_bytes(coded) == but_bytes(plain)
    assert sent(coded) < sent(plain)

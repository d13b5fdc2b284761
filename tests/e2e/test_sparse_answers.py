"""Whole runs whose answers travel sparsely: the same as dense runs of the same sparse rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import payload_answers
from fedkd.rng import stream
from scenarios.results import Result
from scenarios.simulate import simulate
from small_runs import consensus, facts, small

K, N = 3, 20


def top_k(answer: payload_answers.Answer) -> np.ndarray:
    """The K largest of each row, at a tie the first, and an even tail; written row by row."""
    rows = []
    for row in answer.values:
        kept = np.argsort(-row, kind="stable")[:K]
        rest = 1 - sum(float(value) for value in row[np.sort(kept)])
        sparse = np.full(len(row), max(rest, 0) / (len(row) - K), np.float32)
        sparse[kept] = row[kept]
        rows.append(sparse)
    return np.array(rows, np.float32).reshape(answer.values.shape)


def sampled(answer: payload_answers.Answer) -> np.ndarray:
    """N draws from each row, by the client's own stream."""
    uniform = stream(1, "client", answer.round, answer.client, "coding")
    rows = []
    for row in answer.values:
        ends = np.cumsum(row.astype(np.float64))
        drawn = np.searchsorted(ends, uniform.random(N) * ends[-1], side="right")
        rows.append(np.bincount(drawn, minlength=len(row)) / N)
    return np.array(rows, np.float32).reshape(answer.values.shape)


def but_bytes(result: Result) -> list[dict[str, Any]]:
    return [{k: v for k, v in fact.items() if k != "bytes_up"} for fact in facts(result)]


@pytest.mark.parametrize(
    ("release", "oracle"),
    [({"name": "top-k", "k": K}, top_k), ({"name": "sampled", "draws": N}, sampled)],
    ids=["top-k", "sampled"],
)
def test_a_sparse_run_is_the_dense_run_of_its_sparse_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: dict[str, Any], oracle: Any
) -> None:
    sparse_run = simulate(
        small(method={"name": "edgefd", "release": release}), folder=tmp_path / "sparse"
    )
    plain = simulate(small(), folder=tmp_path / "plain")
    encode = payload_answers.encode_answer
    monkeypatch.setattr(
        payload_answers,
        "encode_answer",
        lambda a, packing: encode(a._replace(values=oracle(a)), packing),
    )
    dense = simulate(small(), folder=tmp_path / "dense")

    assert but_bytes(sparse_run) == but_bytes(dense)
    assert but_bytes(sparse_run) != but_bytes(plain)
    ours, theirs, whole = (
        consensus(tmp_path / name / "edgefd" / "seed-1") for name in ("sparse", "dense", "plain")
    )
    assert len(ours["ids"]) > 0
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], strict=True)
    assert not np.array_equal(ours["values"], whole["values"])


def test_bytes_up_are_those_of_the_rows_that_were_sent(tmp_path: Path) -> None:
    """Ten probabilities of 4 bytes against K of 4 + 1, beside ids of 4; the rest is headers."""
    fixed = {"gate": {"name": "open"}, "score": {"name": "none"}}
    runs = {
        name: simulate(
            small(method={"name": "edgefd", "release": {"name": name}, **fixed}), folder=None
        )
        for name in ("probabilities", "top-k")
    }
    sent = {
        name: [e for e in run.cells[0].events if e["event"] == "client"]
        for name, run in runs.items()
    }
    (pool,) = (e for e in runs["top-k"].cells[0].events if e["event"] == "pool")
    m = pool["n_samples"]
    for dense, sparse in zip(sent["probabilities"], sent["top-k"], strict=True):
        assert m * 44 < dense["bytes_up"] < m * 44 + 450
        assert m * (4 + 5 * 5) < sparse["bytes_up"] < m * (4 + 5 * 5) + 450

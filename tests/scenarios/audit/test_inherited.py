"""What students of soft and of hard labels have of a client's texts: a small run, decoded anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd import config
from fedkd.rng import stream
from privacy.audit.memorisation import continuations
from scenarios.audit.evidence import Cell
from scenarios.audit.findings import Finding
from scenarios.audit.inherited import KINDS, one_hot, taught
from scenarios.audit.memorised import _texts
from scenarios.audit.run import audit
from scenarios.simulate import simulate

LENGTH = 16
WINDOW = 2
"""A quarter of 8, which is half of a record."""


def books(folder: Path) -> None:
    """Three owners; each says a few phrases again and again, some of which all say."""
    rng = stream(1, "test")
    words = [rng.choice(list("abcdefghij"), 4) for _ in range(24)]
    said = ["".join(word) for word in words]
    for owner in range(3):
        mine = said[:8] + said[8 + 5 * owner : 13 + 5 * owner]
        text = " ".join(rng.choice(mine, 500))
        (folder / f"{owner}.txt").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "books").mkdir()
    books(folder / "books")
    scenario = config.parse(
        {
            "name": "books",
            "audit": True,
            "data": {"name": "text", "path": str(folder / "books"), "length": LENGTH},
            "partition": {"name": "natural"},
            "proxy": {"name": "public", "size": 60},
            "model": {"names": ["gru"]},
            "method": {"name": "no-filter"},
            "validation": 0,
            "training": {
                "rounds": 1,
                "local": {"epochs": 12, "batch_size": 16, "learning_rate": 0.01},
                "distill": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
            },
        }
    )
    simulate(scenario, folder=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def found(run: Path) -> list[Finding]:
    return list(audit(run, parts=("memorisation",)).cells[0].findings)


@pytest.fixture(scope="module")
def cell(run: Path) -> Cell:
    scenario = config.load(run / "scenario.toml")
    folder = run / "no-filter" / "seed-1"
    return Cell(row="no-filter", seed=1, scenario=scenario, folder=folder)


def test_one_hot_rows_are_the_labels_and_what_has_none_is_unknown() -> None:
    labels = np.array([2, -1, 0, -100])
    rows = one_hot(labels, 3)
    assert np.isnan(rows[[1, 3]]).all()
    assert rows[[0, 2]].tolist() == [[0, 0, 1], [1, 0, 0]]


def test_students_differ_in_what_they_learn_from_alone(cell: Cell) -> None:
    students = taught(cell, 0)
    assert tuple(students) == KINDS
    again = taught(cell, 0)
    for kind in KINDS:
        pairs = zip(students[kind].parameters(), again[kind].parameters(), strict=True)
        assert all(bool((one == other).all()) for one, other in pairs)
    soft, hard, texts = (next(students[kind].parameters()) for kind in KINDS)
    assert not torch.equal(soft, hard)
    assert not torch.equal(hard, texts)


def test_shares_are_what_decoding_word_by_word_finds(cell: Cell, found: list[Finding]) -> None:
    hits: dict[str, list[bool]] = {kind: [] for kind in ("owner", *KINDS)}
    for client in range(3):
        texts = _texts(cell, client)
        for kind, model in {"owner": cell.models[client], **taught(cell, client)}.items():
            said = continuations(model, texts[:, :WINDOW], WINDOW)
            hits[kind] += (said == texts[:, WINDOW : 2 * WINDOW]).all(dim=1).tolist()
    own, soft, hard, base = (np.array(hits[kind]) for kind in ("owner", *KINDS))
    shown = f"greedy, {WINDOW} tokens after {WINDOW}"
    by_attack = {(one.attack, one.target): one for one in found if one.observer == "uploads"}
    assert 0 < soft.mean() < 1  # so there is something to tell
    gone = "texts that the owner continues and the baseline does not"
    for name, known in (("soft", soft), ("hard", hard)):
        attack = f"a student of {name} labels, {shown}"
        told = by_attack[attack, "texts of clients"]
        assert told.value == pytest.approx(known.mean())
        assert told.null == pytest.approx(base.mean())
        could = own & ~base
        assert by_attack[attack, gone].n == could.sum()
        assert by_attack[attack, gone].value == pytest.approx((known & could).sum() / could.sum())
    alike = by_attack[f"soft and hard alike, {shown}", "texts that either student continues"]
    assert alike.measure == "jaccard"
    assert alike.value == pytest.approx((soft & hard).sum() / (soft | hard).sum())


def test_who_will_be_memorised_is_foretold_or_it_is_said_why_not(found: list[Finding]) -> None:
    told = [one for one in found if one.attack.startswith("foretold by zlib")]
    assert [one.observer for one in told] == ["owner"] * 2
    short = next(one for one in told if f"{WINDOW} tokens after" in one.attack)
    assert short.value is not None
    assert 0.5 < short.value <= 1
    assert "zlib" in short.note
    for one in told:
        assert one.value is not None or "too few texts" in one.note

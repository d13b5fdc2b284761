"""The table, the files and the page of a comparison, on events written by hand."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedkd.rng import stream
from scenarios.compare import page, table
from scenarios.compare.book import Book, Entry
from scenarios.compare.pictures import PICTURES, classes, curves, looks, trade
from scenarios.compare.plan import Asked, Comparison, comparison
from scenarios.report.figures import png
from scenarios.results import Cell, Result
from scenarios.simulate import simulate
from server.events import Event
from small_runs import small

SEEDS = (1, 2, 3)
METHODS = ("edgefd", "fedmd")
SPLITS = ("iid", "dirichlet:0.1")
N_CLIENTS, N_ROUNDS = 3, 4
WHY = "client 2 would get <b>too few</b> samples | got 1"


def events(split: str, method: str, seed: int) -> list[Event]:
    rng = stream(seed, "test", purpose=f"{split} {method}")
    sends = method != "local-only"
    found: list[Event] = [{"event": "hello", "client": c} for c in range(N_CLIENTS)]
    found += [{"event": "pool", "bytes_up": 70}] if sends else []
    for round_ in range(1, N_ROUNDS + 1):
        one = {
            "event": "round",
            "round": round_,
            "accuracy": rng.random(),
            "accuracy_sd": 0.1 * rng.random(),
            "accuracy_worst": 0.2 * rng.random(),
            "accuracy_worst_tenth": 0.3 * rng.random(),
            "bytes_up": sends * int(rng.integers(1000, 2000)),
            "bytes_down": sends * int(rng.integers(5000, 9000)),
            "bytes_pool": sends * (700 if round_ == 1 else 0),
            "seconds": rng.random(),
        }
        found.append(one)
    found[-1] |= {
        "brier": rng.random(),
        "ece": 0.5,
        "ece_low": 0.25,
        "ece_high": 0.75,
        "class_recall": [*rng.random(3).tolist(), None],
    }
    return found


def write(folder: Path, told: list[Event]) -> None:
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    (folder / "done").touch()


@pytest.fixture(scope="module")
def asked() -> Comparison:
    wanted = {"methods": METHODS, "splits": SPLITS, "seeds": SEEDS, "references": ["local-only"]}
    return comparison(small(), Asked.model_validate(wanted))


@pytest.fixture(scope="module")
def home(asked: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All is done, but for fedmd on Dirichlet: one seed failed, and another is half done."""
    where = tmp_path_factory.mktemp("comparison")
    for run in asked.runs:
        for plan in run.cells:
            folder = plan.folder(run.folder(where))
            write(folder, events(run.split, run.method, plan.seed))
            if (run.split, run.method) == (SPLITS[1], "fedmd") and plan.seed > 1:
                (folder / "done").unlink()
                if plan.seed == 2:
                    (folder / "failed").write_text(WHY)
    return where


@pytest.fixture(scope="module")
def entries(asked: Comparison, home: Path) -> list[Entry]:
    return Book(asked, home).entries()


def rounds(split: str, method: str, seeds: tuple[int, ...] = SEEDS) -> list[list[Event]]:
    return [[e for e in events(split, method, seed) if e["event"] == "round"] for seed in seeds]


def test_lines_are_numpy_s(entries: list[Entry]) -> None:
    assert [(e.run.split, e.run.method) for e in entries] == [
        (split, method) for split in SPLITS for method in (*METHODS, "local-only")
    ]
    for entry in entries:
        split, method = entry.run.split, entry.run.method
        seeds = (1,) if (split, method) == (SPLITS[1], "fedmd") else SEEDS
        found, line = rounds(split, method, seeds), entry.line
        assert line is not None
        last = [one[-1] for one in found]
        assert line["seeds"] == list(seeds)
        assert line["accuracy"] == pytest.approx(np.mean([one["accuracy"] for one in last]))
        if len(seeds) > 1:
            sd = np.std([one["accuracy"] for one in last], ddof=1)
            assert line["accuracy_sd"] == pytest.approx(sd)
        else:
            assert line["accuracy_sd"] is None
        for key in ("brier", "ece_low", "accuracy_worst_tenth"):
            assert line[key] == pytest.approx(np.mean([one[key] for one in last]))
        assert line["clients_sd"] == pytest.approx(np.mean([one["accuracy_sd"] for one in last]))
        recalls = np.array([one["class_recall"][:3] for one in last])
        assert line["class_recall"][:3] == pytest.approx(recalls.mean(axis=0).tolist())
        assert line["class_recall"][3] is None
        seconds = [sum(e["seconds"] for e in one) for one in found]
        assert line["seconds"] == pytest.approx(np.mean(seconds))
        given = 0 if method == "local-only" else 70
        up = [(given + sum(e["bytes_up"] for e in one)) / N_CLIENTS for one in found]
        down = [sum(e["bytes_down"] + e["bytes_pool"] for e in one) / N_CLIENTS for one in found]
        assert (line["up"], line["down"]) == pytest.approx((np.mean(up), np.mean(down)))
        assert (line["up"] + line["down"]) * N_CLIENTS == pytest.approx(line["bytes"], abs=0.5)


def test_gains_are_paired_by_seed(entries: list[Entry]) -> None:
    """A seed that only one of the two has done is no difference."""
    first = METHODS[0]
    for entry in entries:
        split, method = entry.run.split, entry.run.method
        line = entry.line
        assert line is not None
        if method == first:
            assert (line["gain"], line["gain_sd"]) == (None, None)
            continue
        seeds = (1,) if (split, method) == (SPLITS[1], "fedmd") else SEEDS
        ours, theirs = rounds(split, method, seeds), rounds(split, first, seeds)
        differences = [
            a[-1]["accuracy"] - b[-1]["accuracy"] for a, b in zip(ours, theirs, strict=True)
        ]
        assert line["gain"] == pytest.approx(np.mean(differences))
        if len(seeds) > 1:
            assert line["gain_sd"] == pytest.approx(np.std(differences, ddof=1))
        else:
            assert line["gain_sd"] is None
    at = [column.heading for column in table.columns_of(entries)].index(f"less {first}")
    shown = [table.cells_of(entry, table.columns_of(entries))[at] for entry in entries[:2]]
    gain, sd = (100 * (entries[1].line or {})[key] for key in ("gain", "gain_sd"))
    assert shown == ["-", f"{gain:+.1f} ± {sd:.1f}"]


def test_a_first_method_that_gets_on_is_set_against_what_was_read_before(
    asked: Comparison, home: Path
) -> None:
    done = home / "iid" / METHODS[0] / METHODS[0] / "seed-3/done"
    done.unlink()
    book = Book(asked, home)
    before = book.entries()[1].line
    done.touch()
    after = book.entries()[1].line
    assert before is not None
    assert after is not None
    assert before["accuracy"] == after["accuracy"]
    assert before["gain"] != after["gain"]


def test_what_is_not_done_does_not_count_and_is_said(
    entries: list[Entry], asked: Comparison, home: Path
) -> None:
    short = entries[4]
    assert short.states == {1: "done", 2: WHY, 3: "waiting"}
    assert short.n_seeds == "1 of 3"
    assert table.remarks(entries, asked) == [
        f"dirichlet:0.1, fedmd, seed 2 failed: {WHY}",
        "1 of 18 cells are not done yet",
    ]
    nothing = Book(asked, home / "nowhere").entries()
    assert table.remarks(nothing, asked) == ["18 of 18 cells are not done yet"]
    assert all(
        cell == "-" for e in nothing for cell in table.cells_of(e, table.columns_of(nothing))
    )
    assert table.best(nothing, "iid") is None
    assert [plot.draw(nothing) for plot in PICTURES] == [None, None, None]


def test_what_has_not_changed_is_not_read_again(asked: Comparison, home: Path) -> None:
    book = Book(asked, home)
    first = book.entries()
    assert all(a is b for a, b in zip(first, book.entries(), strict=True))
    failed = home / "dirichlet-0.1/fedmd/fedmd/seed-2/failed"
    text = failed.read_text()
    failed.write_text("for another reason")
    again = book.entries()
    assert [a is b for a, b in zip(first, again, strict=True)] == [True] * 4 + [False, True]
    assert again[4].failures == {"for another reason": [2]}
    failed.write_text(text)


def test_files_hold_the_lines(entries: list[Entry], asked: Comparison, home: Path) -> None:
    table.write(entries, asked, home, "fedkd compare x.toml")
    rows = list(csv.DictReader((home / "comparison.csv").read_text().splitlines()))
    for row, entry in zip(rows, entries, strict=True):
        line = entry.line
        assert line is not None
        assert (row["split"], row["method"]) == (entry.run.split, entry.run.method)
        assert float(row["accuracy"]) == line["accuracy"]
        assert float(row["recall_1"]) == line["class_recall"][1]
        assert row["recall_3"] == ""
        assert row["seeds"] == " ".join(map(str, line["seeds"]))
        assert row["reference"] == str(int(entry.run.method == "local-only"))
    assert rows[4]["failed"] == WHY
    cells = list(csv.DictReader((home / "cells.csv").read_text().splitlines()))
    assert len(cells) == 18
    for cell in cells:
        if cell["state"] == "done":
            last = rounds(cell["split"], cell["method"], (int(cell["seed"]),))[0][-1]
            assert float(cell["accuracy"]) == last["accuracy"]
            assert float(cell["brier"]) == last["brier"]
        else:
            assert cell["accuracy"] == ""
    text = (home / table.PAGE).read_text()
    best = table.best(entries, "iid")
    assert best is not None
    assert best.line is not None
    sd = 100 * best.line["accuracy_sd"]
    assert f"| {best.run.method} | 3 | **{100 * best.line['accuracy']:.1f} % ± {sd:.1f}** |" in text
    assert text.count("**") == 2 * len(SPLITS)
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {13}
    assert "`fedkd compare x.toml`" in text


def test_references_are_never_the_best(entries: list[Entry]) -> None:
    for split in SPLITS:
        found = table.best(entries, split)
        own = [e for e in entries if e.run.split == split and e.run.method in METHODS]
        assert found is max(own, key=lambda entry: (entry.line or {})["accuracy"])


def test_a_filter_that_is_told_the_truth_is_never_the_best(entries: list[Entry]) -> None:
    found = table.best(entries, "iid")
    assert found is not None
    told = comparison(
        small(),
        Asked.model_validate(
            {
                "methods": [
                    {"name": "edgefd", "label": "told", "set": ["method.gate.name=oracle"]}
                ],
                "splits": ["iid"],
                "seeds": SEEDS,
                "references": ["local-only"],
            }
        ),
    )
    assert table.best([Entry(told.runs[0], found.cells, found.states)], "iid") is None


def test_the_terminal_s_table_fits_and_says_what_failed(
    entries: list[Entry], asked: Comparison
) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(table.table_of(entries, asked.name))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert any(line.split()[:3] == ["dirichlet:0.1", "edgefd", "3"] for line in lines)
    assert any(line.split()[:4] == ["fedmd", "1", "of", "3"] for line in lines)
    assert sum("local-only (r)" in line for line in lines) == 2


def test_the_page_is_whole_and_refers_to_nothing_outside(
    entries: list[Entry], asked: Comparison, home: Path
) -> None:
    html = page.write(entries, asked, home, "fedkd compare <x>.toml").read_text()
    frame = re.sub(r"base64,[\w+/=]+", "", html)
    assert not re.search(r"//\w|url\(|@import|<script|<link|<iframe|<object|srcset", frame)
    assert frame.count("<img") == len(PICTURES)
    assert "fedkd compare &lt;x&gt;.toml" in frame
    assert "&lt;b&gt;too few&lt;/b&gt;" in frame
    glance = frame.partition('id="glance"')[2].partition("</table>")[0]
    for entry in entries:
        assert entry.line is not None
        assert f"{100 * entry.line['accuracy']:.1f} %" in glance
    assert glance.count('class="best"') == len(SPLITS)
    assert {path.name for path in (home / "plots").iterdir()} == {
        f"{plot.name}.png" for plot in PICTURES
    }


def test_pictures_show_the_figures(entries: list[Entry]) -> None:
    plot = curves(entries)
    assert plot is not None
    assert [axes.get_title("left") for axes in plot.axes] == list(SPLITS)
    for axes, split in zip(plot.axes, SPLITS, strict=True):
        drawn = [np.asarray(line.get_ydata()) for line in axes.lines]
        for method, line in zip((*METHODS, "local-only"), drawn, strict=True):
            seeds = (1,) if (split, method) == (SPLITS[1], "fedmd") else SEEDS
            by_seed = [[e["accuracy"] for e in one] for one in rounds(split, method, seeds)]
            assert line == pytest.approx(np.mean(by_seed, axis=0))
    scatter = trade(entries)
    assert scatter is not None
    first = entries[0].line
    assert first is not None
    marks = [c.lines[0] for c in scatter.axes[0].containers]  # type: ignore[attr-defined]
    assert float(marks[0].get_xdata()[0]) == pytest.approx(first["up"] + first["down"])
    assert float(marks[0].get_ydata()[0]) == pytest.approx(first["accuracy"])
    assert len(marks) == 2  # local-only sends nothing: a line
    found = classes(entries)
    assert found is not None
    values = np.asarray(found.axes[0].images[0].get_array(), dtype=float)
    assert values[0, :3] == pytest.approx(first["class_recall"][:3])


def test_methods_are_told_apart_and_references_are_grey() -> None:
    names = [f"m{at}" for at in range(12)]
    twelve = [{"name": "edgefd", "label": name} for name in names]
    asked = comparison(small(), Asked.model_validate({"methods": twelve}))
    found = looks([Entry(run, (), {}) for run in asked.runs])
    assert len(set(found.values())) == len(found) == 12 + 4
    assert len({found[name].colour for name in ("local-only", "fedavg", "proxy-labels")}) == 1


def test_a_cell_without_quality_or_hello_is_shown_all_the_same(asked: Comparison) -> None:
    old: dict[str, Any] = {"event": "round", "round": 1, "accuracy": 0.5, "seconds": 1.0}
    old |= {f"bytes_{key}": 0 for key in ("up", "down", "pool")}
    entry = Entry(asked.runs[0], (Cell(row="edgefd", seed=1, events=[old]),), {1: "done"})
    texts = table.cells_of(entry, table.columns_of([entry]))
    assert all(png(figure) for plot in PICTURES if (figure := plot.draw([entry])))
    assert texts == ["50.0 %", "-", "-", "-", "-", "-", "0 B", "0 B", "1.0 s"]
    assert classes([entry]) is None


def test_an_epsilon_never_stands_alone_in_a_file(tmp_path: Path) -> None:
    """A proved run's line has delta, unit, relation and both accountants beside it."""
    private = small(
        partition={"name": "iid", "clients": 2},
        proxy={"name": "public", "size": 20},
        method={"name": "no-filter"},
        privacy={"training": {"name": "dp-sgd"}},
        training={"rounds": 1},
    )
    cell = simulate(private, folder=tmp_path).cells[0]
    run = comparison(private, Asked(methods=("no-filter",))).runs[0]
    (line,) = table.lines_csv([Entry(run, (cell,), {1: "done"})])
    (spent,) = [one for one in cell_line(cell) if one["epsilon"] is not None]
    place = f", one {spent['unit']} {spent['relation']}"
    assert line["epsilon" + place] == max(line["pld" + place], line["rdp" + place]) > 0
    assert line["delta" + place] == private.privacy.delta
    assert not [key for key in line if key.startswith("epsilon") and "one " not in key]


def cell_line(cell: Cell) -> list[dict[str, Any]]:
    (line,) = Result(scenario=small(), folder=None, cells=(cell,)).table()
    told: list[dict[str, Any]] = line["privacy"]
    return told

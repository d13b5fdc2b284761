"""The audited part of a report: findings, beside what the ledger allows and apart from it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import Page
from typer.testing import CliRunner

import made_up
from scenarios import cli
from scenarios.audit.findings import OBSERVERS, Finding, append, read
from scenarios.report import page
from scenarios.results import Result
from scenarios.simulate import load_result, simulate
from small_runs import small

BOUND = Finding(
    part="epsilon",
    observer="uploads",
    attack="one run",
    target="canaries",
    measure="epsilon at least",
    value=3.1,
    null=0.0,
    ceiling=8.0,
    n=500,
)
CHECK = replace(BOUND, part="null", attack="coop-lira, shuffled", measure="auc", value=0.49)


@pytest.fixture
def result(tmp_path: Path) -> Result:
    """A real run of two seeds, with the findings of a made-up audit."""
    found = simulate(small(seeds=[1, 2]), folder=tmp_path, rounds=1)
    for seed in (1, 2):
        cell = tmp_path / f"edgefd/seed-{seed}"
        findings, curves = made_up.audit(seed, 2.0, texts=True, knows=2.5)
        for part in dict.fromkeys(one.part for one in findings):
            append(
                cell,
                part,
                [one for one in findings if one.part == part],
                [one for one in curves if one.part == part],
            )
        append(cell, "epsilon", [BOUND])
        append(cell, "null", [replace(CHECK, value=0.48 + 0.01 * seed)])
    return found


def written(result: Result) -> Page:
    assert result.folder is not None
    return Page(page.write(result, result.folder).read_text(encoding="utf-8"))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_strongest_attack_of_each_observer_is_shown_with_its_null_and_ceiling(
    result: Result,
) -> None:
    assert result.folder is not None
    seen = written(result)
    text = squeezed(seen.text["observers"])
    assert all(f"{who} {words}" in text for who, words in OBSERVERS.items())
    lines = [line for line in seen.lines if len(line) == 6]
    by_seed = [read(result.folder / f"edgefd/seed-{seed}") for seed in (1, 2)]
    for who in OBSERVERS:
        groups: dict[tuple[str, bool], list[float]] = {}
        for findings in by_seed:
            for one in findings:
                if (one.observer, one.measure) == (who, "auc") and one.part == "membership":
                    assert one.value is not None
                    groups.setdefault((one.attack, one.adaptive), []).append(one.value)
        best = max(sum(values) / 2 for values in groups.values())
        assert any(
            line[1] == "AUC" and line[2].startswith(f"{best:.3f} ± ") and line[3] == "0.500"
            for line in lines
        )
    (bound,) = [line for line in lines if line[1] == "epsilon at least"]
    assert bound[3:5] == ["0.00", "8.00"]
    assert "knows the defence" in text
    assert "empirical" in seen.text["audited"]


def test_heuristic_and_guaranteed_parts_stay_apart(result: Result) -> None:
    seen = written(result)
    assert "AUC" not in seen.text["guaranteed"]
    assert "AUC" not in seen.text["open"]
    assert "audited" not in squeezed(seen.text["guaranteed"]).lower()


def test_checks_are_said_and_are_no_leak(result: Result) -> None:
    seen = written(result)
    assert "AUC 0.495 ± 0.064 (2 seeds, 95 %), where 0.000 is expected" in squeezed(
        seen.text["checks"]
    )
    assert "shuffled" not in seen.text["observers"]


def test_plots_are_on_the_page_and_beside_it(result: Result) -> None:
    assert result.folder is not None
    seen = written(result)
    alts = [image["alt"] or "" for image in seen.images]
    assert any("ROC curves" in alt for alt in alts)
    assert any("Histograms of canary exposure" in alt for alt in alts)
    assert not any("Heat map of rows by observers" in alt for alt in alts)  # there is one row
    assert (result.folder / "plots/roc.png").stat().st_size > 10_000
    assert (result.folder / "plots/exposures.png").stat().st_size > 10_000


def test_more_than_the_ledger_allows_is_loud(result: Result) -> None:
    assert result.folder is not None
    assert "contradictions" not in written(result).text
    append(result.folder / "edgefd/seed-2", "epsilon", [replace(BOUND, value=9.5)])
    text = squeezed(written(result).text["contradictions"])
    assert "The audit or the ledger is wrong" in text
    assert "edgefd, seed 2: one run on canaries (uploads): epsilon at least 9.50" in text


def test_the_report_command_writes_what_an_audit_found_since(tmp_path: Path) -> None:
    simulate(small(), folder=tmp_path, rounds=1)
    html = page.write(load_result(tmp_path), tmp_path).read_text()
    assert 'id="audited"' not in html
    append(tmp_path / "edgefd/seed-1", "epsilon", [BOUND])
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert done.exit_code == 0
    assert 'id="audited"' in (tmp_path / "report.html").read_text()

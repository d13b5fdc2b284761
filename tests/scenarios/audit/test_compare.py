"""A comparison of protections end to end: real runs, real audits, by the command itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedkd import config
from fedkd.errors import FedkdError
from scenarios import cli
from scenarios.audit import command as of_audits
from scenarios.audit import comparison
from scenarios.audit.compare import Comparison, compare, protections
from scenarios.audit.findings import append, read
from scenarios.audit.protections import BASELINE
from scenarios.cli_options import INTERRUPTED
from scenarios.simulate import load_result, scenario_of
from server.events import Event
from small_runs import small

TINY: dict[str, Any] = {
    "method": {"name": "no-filter"},
    "proxy": {"name": "public", "size": 60},
    "canaries": {"format": "mislabelled", "assign": "coin", "repetitions": [0, 1], "each": 8},
    "training": {"rounds": 1},
    "references": ["local-only"],
}
PARTS = ("--part", "exposure", "--part", "membership", "--part", "label-distribution")


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenario") / "tiny.toml"
    path.write_text(config.dump(small(**TINY)), encoding="utf-8")
    return path


def command(scenario: Path, folder: Path, names: str, *more: str) -> Result:
    words = ["audit", str(scenario), "--compare", names, "--out", str(folder), *PARTS, *more]
    return CliRunner().invoke(cli.app, words)


@pytest.fixture(scope="module")
def folder(scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in the second run, and gone on with by the same command."""
    where = tmp_path_factory.mktemp("comparison")
    started: list[str] = []

    class Stops(of_audits.Progress):  # type: ignore[name-defined,misc]
        def __call__(self, row: str, seed: int, event: Event) -> None:
            super().__call__(row, seed, event)
            if event["event"] == "round":
                started.append(row)
                if len(started) == 2:
                    raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_audits, "Progress", Stops)
        stopped = command(scenario, where, "none,top-1", "--no-baseline")
    assert stopped.exit_code == INTERRUPTED
    again = stopped.output.partition("go on with: ")[2].strip()
    assert again.startswith(f"fedkd audit {scenario} --compare none,top-1 --no-baseline --out ")
    assert "| none |" in (where / "comparison.md").read_text()
    assert "| top-1 |" not in (where / "comparison.md").read_text()
    first = (where / "none/no-filter/seed-1/events.jsonl").read_bytes()
    done = CliRunner().invoke(cli.app, again.split()[1:])
    assert done.exit_code == 0, done.output
    assert (where / "none/no-filter/seed-1/events.jsonl").read_bytes() == first
    return where


def test_each_protection_has_an_audited_run_folder_of_its_own(folder: Path) -> None:
    for name, release in (("none", "plain"), ("top-1", "top-1")):
        scenario = scenario_of(folder / name)
        assert scenario.privacy.release.name == release
        assert scenario.audit
        assert scenario.references == ()
        assert {one.part for one in read(folder / name / "no-filter/seed-1")} == {
            "exposure",
            "membership",
            "label-distribution",
        }
        page = (folder / name / "report.html").read_text()
        assert 'id="audited"' in page
        assert 'id="roc"' in page
    assert not (folder / BASELINE).exists()


def test_the_table_says_what_the_findings_and_the_ledgers_say(folder: Path) -> None:
    text = (folder / "comparison.md").read_text()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    summary = {line[0].strip("| "): line for line in lines[:3]}
    assert summary["none"][1] == "none"
    assert summary["top-1"][1] == "empirical"
    for name in ("none", "top-1"):
        accuracy = load_result(folder / name).table()[0]["accuracy"]
        assert summary[name][2] == f"{100 * accuracy:.1f} %"
        found = [
            one.value
            for one in read(folder / name / "no-filter/seed-1")
            if (one.part, one.measure) == ("membership", "auc") and one.observer != "owner"
        ]
        assert f"{max(found):.3f}" in summary[name][-3]  # type: ignore[type-var]
    assert "* none: epsilon infinite" in text
    assert "* top-1, the likeliest class alone: privacy.release.name = top-1" in text
    for name in ("leakage", "utility", "exposures", "roc"):
        assert f"![{name}](plots/{name}.png)" in text
        assert (folder / "plots" / f"{name}.png").stat().st_size > 10_000


def test_json_has_the_same_and_nothing_else_is_printed(scenario: Path, folder: Path) -> None:
    done = command(scenario, folder, "none,top-1", "--no-baseline", "--json")
    told = json.loads(done.stdout)
    assert [one["name"] for one in told["protections"]] == ["none", "top-1"]
    assert told["contradictions"] == []
    uploads = [one for one in told["protections"][0]["found"] if one["observer"] == "uploads"]
    assert {one["measure"] for one in uploads} >= {"auc", "tpr@0.01", "exposure", "tv"}


def test_another_scenario_does_not_go_into_the_folder(scenario: Path, folder: Path) -> None:
    done = command(scenario, folder, "none", "--no-baseline", "--set", "training.rounds=2")
    assert isinstance(done.exception, FedkdError)
    assert "another scenario" in str(done.exception)


def test_a_contradiction_is_loud_and_leaves_with_1(scenario: Path, folder: Path) -> None:
    cell = folder / "none/no-filter/seed-1"
    one = read(cell)[0]
    forged = replace(one, part="epsilon", measure="epsilon at least", value=9.0, ceiling=1.0)
    before = (cell / "audit/findings.jsonl").read_bytes()
    append(cell, "epsilon", [forged])
    done = command(scenario, folder, "none", "--no-baseline")
    assert done.exit_code == 1
    assert "epsilon at least 9.00" in done.output
    assert "More was found than the ledger allows" in (folder / "comparison.md").read_text()
    assert 'id="contradictions"' in (folder / "none/report.html").read_text()
    (cell / "audit/findings.jsonl").write_bytes(before)


def test_the_baseline_is_always_there_unless_it_is_not_wanted() -> None:
    what = small(**TINY)
    names = [one.name for one in protections(what, ["none", " top-1", "none"])]
    assert names == ["none", "top-1", BASELINE]
    assert [one.name for one in protections(what, [BASELINE, "none"])] == [BASELINE, "none"]
    assert [one.name for one in protections(what, ["none"], baseline=False)] == ["none"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--compare", ""], "nothing to compare"),
        (["--compare", "none,swong"], "did you mean 'swing'"),
        ([], "--compare none,swing"),
    ],
)
def test_a_mistake_is_said_before_anything_is_run(
    scenario: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    done = CliRunner().invoke(cli.app, ["audit", str(scenario), *words, "--out", str(tmp_path)])
    assert isinstance(done.exception, FedkdError)
    assert says in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_options_of_a_comparison_are_refused_for_a_run(folder: Path) -> None:
    done = CliRunner().invoke(cli.app, ["audit", str(folder / "none"), "--set", "seeds=[2]"])
    assert isinstance(done.exception, FedkdError)
    assert "are for --compare" in str(done.exception)


def test_what_there_is_so_far_is_told_after_each_protection(scenario: Path, folder: Path) -> None:
    told: list[Comparison] = []
    found = compare(
        config.load(scenario),
        ["none", "top-1"],
        folder,
        baseline=False,
        auditor=lambda _: None,  # it is done
        written=told.append,
    )
    assert [len(one.entries) for one in told] == [1, 2, 2]
    assert told[1].plots == ()
    assert found.plots == ("leakage", "utility", "exposures", "roc")
    assert comparison.table_of(found).row_count == 2


def test_the_folder_of_a_run_is_not_compared(tmp_path: Path) -> None:
    found = command(tmp_path, tmp_path / "out", "none")
    assert isinstance(found.exception, FedkdError)
    assert f"fedkd audit {tmp_path / 'scenario.toml'} --compare none" in str(found.exception)

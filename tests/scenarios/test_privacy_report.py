"""The report's privacy section and the terminal's lines, of real runs, against their ledgers."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report import Page

from fedkd import config
from privacy import ledger
from privacy.asked import CLIENT, RECORD
from privacy.totals import total
from scenarios import cli
from scenarios.progress import Progress, table_of
from scenarios.report import page, privacy
from scenarios.results import Result
from scenarios.simulate import load_result, simulate
from scenarios.spending import in_one_line
from small_runs import small

WHOLE = re.compile(r"epsilon [\d.e+-]+ at delta 1e-05 for one (record|client) \w+")
OPEN = {"name": "edgefd", "gate": {"name": "open"}}
PUBLIC = {"name": "public", "size": 60}


def text_run(folder: Path) -> Result:
    """Two clients with canaries, one round, Swing without noise."""
    scenario = {
        "name": "text",
        "data": {"name": "pydoc", "length": 64},
        "partition": {"name": "iid", "clients": 2},
        "proxy": {"name": "public", "size": 12},
        "canaries": {"repetitions": [0, 2]},
        "model": {"names": ["gru"]},
        "method": OPEN,
        "training": {"rounds": 1, "local": {"epochs": 0.01}, "distill": {"epochs": 0.1}},
        "privacy": {"release": {"name": "swing"}},
    }
    return simulate(config.parse(scenario), folder=folder)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """DP-SGD and a private filter for two rounds; the budget bears less for some clients."""
    settings = {
        "training": {"name": "dp-sgd", "noise_multiplier": 1.3},
        "filter": {"name": "dp-kmeans"},
        "budget": 3.8,
    }
    scenario = small(privacy=settings, references=["local-only"])
    return simulate(scenario, folder=tmp_path_factory.mktemp("records"))


def written(result: Result) -> Page:
    assert result.folder is not None
    return Page(page.write(result, result.folder).read_text(encoding="utf-8"))


def said(write: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    write(console)
    return re.sub(r"\s+", " ", console.file.getvalue())  # type: ignore[attr-defined]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def each(spans: str) -> list[int]:
    """The numbers of "1 to 3, 7"."""
    ends = [[int(end) for end in span.split(" to ")] for span in spans.strip().split(", ")]
    return [number for span in ends for number in range(span[0], span[-1] + 1)]


def test_a_guarantee_is_said_in_full_and_is_the_ledgers(records: Result) -> None:
    assert records.folder is not None
    spent = {
        int(file.parent.name): total(ledger.look(file), RECORD, 1e-5)
        for file in records.folder.glob("edgefd/seed-1/clients/*/ledger.jsonl")
    }
    most = max(spent.values(), key=lambda one: one.epsilon)
    text = squeezed(written(records).text["guaranteed"])
    assert f"One record added or removed: {most.spent}" in text
    assert len(re.findall(r"epsilon [\d.]", text)) == len(WHOLE.findall(text)) == 3
    assert text.count("PLD") == text.count("RDP") == 3
    assert "does not cover the records given away in the clear" in text
    assert "answers and weights: nothing more" in text
    assert "client replaced" not in text

    (line,) = [line for line in records.table() if line["row"] == "edgefd"]
    by_unit = {told["unit"]: told for told in line["privacy"]}
    assert by_unit["record"]["epsilon"] == most.epsilon
    assert by_unit["record"]["epsilon"] == max(by_unit["record"]["pld"], by_unit["record"]["rdp"])
    assert by_unit["client"]["epsilon"] is None
    json.dumps(line, allow_nan=False)
    assert load_result(records.folder).table()[0]["privacy"] == line["privacy"]


def test_what_has_no_guarantee_is_apart(records: Result) -> None:
    seen = written(records)
    text = squeezed(seen.text["open"])
    assert "One client replaced: no epsilon holds" in text
    assert "raw private samples: nothing protects it (no mechanism)" in text
    assert not re.search(r"epsilon [\d.]", text)
    given = sum(event["contributed"] for event in records.cells[0].of("hello"))
    assert int(seen.text["contributed"]) == given > 100
    assert "disclosed in the clear" in seen.text["left"]
    plain = small(privacy={"release": {"name": "top-1"}}, method=OPEN, proxy=PUBLIC)
    result = simulate(plain, rounds=1)
    (cell,) = result.cells
    told = privacy.statement(result, cell)
    assert told.promises == ()
    assert told.heuristics == ("answers to proxy samples: top-1",)
    assert [title for title, _ in told.broken] == [
        "One client replaced",
        "One record added or removed",
    ]


def test_budget_stops_are_counted_in_line_table_and_page(records: Result) -> None:
    (own, _) = records.cells
    stops = [(e["round"], e["client"]) for e in own.of("client") if "abstained" in e]
    assert 0 < len(stops) < 6
    (line, _) = records.table()
    assert line["abstained"] == own.abstained == len(stops)
    seen = written(records)
    assert "At an epsilon of 3.8 (delta 1e-05, unit: record)" in squeezed(seen.text["stops"])
    told = re.findall(r"client ([\d, to]+) in round ([\d, to]+)", seen.text["left"])
    pairs = [(r, c) for clients, rounds in told for r in each(rounds) for c in each(clients)]
    assert sorted(pairs) == sorted(stops)

    def progress(console: Console) -> None:
        listener = Progress(console, records.scenario)
        for event in own.events:
            listener("edgefd", 1, event)

    lines = said(progress)
    rounds = own.of("round")
    for event in rounds:
        n = event["n_abstained"]
        assert f"round {event['round']}/2" in lines
        assert f"abstained {n}" in lines or n == 0
    n_told = len(re.findall(r"abstained \d", lines))  # the note of a round says the word too
    assert n_told == sum(event["n_abstained"] > 0 for event in rounds)


def test_by_client_and_table_hold_each_epsilon(records: Result) -> None:
    seen = written(records)
    start = next(i for i, line in enumerate(seen.lines) if "samples held" in line)
    assert seen.lines[start][-1] == "epsilon, record"
    for client, *_, shown in seen.lines[start + 1 : start + 4]:
        found = total(records.cells[0].ledgers[int(client)], RECORD, 1e-5)
        assert float(shown) == pytest.approx(found.epsilon, rel=5e-3)
    column = seen.lines[0].index("epsilon, record")
    own, alone = seen.lines[1], seen.lines[2]
    (record,) = [told for told in records.table()[0]["privacy"] if told["unit"] == "record"]
    assert float(own[column]) == pytest.approx(record["epsilon"], rel=5e-3)
    assert 0 < float(alone[column]) < float(own[column])  # trained, but nothing filtered
    text = said(lambda console: console.print(table_of(records)))
    assert "epsilon, record" in text
    assert "At delta 1e-05 for one record added or removed, of the client that spent most" in text
    assert "PLD and RDP" in text


def test_without_a_guarantee_no_table_has_an_epsilon(tmp_path: Path) -> None:
    result = simulate(small(), folder=tmp_path, rounds=1)
    assert "epsilon" not in said(lambda console: console.print(table_of(result)))
    seen = written(result)
    assert "epsilon, record" not in seen.lines[0]
    assert "There is no differential privacy guarantee" in seen.text["guaranteed"]
    told = in_one_line(result.spent["edgefd"], RECORD)
    assert told.startswith("epsilon infinite for one record added or removed")
    assert "the filter is fitted on raw data" in told
    alone = simulate(small(method={"name": "local-only"}), rounds=1)
    assert in_one_line(alone.spent["local-only"], RECORD).startswith("nothing was recorded")


def test_a_client_guarantee_has_its_own_column(tmp_path: Path) -> None:
    settings = {"release": {"name": "gaussian", "epsilon": 5.0}, "unit": "client"}
    scenario = small(privacy=settings, proxy=PUBLIC, method=OPEN, references=["local-only"])
    result = simulate(scenario, folder=tmp_path)
    seen = written(result)
    assert "One client replaced: epsilon 5" in squeezed(seen.text["guaranteed"])
    assert "One record added or removed: no epsilon holds" in squeezed(seen.text["open"])
    column = seen.lines[0].index("epsilon, client")
    assert 4.9 < float(seen.lines[1][column]) < 6
    assert seen.lines[2][column] == "0"  # alone, without privacy: nothing left
    (client,) = [s for s in result.spent["edgefd"] if s.total.spent.protects == CLIENT]
    assert in_one_line(result.spent["edgefd"], CLIENT) == str(client)


def test_exposure_is_empirical_and_perplexity_is_in_the_table(tmp_path: Path) -> None:
    result = text_run(tmp_path)
    (event,) = result.cells[0].of("round")
    seen = written(result)
    text = squeezed(seen.text["exposure"])
    assert text.startswith("Empirical: mean exposure of canaries")
    for key in ("exposure_own", "exposure_peers", "exposure_controls"):
        assert f"{event[key]:.2f} of secrets" in text
    assert "gives 1.44 on average" in text
    assert "exposure" not in seen.text["guaranteed"]
    assert seen.text["rows"] == f"{2 * 12 * 64:,}"  # every position of every record, twice
    assert "Empirical: answers to proxy samples: swing by patterns" in squeezed(seen.text["open"])
    column = seen.lines[0].index("perplexity")
    assert float(seen.lines[1][column]) == pytest.approx(event["perplexity"], abs=0.005)
    shown = said(lambda console: console.print(table_of(result)))
    assert f"{event['perplexity']:.2f}" in shown


def test_a_run_ends_with_what_its_ledgers_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "console", Console(width=500, force_terminal=False))
    path = tmp_path / "scenario.toml"
    settings = {"training": {"name": "dp-sgd", "noise_multiplier": 1.3}}
    path.write_text(config.dump(small(privacy=settings, method=OPEN, proxy=PUBLIC)))
    cli.run(path, ["training.rounds=1"], tmp_path / "run")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("privacy of edgefd")]
    (record,) = [s for s in load_result(tmp_path / "run").spent["edgefd"] if s.proved]
    assert line == f"privacy of edgefd: {record}"
    assert WHOLE.search(line)


def test_ledgers_are_read_and_never_written(tmp_path: Path) -> None:
    """A run that is going on may be half way through a line."""
    result = simulate(small(), folder=tmp_path, rounds=1)
    (file, *_) = sorted(tmp_path.glob("edgefd/seed-1/clients/*/ledger.jsonl"))
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"client":0,"rou')
    again = load_result(tmp_path)
    assert again.cells[0].ledgers == result.cells[0].ledgers
    assert file.read_bytes() == whole + b'{"client":0,"rou'


def test_in_memory_runs_know_as_much_as_those_on_disk(tmp_path: Path) -> None:
    scenario = small(privacy={"training": {"name": "dp-sgd"}})
    here, there = simulate(scenario, rounds=1), simulate(scenario, folder=tmp_path, rounds=1)
    assert here.cells[0].ledgers == there.cells[0].ledgers
    assert here.spent == there.spent


def test_the_worst_of_all_seeds_is_told() -> None:
    result = simulate(small(seeds=[1, 2], privacy={"training": {"name": "dp-sgd"}}, method=OPEN,
                            proxy=PUBLIC), rounds=1)  # fmt: skip
    both = [result, *(replace(result, cells=(cell,)) for cell in result.cells)]
    all_, *each = [
        next(s for s in one.spent["edgefd"] if s.total.spent.protects == RECORD) for one in both
    ]
    assert all_.total.epsilon == max(one.total.epsilon for one in each)
    assert all_ in each

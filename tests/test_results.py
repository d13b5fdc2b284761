"""Results, progress and catalogue on events written by hand."""

from __future__ import annotations

import io
import re
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedkd import config
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from scenario_tables import chosen
from scenarios.catalogue import catalogue
from scenarios.progress import Progress, table_of
from scenarios.results import Cell, Result
from scenarios.units import duration, percent, size
from server.events import Event


def round_(number: int, **fields: Any) -> Event:
    return {
        "event": "round",
        "round": number,
        "accuracy": 0.5,
        "accuracy_worst": 0.25,
        "bytes_up": 100,
        "bytes_down": 1000,
        "bytes_pool": 0,
        "seconds": 2.0,
        **fields,
    }


POOL: Event = {
    "event": "pool",
    "n_samples": 30,
    "n_contributed": 30,
    "bytes_up": 7,
    "bytes_each": 7000,
}


def cell(*events: Event, row: str = "edgefd", seed: int = 1) -> Cell:
    return Cell(row=row, seed=seed, events=events)


def result(*cells: Cell) -> Result:
    return Result(scenario=Scenario(), folder=None, cells=cells)


# --- cells ---


def test_the_last_round_is_quoted() -> None:
    one = cell(POOL, round_(1, accuracy=0.9), {"event": "client", "round": 2}, round_(2))
    assert one.last == round_(2)
    assert one.of("client") == [{"event": "client", "round": 2}]


def test_the_best_round_is_chosen_on_validation_and_not_on_test() -> None:
    one = cell(
        round_(1, validation_accuracy=0.6, accuracy=0.95),
        round_(2, validation_accuracy=0.8, accuracy=0.5),
        round_(3, validation_accuracy=0.7, accuracy=0.99),
    )
    assert one.best["round"] == 2
    (line,) = result(one).table()
    assert (line["best_accuracy"], line["accuracy"]) == (0.5, 0.99)


def test_at_a_tie_or_without_a_validation_set_the_later_round_is_best() -> None:
    assert cell(*(round_(n, validation_accuracy=0.6) for n in (1, 2, 3))).best["round"] == 3
    assert cell(round_(1, accuracy=0.9), round_(2, accuracy=0.1)).best["round"] == 2


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1))
@settings(deadline=None, max_examples=60)
def test_no_test_accuracy_changes_the_choice(accuracies: list[tuple[float, float]]) -> None:
    def best(*, of_test: bool) -> int:
        rounds = [
            round_(n, validation_accuracy=validation, accuracy=test if of_test else 0.5)
            for n, (validation, test) in enumerate(accuracies, start=1)
        ]
        return int(cell(*rounds).best["round"])

    chosen = best(of_test=True)
    assert chosen == best(of_test=False)
    assert accuracies[chosen - 1][0] == max(validation for validation, _ in accuracies)


def test_bytes_and_seconds_are_those_of_all_rounds_and_the_pool() -> None:
    one = cell(
        {"event": "hello", "client": 0},
        POOL,
        {"event": "client", "round": 1, "bytes_up": 100, "train_s": 9.0},
        round_(1, bytes_pool=70_000),
        {"event": "refused", "round": 2, "client": 1, "reason": "x"},
        round_(2, seconds=3.5),
    )
    assert one.bytes == 7 + 70_000 + 2 * (100 + 1000)
    assert one.seconds == 5.5
    assert cell(round_(1)).bytes == 1100  # a row without a pool


# --- the table ---


def test_rows_keep_their_order_and_gather_their_seeds() -> None:
    cells = [cell(round_(1), row=row, seed=seed) for row in ("edgefd", "b", "a") for seed in (2, 1)]
    found = result(*cells)
    assert list(found.rows()) == ["edgefd", "b", "a"]
    assert [line["row"] for line in found.table()] == ["edgefd", "b", "a"]
    assert all(line["seeds"] == [2, 1] for line in found.table())


def test_a_line_is_the_mean_over_seeds_of_the_last_rounds() -> None:
    last: list[dict[str, Any]] = [
        {"accuracy": 0.5, "own_accuracy": 0.75, "consensus_accuracy": 0.25, "accepted": 0.1},
        {"accuracy": 0.75, "own_accuracy": 0.25, "consensus_accuracy": None},
        {"accuracy": 1.0, "own_accuracy": 0.5, "brier": 0.5, "accuracy_sd": 0.125},
    ]
    last[0]["class_recall"] = [0.25, 1.0, None]
    last[2]["class_recall"] = [0.75, None, None]
    cells = [
        cell(round_(1, accuracy=0.0), round_(2, seconds=seed, **fields), seed=seed)
        for seed, fields in enumerate(last)
    ]
    (line,) = result(*cells).table()
    assert line == {
        "row": "edgefd",
        "seeds": [0, 1, 2],
        "accuracy": 0.75,
        "accuracy_sd": statistics.stdev([0.5, 0.75, 1.0]),
        "accuracy_worst": 0.25,
        "own_accuracy": 0.5,
        "accepted": 0.1,  # of the one seed that says so
        "precision": None,
        "recall": None,
        "consensus_accuracy": 0.25,
        "best_accuracy": 0.75,
        "bytes": 2200,
        "seconds": 3.0,
        "server_accuracy": None,
        "perplexity": None,
        "accuracy_worst_tenth": None,
        "clients_sd": 0.125,
        "brier": 0.5,
        "ece": None,
        "ece_low": None,
        "ece_high": None,
        "filter_auroc": None,
        "filter_s": None,
        "class_recall": [0.5, 1.0, None],
        "abstained": 0.0,
        "privacy": [],
    }


def test_one_seed_has_no_standard_deviation() -> None:
    (line,) = result(cell(round_(1))).table()
    assert line["accuracy_sd"] is None


def test_a_result_without_cells_has_an_empty_table() -> None:
    assert result().table() == []


# --- what the terminal shows ---


def shown(scenario: Scenario, told: list[tuple[str, int, Event]]) -> list[str]:
    out = io.StringIO()
    progress = Progress(Console(file=out, width=200, force_terminal=False), scenario)
    for row, seed, event in told:
        progress(row, seed, event)
    return out.getvalue().splitlines()


def test_progress_tells_rounds_and_how_much_is_left() -> None:
    scenario = config.parse({"training": {"rounds": 10}, "references": ["local-only"]})
    lines = shown(
        scenario,
        [
            ("edgefd", 1, POOL),
            ("edgefd", 1, round_(1, seconds=2.0, accepted=0.125, consensus_accuracy=0.875)),
            ("edgefd", 1, round_(2, seconds=4.0)),
            ("local-only", 1, round_(1, seconds=6.0, bytes_up=0, bytes_down=0)),
        ],
    )
    assert lines == [
        "edgefd",
        "  proxy set of 30 samples (30 private samples given in the clear), 7.0 kB each",
        "  round  1/10  accuracy 50.0 %  worst 25.0 %  accepted 12.5 %  consensus 87.5 %  "
        "up 100 B down 1.0 kB  left 38 s",  # 19 rounds of 2 s
        "  round  2/10  accuracy 50.0 %  worst 25.0 %  up 100 B down 1.0 kB  left 54 s",
        "local-only",
        "  round  1/10  accuracy 50.0 %  worst 25.0 %  up 0 B down 0 B  left 36 s",  # 9 of 4 s
    ]


@pytest.mark.parametrize(
    "reason",
    [
        "pool is not [n, c, h, w]",
        "values are [3, 4], not [2, 4]",
        "failed: OSError: [/nowhere]",
        "[bold red]x[/bold red]",
        r"C:\[x]",
    ],
)
def test_what_a_client_says_is_shown_as_it_is(reason: str) -> None:
    """It comes from outside: it must neither vanish as markup nor end the run."""
    refused: Event = {"event": "refused", "round": 1, "client": 2, "reason": reason}
    lines = shown(Scenario(), [("edgefd", 1, refused)])
    assert lines[-1] == f"  round 1: refused client 2: {reason}"


def test_seeds_are_named_where_there_are_several() -> None:
    scenario = config.parse({"seeds": [3, 4]})
    lines = shown(scenario, [("edgefd", seed, round_(1)) for seed in (3, 4)])
    assert lines[::2] == ["edgefd, seed 3", "edgefd, seed 4"]


def test_the_table_shows_every_row() -> None:
    cells = [
        cell(round_(1, accuracy=accuracy, accepted=0.5), seed=seed)
        for seed, accuracy in enumerate((0.5, 0.7))
    ]
    out = io.StringIO()
    Console(file=out, width=120).print(
        table_of(result(*cells, cell(round_(1, accuracy=0.25), row="local-only")))
    )
    edgefd, local = (
        next(line for line in out.getvalue().splitlines() if row in line)
        for row in ("edgefd", "local-only")
    )
    assert "60.0 % ± 14.1" in edgefd
    assert "50.0 %" in edgefd
    assert "25.0 %" in local
    assert "±" not in local


def test_figures_are_told_in_the_unit_that_reads_best() -> None:
    assert [percent(value) for value in (None, 0, 0.12345, 1)] == [
        "-",
        "0.0 %",
        "12.3 %",
        "100.0 %",
    ]
    assert [size(n) for n in (0, 999, 1000, 12_345_678, 5e9, 5e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "5.00 GB",
        "5000.00 GB",
    ]
    assert [duration(s) for s in (0, 9.94, 9.96, 59.4, 59.6, 61, 3600)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "59 s",
        "1:00 min",
        "1:01 min",
        "60:00 min",
    ]


# --- the catalogue ---


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, lines in catalogue().items() for name in lines]
)
def test_everything_in_the_catalogue_can_be_set(key: str, name: str) -> None:
    assert catalogue()[key][name].strip()
    if key in ("references", "model.names"):
        *sections, last = key.split(".")
        value: Any = {last: [name]}
        for section in reversed(sections):
            value = {section: value}
    else:
        value = chosen(key.removesuffix(".name"), name)
    config.parse(value)


def test_the_catalogue_holds_every_name_that_a_scenario_accepts() -> None:
    for key, lines in catalogue().items():
        *sections, last = key.split(".")
        table: Any = {last: ["?"] if key in ("references", "model.names") else "?"}
        for section in reversed(sections):
            table = {section: table}
        with pytest.raises(FedkdError) as error:
            config.parse(table)
        allowed = str(error.value).split("allowed: ")[1].split(";")[0]
        names = re.findall(r"'(.+?)'", allowed) or allowed.split(", ")
        if key == "model.names":
            assert names.pop() == "or package.module:function"
        assert names == list(lines)

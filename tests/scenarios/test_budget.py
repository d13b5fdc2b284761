"""`fedkd budget` and `--target-epsilon`: what is foretold is what is spent."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binom

from fedkd import config
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from privacy import ledger
from privacy.asked import CLIENT, RECORD
from privacy.knobs import FILTERS_PART
from privacy.totals import total
from scenarios import cli
from scenarios.budget import MOST_VIRTUAL, forecast, on_target, prospects, ways_to
from scenarios.budget_text import in_words
from scenarios.simulate import simulate
from small_runs import small

DP_SGD = {"name": "dp-sgd", "noise_multiplier": 1.3}
PUBLIC = {"name": "public", "size": 60}
OPEN = {"name": "edgefd", "gate": {"name": "open"}}


def private(**privacy: Any) -> Scenario:
    return small(privacy=privacy, proxy=PUBLIC)


WAYS: dict[str, tuple[Scenario, float]] = {
    "records": (private(training=DP_SGD, filter={"name": "dp-kmeans"}), 3.0),
    "calibrated": (private(training={"name": "dp-sgd", "epsilon": 5.0}), 4.0),
    "clients": (
        small(
            privacy={"release": {"name": "sampled-label"}, "unit": "client"},
            proxy=PUBLIC,
            method=OPEN,
        ),
        20.0,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "calibrated")) for n in WAYS]
)
def test_each_way_reaches_the_target_and_little_more(name: str) -> None:
    scenario, target = WAYS[name]
    if name == "calibrated":
        scenario = scenario.model_copy(update={"method": small(method=OPEN).method})
    found = ways_to(scenario, target)
    reached = {knob.key: way for knob, way in found if way}
    assert reached
    assert "training.rounds" in {knob.key for knob, _ in found}
    for knob, way in found:
        if way is None:
            continue
        now = forecast(way.scenario).asked.total.epsilon
        assert now == way.epsilon <= target
        worse = way.value + 1 if knob.whole else way.value * (1.02 if knob.rising else 1 / 1.02)
        assert forecast(knob.change(scenario, worse)).asked.total.epsilon > target


def test_a_way_that_there_is_not_is_none() -> None:
    assert ways_to(small(), 1.0) == []  # nothing has a guarantee
    scenario = private(training=DP_SGD, filter={"name": "dp-kmeans", "epsilon": 2.0})
    assert ways_to(scenario, 1000.0) == []  # reached as it is
    ways = {knob.key: way for knob, way in ways_to(scenario, 1.5)}
    assert ways["privacy.filter.epsilon"] is None  # DP-SGD alone is above
    assert ways["training.rounds"] is None


def test_a_record_target_is_spent_by_the_run(tmp_path: Path) -> None:
    scenario = private(training=DP_SGD, filter={"name": "dp-kmeans"})
    path, folder = tmp_path / "scenario.toml", tmp_path / "run"
    path.write_text(config.dump(scenario))
    cli.run(path, None, folder, target_epsilon=3.0, as_json=True)
    kept = config.load(folder / "scenario.toml")
    assert kept == on_target(scenario, 3.0)
    training, filter_ = kept.privacy.training, kept.privacy.filter
    shares = [row.model_dump()["epsilon"] for row in (training, filter_)]
    assert shares[1] / sum(shares) == pytest.approx(FILTERS_PART)
    spent = [
        total(ledger.look(file), RECORD, 1e-5).epsilon
        for file in folder.glob("edgefd/seed-1/clients/*/ledger.jsonl")
    ]
    assert len(spent) == 3
    assert 2.95 < max(spent) <= 3.0
    assert max(spent) == pytest.approx(forecast(kept).asked.total.epsilon, rel=1e-9)


@pytest.mark.parametrize(
    "row",
    [
        {"name": "gaussian"},
        {"name": "laplace"},
        {"name": "randomised-response"},
        {"name": "sampled-label"},
        {"name": "swing", "degree": "density", "noise": "gaussian"},
        {"name": "secure-aggregation", "sigma": 1.0},
    ],
    ids=lambda row: str(row["name"]),
)
def test_a_client_target_is_spent_by_the_run(row: dict[str, Any]) -> None:
    part = "server" if row["name"] == "secure-aggregation" else "release"
    privacy = {part: row, "unit": "client"}
    scenario = on_target(small(privacy=privacy, proxy=PUBLIC, method=OPEN), 6.0)
    (client,) = [s for s in simulate(scenario).spent["edgefd"] if s.total.spent.protects == CLIENT]
    assert 5.8 < client.total.epsilon <= 6.0


def test_a_budget_does_not_make_a_target_cheaper() -> None:
    scenario = small(privacy={"training": DP_SGD, "budget": 1.0}, proxy=PUBLIC, method=OPEN)
    done = on_target(scenario, 4.0)
    assert done.privacy.budget == 1.0
    free = done.model_copy(update={"privacy": done.privacy.model_copy(update={"budget": None})})
    assert 3.9 < forecast(free).asked.total.epsilon <= 4.0
    assert forecast(done).asked.total.epsilon <= 1.0
    assert forecast(done).silent == 3


def test_targets_that_cannot_be_are_one_line() -> None:
    with pytest.raises(FedkdError, match="dp-sgd"):
        on_target(small(), 1.0)
    with pytest.raises(FedkdError, match="without a guarantee"):
        on_target(small(privacy={"training": DP_SGD}), 1.0)  # the filter is fitted on raw data
    for target in (0.0, math.nan):
        with pytest.raises(FedkdError, match="above 0"):
            ways_to(small(), target)


def test_words_hold_no_epsilon_without_what_it_means() -> None:
    scenario = small(
        privacy={"training": DP_SGD, "filter": {"name": "dp-kmeans"}, "budget": 5.0},
        seeds=[1, 2],
        training={"rounds": 6, "participation": 0.5},
    )
    lines = in_words(forecast(scenario))
    for line in lines:
        if re.search(r"epsilon [\d.]", line):
            assert re.search(r"epsilon [\d.]+ at delta 1e-05 for one (record|client)", line), line
            assert "PLD" in line
            assert "RDP" in line
    text = "\n".join(lines)
    given = max(sum(map(len, scenario.world(seed).contributed)) for seed in (1, 2))
    assert f"disclosed in the clear: {given} raw samples" in text
    assert "raw samples: none, no mechanism" in text  # so a client as a whole has no guarantee
    assert "abstain" in text
    # Two of three are drawn, so all rounds are paid for: the half of three would be fewer.
    assert "drawn at random, 2 of 3 a round: 6 rounds of 6 are paid for" in text
    assert "who is drawn for more pays more, or abstains if there is a budget" in text
    assert "at most" in lines[0]
    open_, shut = text.split("one client replaced, at delta", 1)
    assert "no guarantee" not in open_
    assert "epsilon infinite for one client replaced" in shut


def test_the_words_say_what_calibrated_noise_counts_on() -> None:
    scenario = small(
        privacy={"training": {"name": "dp-sgd", "epsilon": 4.0}},
        training={"rounds": 20, "participation": 0.01, "local": {"batch_size": 512}},
        method=OPEN,
    )
    text = "\n".join(in_words(forecast(scenario)))
    paid = int(binom.ppf(0.95, 20, 1 / 3))  # at least one of the three takes part
    assert f"what {paid} rounds will cost a client, at most" in text
    assert f"1 of 3 a round: {paid} rounds of 20 are paid for" in text
    assert "noise is calibrated for that many, and who is drawn for more abstains" in text
    assert 3.9 < forecast(scenario).asked.total.epsilon <= 4.0


def test_of_a_population_the_first_few_are_looked_at() -> None:
    virtual = {"name": "virtual", "clients": 100_000, "samples": 50}
    scenario = small(partition=virtual, proxy=PUBLIC, privacy={"training": DP_SGD})
    assert len(prospects(scenario, 1)) == MOST_VIRTUAL
    assert "looked at the first 4 of 100,000 clients" in "\n".join(in_words(forecast(scenario)))


def test_the_command_prints_text_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(config.dump(private(training=DP_SGD, filter={"name": "dp-kmeans"})))
    cli.budget(path, ["training.rounds=1"], target_epsilon=3.0)
    text = capsys.readouterr().out
    assert "epsilon 3 at delta 1e-05 for one record added or removed" in text
    assert "privacy.training.noise_multiplier 1.3 ->" in text
    cli.budget(path, ["training.rounds=1"], target_epsilon=3.0, as_json=True)
    told = json.loads(capsys.readouterr().out)
    record, client = told["totals"]
    outlook = forecast(config.load(path, ["training.rounds=1"])).asked
    assert record["epsilon"] == outlook.total.epsilon == max(record["pld"], record["rdp"])
    assert (record["unit"], record["relation"], record["delta"]) == ("record", "add-remove", 1e-5)
    assert client["epsilon"] is None
    assert client["bare"]
    assert [part["part"] for part in record["parts"]] == ["training", "filter", "release"]
    assert {knob["key"] for knob in told["target"]["knobs"]} >= {"training.rounds"}

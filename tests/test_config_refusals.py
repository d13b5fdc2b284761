"""Scenarios that are refused, and in which words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fedkd.config import REFERENCES, Scenario, from_json, load, parse
from fedkd.config_overrides import ROWS
from fedkd.data.sources import SOURCES
from fedkd.errors import FedkdError
from fedkd.exchange.methods import METHODS
from fedkd.models.zoo import MODELS
from scenario_tables import NEEDED, Toml, at, nested, refusal, written


@pytest.mark.parametrize(
    ("table", "key", "nearest"),
    [
        ({"trainin": {}}, "trainin", "training"),
        ({"descriptions": 1}, "descriptions", "description"),
        ({"training": {"round": 5}}, "training.round", "rounds"),
        ({"training": {"local": {"epoch": 5}}}, "training.local.epoch", "epochs"),
        ({"partition": {"name": "iid", "client": 5}}, "partition.client", "clients"),
        ({"partition": {"name": "strong", "strong": 5}}, "partition.strong", None),
        ({"data": {"name": "npz", "path": "x", "pat": "y"}}, "data.pat", "path"),
        (
            {"proxy": {"name": "foreign", "source": {"name": "idx", "paht": "x"}}},
            "proxy.source.paht",
            "path",
        ),
        ({"method": {"gates": {}}}, "method.gates", "gate"),
        ({"method": {"edgefd": 1}}, "method.edgefd", None),
        ({"method": {"gate": {"powr": 1}}}, "method.gate.powr", "power"),
        ({"method": {"gate": {"name": "quantile", "power": 1}}}, "method.gate.power", None),
        ({"method": {"combine": {"mean": 1}}}, "method.combine.mean", "name"),
        ({"method": {"distill": {"temp": 1}}}, "method.distill.temp", "temperature"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(
    table: Toml, key: str, nearest: str | None
) -> None:
    text = refusal(table)
    assert f"unknown key '{key}' in scenario;" in text
    if nearest is not None:
        assert f"did you mean '{nearest}'?" in text
    siblings = text.split("allowed: ")[1].split(";")[0].split(", ")
    section = parse(table_without(table, key.split("."))) if "." in key else Scenario()
    parent = key.rpartition(".")[0]
    assert siblings == sorted(type(at(section, parent) if parent else section).model_fields)


def table_without(table: Toml, path: list[str]) -> Toml:
    first, *rest = path
    if rest:
        return {**table, first: table_without(table[first], rest)}
    return {key: value for key, value in table.items() if key != first}


@pytest.mark.parametrize(
    ("where", "name", "nearest"),
    [
        ("data", "digit", "digits"),
        ("partition", "dirichlett", "dirichlet"),
        ("proxy", "publik", "public"),
        ("proxy.source", "indx", "idx"),
        ("method", "edgfd", "edgefd"),
        ("method.score", "kmean", "kmeans"),
        ("method.gate", "quantil", "quantile"),
        ("method.release", "logit", "logits"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(where: str, name: str, nearest: str) -> None:
    table = nested(where, {"name": name})
    if where == "proxy.source":
        table["proxy"]["name"] = "foreign"
    text = refusal(table)
    known = METHODS if where == "method" else ROWS.get(where, SOURCES)
    assert where in text
    assert f"got '{name}'" in text
    assert f"allowed: {', '.join(known)};" in text
    assert f"did you mean '{nearest}'?" in text


def test_unknown_models_and_references_are_answered_with_the_nearest() -> None:
    text = refusal({"model": {"names": ["mlp", "cnnn"]}})
    allowed = f"{', '.join(MODELS)}, or package.module:function"
    assert f"model.names; got 'cnnn'; allowed: {allowed}; fix: did you mean 'cnn'?" in text
    text = refusal({"references": ["fed-avg"]})
    assert f"references; got 'fed-avg'; allowed: {', '.join(REFERENCES)};" in text
    assert "did you mean 'fedavg'?" in text


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("training.rounds", -3, "greater than or equal to 1"),
        ("training.rounds", 2.5, "integer"),
        ("training.participation", 1.5, "less than or equal to 1"),
        ("training.local.learning_rate", math.nan, "finite"),
        ("training.distill.learning_rate", math.inf, "finite"),
        ("training.local.epochs", 0, "greater than 0"),
        ("training.local.momentum", 1, "less than 1"),
        ("training.distill.optimizer", "adamw", "'adam' or 'sgd'"),
        ("training.heldout", 0, "greater than 0"),
        ("seeds", [], "at least 1 item"),
        ("seeds.0", "one", "integer"),
        ("name", "a b", "pattern"),
        ("name", "../up", "pattern"),
        ("device", "gpu", "cuda"),
        ("validation", 1, "less than 1"),
        ("partition.clients", 0, "greater than or equal to 1"),
        ("proxy.fraction", 0, "between 0 and 1"),
        ("proxy.fraction", 1, "less than 1"),
        ("method.score.k", 0, "greater than or equal to 1"),
        ("method.score.space", "pixel", "'pixels' or 'features'"),
        ("privacy.unit", "person", "'record'"),
        ("method.release.temperature", -1, "greater than 0"),
        ("method.score", "kmeans", "dictionary"),
        ("partition", 3, "dictionary"),
        ("grid.name", "rey", "'inline', "),
        ("model.names", [], "at least 1 item"),
        ("model.names", "mlp", "tuple"),
    ],
)
def test_a_bad_value_is_told_with_its_key_and_what_is_allowed(
    path: str, value: Any, allowed: str
) -> None:
    table = nested(path.removesuffix(".0"), [value] if path.endswith(".0") else value)
    for name, chosen in (("partition", "strong"), ("proxy", "contributed")):
        if isinstance(table.get(name), dict):
            table[name]["name"] = chosen
    text = refusal(table)
    assert f"bad value for '{path}' in scenario; got {value!r}; allowed: " in text
    assert allowed in text.split("allowed: ", 1)[1]


@pytest.mark.parametrize("partition", ["dirichlet", "quantity"])
def test_an_alpha_of_zero_is_refused(partition: str) -> None:
    text = refusal({"partition": {"name": partition, "alpha": 0}})
    assert "'partition.alpha' in scenario; got 0; allowed: input should be greater" in text


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"partition": {"clients": 3}}, "'partition' in scenario needs a name"),
        ({"method": {"gate": {"name": "constant"}}}, "'method.gate.value' is missing"),
        ({"data": {"name": "npz"}}, "'data.path' is missing in scenario; fix: set data.path"),
        ({"proxy": {"name": "foreign"}}, "'proxy.source' is missing"),
        ({"method": {"name": ["edgefd"]}}, "unknown method in method.name; got ['edgefd']"),
    ],
)
def test_what_is_missing_is_named(table: Toml, words: str) -> None:
    assert words in refusal(table)


@pytest.mark.parametrize("release", ["probabilities", "logits"])
def test_two_temperatures_are_refused(release: str) -> None:
    stages = {"release": {"name": release, "temperature": 3.0}, "distill": {"temperature": 2.0}}
    text = refusal({"method": stages})
    assert "got (3.0, 2.0)" in text
    assert "method.release.temperature" in text
    assert "method.distill.temperature" in text
    stages["distill"]["temperature"] = 3.0
    assert parse({"method": stages}).method.distill.temperature == 3.0


@pytest.mark.parametrize("distill", [{"name": "l1"}, {"name": "mse"}, {"name": "bckd"}])
def test_objectives_of_raw_logits_need_them(distill: Toml) -> None:
    text = refusal({"method": {"distill": distill}})
    assert distill["name"] in text
    assert 'allowed: method.release.name = "logits"' in text
    parse({"method": {"distill": distill, "release": {"name": "logits"}}})
    if distill["name"] != "bckd":
        parse({"method": {"distill": {**distill, "space": "probabilities"}}})


@pytest.mark.parametrize("rule", ["era", "power", "median", "trimmed-mean"])
def test_rules_for_distributions_refuse_logits(rule: str) -> None:
    text = refusal({"method": {"combine": {"name": rule}, "release": {"name": "logits"}}})
    assert f"got {rule!r}; allowed: mean, geometric-median" in text


@pytest.mark.parametrize(
    ("part", "name"),
    [("server", "secure-aggregation"), ("server", "gnmax"), ("release", "randomised-response")],
)
@pytest.mark.parametrize("rule", ["power", "median"])
def test_what_works_on_the_mean_refuses_another_rule(part: str, name: str, rule: str) -> None:
    privacy = {part: {"name": name, **NEEDED.get(name, {})}}
    text = refusal({"method": {"combine": {"name": rule}}, "privacy": privacy})
    assert f"privacy.{part}.name = {name!r} works on the mean" in text
    parse({"privacy": privacy})


def test_swing_brings_an_objective_of_its_own() -> None:
    swing = {"release": {"name": "swing", "degree": "density"}}
    text = refusal({"method": {"distill": {"name": "ce"}}, "privacy": swing})
    assert "method.distill.name = 'ce'" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such scenario file; got"),
        (b"seeds = [1", "cannot read the scenario"),
        (b"a = 1\na = 2", "cannot read the scenario"),
        (b"name = '\xff'", "cannot read the scenario"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FedkdError, match=words) as error:
        load(path)
    assert "my.toml" in str(error.value)
    with pytest.raises(FedkdError, match="cannot read the scenario"):
        load(tmp_path)


def test_mistakes_name_the_file_that_they_are_in(tmp_path: Path) -> None:
    path = written(tmp_path, "[training]\nround = 1")
    with pytest.raises(FedkdError, match=rf"unknown key 'training.round' in {path};"):
        load(path)
    with pytest.raises(FedkdError, match=r"'training.round' in the server's scenario;"):
        from_json('{"training": {"round": 1}}')


def test_a_limit_that_nobody_can_check_is_refused() -> None:
    table = {"limits": {"rows": 0.5}, "privacy": {"server": {"name": "secure-aggregation"}}}
    assert "who answers how many samples is hidden" in refusal(table)

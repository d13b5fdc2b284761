"""Scenarios: what loads, what is refused and in which words, and what an override does."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedkd import config, device
from fedkd.config import REFERENCES, STAGES, MethodConfig, Scenario, dump, from_json, load, parse
from fedkd.data.partition import PARTITIONS, Dirichlet, Iid
from fedkd.data.proxy import PROXIES
from fedkd.data.sources import SOURCES
from fedkd.errors import FedkdError
from fedkd.exchange.combine import COMBINES
from fedkd.exchange.distill import DISTILLS
from fedkd.exchange.gate import GATES, Quantile, Share
from fedkd.exchange.methods import METHODS
from fedkd.exchange.release import RELEASES
from fedkd.exchange.score import SCORES, KMeans
from fedkd.models.zoo import MODELS
from fedkd.protection import FILTERS, PROTECTED_RELEASES, SERVERS, TRAININGS
from fedkd.section import Section

Toml = dict[str, Any]
FILES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.toml"))
NEEDED: dict[str, Toml] = {  # keys without a default
    "constant": {"value": 0.5},
    "npz": {"path": "x.npz"},
    "huggingface": {"path": "mnist"},
    "text": {"path": "texts"},
    "huggingface-text": {"path": "wikitext"},
    "swing": {"degree": "density"},
    "gnmax": {"threshold": 5.0, "sigma_threshold": 2.0, "sigma": 1.0},
    "foreign": {"source": {"name": "digits"}},
}
TABLES = {
    "data": SOURCES,
    "partition": PARTITIONS,
    "proxy": PROXIES,
    "method.score": SCORES,
    "method.gate": GATES,
    "method.release": RELEASES,
    "method.combine": COMBINES,
    "method.distill": DISTILLS,
    "privacy.training": TRAININGS,
    "privacy.filter": FILTERS,
    "privacy.release": PROTECTED_RELEASES,
    "privacy.server": SERVERS,
}


def nested(path: str, value: Any) -> Toml:
    """{"a": {"b": value}} for "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def at(scenario: Any, path: str) -> Any:
    for key in path.split("."):
        scenario = getattr(scenario, key)
    return scenario


def differences(a: Section, b: Section, prefix: str = "") -> set[str]:
    """Dotted keys at which two sections differ."""
    found: set[str] = set()
    for key in type(a).model_fields:
        one, other = getattr(a, key), getattr(b, key)
        if isinstance(one, Section) and type(one) is type(other):
            found |= differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.add(prefix + key)
    return found


def refusal(table: Toml) -> str:
    with pytest.raises(FedkdError) as error:
        parse(table)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- what loads ---


def test_an_empty_file_is_the_default_scenario(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")) == Scenario() == parse({})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_scenario_of_the_house_loads_with_its_references(path: Path) -> None:
    scenario = load(path)
    assert scenario.name == path.stem
    assert scenario.description
    for name in scenario.references:
        assert scenario.row(name).references == ()


@pytest.mark.parametrize(
    ("where", "name"), [(where, name) for where, rows in TABLES.items() for name in rows]
)
def test_every_row_of_every_table_can_be_chosen(where: str, name: str) -> None:
    row = at(parse(nested(where, {"name": name, **NEEDED.get(name, {})})), where)
    assert type(row) is TABLES[where][name]
    assert row.name == name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_is_its_row(name: str) -> None:
    chosen = parse({"method": {"name": name}}).method
    assert chosen.exchange == METHODS[name].exchange
    assert all(getattr(chosen, stage) == getattr(METHODS[name], stage) for stage in STAGES)


def test_a_pool_is_needed_where_something_is_learnt_from_it() -> None:
    needy = {name for name in METHODS if parse({"method": {"name": name}}).uses_pool}
    assert needy == {"edgefd", "no-filter", "proxy-labels"}


# --- round trips ---

GRIDS = get_args(config.Grid.model_fields["name"].annotation)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
SHARE = st.floats(0, 1, exclude_min=True, exclude_max=True)
COUNT = st.integers(1, 10**6)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def rows(table: Mapping[str, object], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Toml]:
    """A row of `table` by name, with the keys it needs and some others of its `fields`."""

    def row(name: str, cls: Any) -> st.SearchStrategy[Toml]:
        ours = {key: value for key, value in fields.items() if key in cls.model_fields}
        needed = {key: ours.pop(key) for key in NEEDED.get(name, {})}
        return st.fixed_dictionaries({"name": st.just(name), **needed}, optional=ours)

    return st.one_of(row(name, cls) for name, cls in table.items())


def settings_of(cls: type[Section], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Toml]:
    assert fields.keys() <= cls.model_fields.keys()
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def tables(draw: st.DrawFn) -> Toml:
    temperature = draw(POSITIVE)
    stages = {
        "score": rows(SCORES, k=COUNT, per_class=st.booleans()),
        "gate": rows(GATES, q=st.floats(0, 1), power=POSITIVE, value=st.floats(-1e300, 1e300)),
        "release": rows(
            RELEASES, temperature=st.just(temperature), k=COUNT, draws=st.integers(1, 65_535)
        ).map(lambda row: {**row, "temperature": temperature}),
        "distill": st.just({"temperature": temperature}),
    }
    method = {"name": st.sampled_from(sorted(METHODS)), **stages}
    phase = settings_of(
        config.Phase,
        epochs=POSITIVE,
        batch_size=COUNT,
        optimizer=st.sampled_from(["adam", "sgd"]),
        learning_rate=POSITIVE,
        momentum=SHARE,
    )
    training = settings_of(
        config.Training, rounds=COUNT, local=phase, distill=phase, heldout=SHARE, timeout_s=POSITIVE
    )
    sections = {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True),
        "description": TEXT,
        "seeds": st.lists(st.integers(), min_size=1),
        "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
        "validation": st.floats(0, 1, exclude_max=True),
        "data": rows(SOURCES, path=TEXT, image_key=TEXT, test_fraction=SHARE),
        "partition": rows(
            PARTITIONS, clients=COUNT, alpha=st.floats(0.001, 1e9), shards_per_client=COUNT
        ),
        "proxy": rows(PROXIES, fraction=SHARE, size=COUNT, source=rows(SOURCES, path=TEXT)),
        "model": st.fixed_dictionaries(
            {"names": st.lists(st.sampled_from(sorted(MODELS)), min_size=1)}
        ),
        "method": st.fixed_dictionaries(method),
        "training": training,
        "grid": st.fixed_dictionaries({"name": st.sampled_from(GRIDS)}),
        "references": st.lists(st.sampled_from(sorted(REFERENCES))),
    }
    return draw(st.fixed_dictionaries({}, optional=sections))


@given(tables())
@settings(deadline=None, max_examples=200)
def test_dump_and_json_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, table: Toml
) -> None:
    scenario = parse(table)
    path = written(tmp_path_factory.getbasetemp(), dump(scenario))
    assert load(path) == scenario
    assert parse(tomllib.loads(dump(scenario))) == scenario
    assert from_json(scenario.model_dump_json()) == scenario
    assert dump(load(path)) == dump(scenario)


def test_a_dump_leaves_nothing_to_defaults() -> None:
    """What a run folder keeps must not change its meaning when a default does."""
    table = tomllib.loads(dump(parse({"method": {"score": {"k": 3}}})))
    assert table["training"]["rounds"] == Scenario().training.rounds
    assert table["method"]["score"] == KMeans(k=3).model_dump()
    assert table["method"]["gate"] == Share().model_dump()


# --- what is refused, and in which words ---


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
    known = METHODS if where == "method" else TABLES.get(where, SOURCES)
    assert where in text
    assert f"got '{name}'" in text
    assert f"allowed: {', '.join(known)};" in text
    assert f"did you mean '{nearest}'?" in text


def test_unknown_models_and_references_are_answered_with_the_nearest() -> None:
    text = refusal({"model": {"names": ["mlp", "cnnn"]}})
    allowed = "mlp, cnn, small-cnn, gru, transformer"
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
        ("method.combine.name", "median", "'mean'"),
        ("method.distill.name", "js", "'kl'"),
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


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))


PATHS = sorted(set(leaves(Scenario().model_dump())) - {()})
JUNK = st.recursive(
    st.one_of(
        st.integers(),
        st.floats(),
        st.booleans(),
        st.text(max_size=5),
        st.dates(),
        st.sampled_from([*METHODS, *PARTITIONS, *GATES, "mean", "mlp"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.just("name"), st.text(max_size=5)),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)


def parsed_or_error(table: Toml) -> Scenario | FedkdError:
    try:
        return parse(table)
    except FedkdError as error:
        return error


@given(st.sampled_from(PATHS), st.sampled_from(["", "x"]), JUNK)
@settings(deadline=None, max_examples=500)
def test_junk_anywhere_loads_or_is_one_line_that_says_where(
    path: tuple[str, ...], tail: str, junk: Any
) -> None:
    keys = [*path, tail] if tail else list(path)
    table = nested(".".join(keys), junk)
    outcome = parsed_or_error(table)
    if isinstance(outcome, FedkdError):
        assert "\n" not in str(outcome)
        assert keys[0] in str(outcome) or "one temperature" in str(outcome)
    else:
        assert parse(tomllib.loads(dump(outcome))) == outcome


def walk(value: Any) -> Iterator[Section]:
    if isinstance(value, Section):
        yield value
        for key in type(value).model_fields:
            yield from walk(getattr(value, key))


def test_no_part_of_a_scenario_can_be_changed() -> None:
    sections = list(walk(parse({"proxy": {"name": "foreign", "source": {"name": "digits"}}})))
    assert len(sections) >= 14
    for section in sections:
        for key in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, key, getattr(section, key))
        with pytest.raises(ValidationError, match="frozen"):
            section.extra = 1  # type: ignore[attr-defined]
        assert hash(section) == hash(section.model_copy(deep=True))


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES.keys())
def test_every_row_has_one_line_that_says_what_it_is(rows: Mapping[str, type[Section]]) -> None:
    for name, row in rows.items():
        assert row.model_fields["name"].default == name
        assert row.__doc__ is not None
        assert row.__doc__.startswith(row.line())
        assert len(row.line()) > 20
    assert len({row.line() for row in rows.values()}) == len(rows)


# --- overrides ---


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.rounds=5", "training.rounds", 5),
        (" training.rounds = 5 ", "training.rounds", 5),
        ("training.local.learning_rate=1e-2", "training.local.learning_rate", 0.01),
        ("name=other", "name", "other"),
        ('name="other"', "name", "other"),
        ("description=a = b, 'c'", "description", "a = b, 'c'"),
        ("description=", "description", ""),
        ("seeds=[3, 4]", "seeds", (3, 4)),
        ("references=[]", "references", ()),
        ("model.names=['cnn', 'mlp']", "model.names", ("cnn", "mlp")),
        ("method.score.per_class=true", "method.score.per_class", True),
        ("method.gate.name=own", "method.gate.name", "own"),
        ("method={name='fedavg'}", "method.name", "fedavg"),
        ("data={name='idx', path='/a b'}", "data.path", "/a b"),
    ],
)
def test_an_override_is_toml_or_else_text(override: str, path: str, value: Any) -> None:
    scenario = load(FILES[0], [override])
    assert at(scenario, path) == value
    changed = differences(scenario, load(FILES[0]))
    assert {key.split(".")[0] for key in changed} <= {path.split(".")[0]}


OLD = """
[partition]
name = "dirichlet"
alpha = 0.3
[data]
name = "npz"
path = "x.npz"
test_fraction = 0.5
[method]
name = "edgefd"
score = {k = 7}
gate = {name = "quantile", q = 0.5}
"""


@pytest.mark.parametrize(
    ("overrides", "path", "expected"),
    [
        (["partition.name=iid"], "partition", Iid()),
        (["partition.name=iid", "partition.clients=4"], "partition", Iid(clients=4)),
        (["partition.name=dirichlet"], "partition.alpha", 0.3),
        (["data.name=npz", "data.path=y.npz"], "data.test_fraction", 0.5),
        (["method.gate.name=share"], "method.gate", Share()),
        (["method.gate.name=share"], "method.score", KMeans(k=7)),
        (["method.gate.name=quantile"], "method.gate", Quantile(q=0.5)),
        (["method.name=no-filter"], "method", MethodConfig.model_validate({"name": "no-filter"})),
        (["method.name=edgefd"], "method.score", KMeans(k=7)),
        (["name=other"], "partition.alpha", 0.3),
    ],
)
def test_another_name_drops_the_settings_of_the_old_row(
    tmp_path: Path, overrides: list[str], path: str, expected: Any
) -> None:
    assert at(load(written(tmp_path, OLD), overrides), path) == expected


@given(
    st.permutations(
        [
            "method={name='fedavg'}",
            "method.name=edgefd",
            "method.gate.name=quantile",
            "method.gate.q=0.25",
            "method.score={k=4}",
            "method.score.per_class=true",
            "partition.clients=3",
            "partition.name=dirichlet",
            "name=mine",
        ]
    )
)
@settings(deadline=None, max_examples=40)
def test_overrides_of_different_keys_may_come_in_any_order(overrides: list[str]) -> None:
    scenario = load(FILES[0], overrides)
    assert scenario.name == "mine"
    assert scenario.partition == Dirichlet(clients=3)
    assert (scenario.method.name, scenario.method.gate) == ("edgefd", Quantile(q=0.25))
    assert scenario.method.score == KMeans(k=4, per_class=True)


def test_of_overrides_of_one_key_the_last_wins() -> None:
    overrides = [f"training.rounds={rounds}" for rounds in (7, 5, 6)]
    assert load(FILES[0], overrides).training.rounds == 6


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.rounds", "--set needs KEY=VALUE; got 'training.rounds'"),
        ("=5", "--set needs KEY=VALUE; got '=5'"),
        ("name.x=5", "not a section; got 'name.x=5'"),
        ("seeds.0=5", "not a section; got 'seeds.0=5'"),
        ("training.round=5", "unknown key 'training.round' in .*'rounds'"),
        ("trainin.rounds=5", "unknown key 'trainin' in .*'training'"),
        ("training.rounds=many", "bad value for 'training.rounds' in .*got 'many'"),
        ("training=5", "bad value for 'training' in .*got 5"),
        ("method.gate.q=0.5", "unknown key 'method.gate.q'"),
        ("partition.name=irid", "got 'irid'.*did you mean 'iid'"),
    ],
)
def test_a_bad_override_is_refused(override: str, words: str) -> None:
    with pytest.raises(FedkdError, match=words):
        load(FILES[0], [override])


# --- a method's stages ---


def test_a_stage_that_keeps_its_name_is_adjusted() -> None:
    for change in ({"k": 3}, {"name": "kmeans", "k": 3}):
        method = parse({"method": {"score": change}}).method
        assert method.score == KMeans(k=3)
        assert method.gate == METHODS["edgefd"].gate
    one, both = (
        parse({"method": {"score": change}}).method.score
        for change in ({"per_class": True}, {"per_class": True, "k": 3})
    )
    assert (one, both) == (KMeans(per_class=True), KMeans(per_class=True, k=3))


def test_a_stage_with_another_name_is_replaced() -> None:
    method = parse({"method": {"gate": {"name": "quantile"}}}).method
    assert method.gate == Quantile()  # nothing of Share
    assert method.score == METHODS["edgefd"].score
    with pytest.raises(FedkdError, match=r"unknown key 'method.gate.power'"):
        parse({"method": {"gate": {"name": "quantile", "power": 3}}})


def test_a_default_phase_is_adjusted_key_by_key() -> None:
    """To set one key of `training.local` must not turn its optimiser into another."""
    for phase in ("local", "distill"):
        default = getattr(Scenario().training, phase)
        changed = getattr(parse({"training": {phase: {"epochs": 7}}}).training, phase)
        assert changed == default.model_copy(update={"epochs": 7.0})


# --- reference rows ---

OWN = {
    "name": "own",
    "seeds": [4, 5],
    "partition": {"name": "weak", "clients": 6},
    "model": {"names": ["mlp", "cnn"]},
    "method": {
        "score": {"k": 3},
        "release": {"name": "logits", "temperature": 3},
        "distill": {"temperature": 3},
    },
    "training": {"rounds": 3},
    "references": list(REFERENCES),
}


def test_no_filter_differs_in_the_filter_only() -> None:
    own = parse(OWN)
    row = own.row("no-filter")
    assert differences(own, row) == {"method.name", "method.score", "method.gate", "references"}
    assert (row.method.score.name, row.method.gate.name) == ("none", "open")


def test_iid_differs_in_the_partition_only() -> None:
    own = parse(OWN)
    assert differences(own, own.row("iid")) == {"partition", "references"}
    assert own.row("iid").partition == Iid(clients=6)


def test_iid_has_as_many_clients_as_the_data_have_owners(tmp_path: Path) -> None:
    owner = np.repeat([5, 6, 9], 8)
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((24, 2, 2)), y=np.arange(24) % 2, client=owner)
    own = parse({"data": {"name": "npz", "path": str(path)}, "partition": {"name": "natural"}})
    assert own.row("iid").partition == Iid(clients=3)
    nobody = parse({"partition": {"name": "natural"}})  # digits name no owners
    assert nobody.row("iid").partition == Iid(clients=1)


@pytest.mark.parametrize(
    ("name", "exchange"),
    [("local-only", "none"), ("fedavg", "weights"), ("proxy-labels", "proxy-labels")],
)
def test_a_reference_method_leaves_the_rest_of_the_scenario(name: str, exchange: str) -> None:
    own = parse(OWN)
    row = own.row(name)
    assert row.method == MethodConfig.model_validate({"name": name})
    assert row.method.exchange == exchange
    assert {key.split(".")[0] for key in differences(own, row)} == {"method", "references"}


def test_centralised_is_one_client_that_learns_alone() -> None:
    own = parse(OWN)
    row = own.row("centralised")
    assert (row.partition, row.method.exchange) == (Iid(clients=1), "none")
    assert {key.split(".")[0] for key in differences(own, row)} == {
        "method",
        "partition",
        "references",
    }


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_row_is_a_valid_scenario(name: str) -> None:
    row = parse(OWN).row(name)
    assert parse(tomllib.loads(dump(row))) == row
    assert from_json(json.dumps(row.model_dump(mode="json"))) == row


# --- device ---


def test_a_device_that_is_not_there_is_refused() -> None:
    assert device.resolve("cpu") == torch.device("cpu")
    n_gpus = torch.cuda.device_count()
    assert device.resolve("auto").type == ("cuda" if n_gpus else "cpu")
    with pytest.raises(FedkdError, match=rf"got 'cuda:{n_gpus}'; allowed: cpu.*auto"):
        device.resolve(f"cuda:{n_gpus}")


def test_a_new_name_keeps_the_settings_that_its_row_has_too(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[partition]\nname = "dirichlet"\nclients = 40\nalpha = 0.1\n')
    changed = load(path, ["partition.name=weak"]).partition
    assert (changed.name, changed.clients) == ("weak", 40)
    path.write_text("[method.score]\nk = 30\n")
    assert load(path, ["method.score.name=kmeans"]).method.score.k == 30

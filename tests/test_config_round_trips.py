"""Scenarios that are written and read back, and junk: no value is lost, none is let in."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedkd.config import REFERENCES, Scenario, dump, from_json, load, parse
from fedkd.config_overrides import ROWS
from fedkd.config_sections import Grid, Phase, Training
from fedkd.data.partition import PARTITIONS
from fedkd.data.proxy import PROXIES
from fedkd.data.sources import SOURCES
from fedkd.errors import FedkdError
from fedkd.exchange.combine import COMBINES
from fedkd.exchange.distill import DISTILLS
from fedkd.exchange.gate import GATES, Share
from fedkd.exchange.methods import METHODS
from fedkd.exchange.release import RELEASES
from fedkd.exchange.score import SCORES, KMeans
from fedkd.models.zoo import MODELS
from fedkd.section import Section
from scenario_tables import NEEDED, Toml, nested, written

GRIDS = get_args(Grid.model_fields["name"].annotation)
HARD = {name: gate for name, gate in GATES.items() if name != "soft"}  # it fits a few scores only
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
        "score": rows(SCORES, k=COUNT, per_class=st.booleans(), bandwidth=POSITIVE),
        "gate": rows(
            HARD, m=COUNT, q=st.floats(0, 1), power=POSITIVE, value=st.floats(-1e300, 1e300)
        ),
        "release": rows(
            RELEASES, temperature=st.just(temperature), k=COUNT, draws=st.integers(1, 65_535)
        ).map(lambda row: {**row, "temperature": temperature}),
        "combine": rows({n: COMBINES[n] for n in ("mean", "geometric-median")}),  # of logits too
        "distill": rows(DISTILLS, space=st.just("probabilities"))
        .filter(lambda row: row["name"] != "bckd")  # it goes with raw logits only
        .map(lambda row: {"space": "probabilities", **row} if row["name"] in ("l1", "mse") else row)
        .map(lambda row: {**row, "temperature": temperature}),
    }
    names = sorted(  # of `fd`, most stages are refused
        name for name, row in METHODS.items() if row.gate.name in HARD and name != "fd"
    )
    method = {"name": st.sampled_from(names), **stages}
    phase = settings_of(
        Phase,
        epochs=POSITIVE,
        batch_size=COUNT,
        optimizer=st.sampled_from(["adam", "sgd"]),
        learning_rate=POSITIVE,
        momentum=SHARE,
    )
    training = settings_of(
        Training, rounds=COUNT, local=phase, distill=phase, heldout=SHARE, timeout_s=POSITIVE
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
    table = draw(st.fixed_dictionaries({}, optional=sections))
    if table.get("partition", {}).get("name") == "own":  # where nobody has all the data
        table["references"] = []
        if table.get("proxy", {}).get("name") == "public":
            del table["proxy"]
    return table


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


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_every_row_has_one_line_that_says_what_it_is(rows: Mapping[str, type[Section]]) -> None:
    for name, row in rows.items():
        assert row.model_fields["name"].default == name
        assert row.__doc__ is not None
        assert row.__doc__.startswith(row.line())
        assert len(row.line()) > 20
    assert len({row.line() for row in rows.values()}) == len(rows)

"""What an override of a scenario does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.config import load
from fedkd.config_sections import MethodConfig
from fedkd.data.partition import Dirichlet, Iid
from fedkd.errors import FedkdError
from fedkd.exchange.gate import Quantile, Share
from fedkd.exchange.score import KMeans
from scenario_tables import EDGEFD, at, differences, written


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
    scenario = load(EDGEFD, [override])
    assert at(scenario, path) == value
    changed = differences(scenario, load(EDGEFD))
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
    scenario = load(EDGEFD, overrides)
    assert scenario.name == "mine"
    assert scenario.partition == Dirichlet(clients=3)
    assert (scenario.method.name, scenario.method.gate) == ("edgefd", Quantile(q=0.25))
    assert scenario.method.score == KMeans(k=4, per_class=True)


def test_of_overrides_of_one_key_the_last_wins() -> None:
    overrides = [f"training.rounds={rounds}" for rounds in (7, 5, 6)]
    assert load(EDGEFD, overrides).training.rounds == 6


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
        load(EDGEFD, [override])


def test_a_new_name_keeps_the_settings_that_its_row_has_too(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[partition]\nname = "dirichlet"\nclients = 40\nalpha = 0.1\n')
    changed = load(path, ["partition.name=weak"]).partition
    assert (changed.name, changed.clients) == ("weak", 40)
    path.write_text("[method.score]\nk = 30\n")
    assert load(path, ["method.score.name=kmeans"]).method.score.k == 30

"""The table of protections: each changes what it says, and costs what it promises."""

from __future__ import annotations

from typing import Any

import pytest

from fedkd import config
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from scenarios.audit.protections import BASELINE, PROTECTIONS, bare, chosen, differences
from scenarios.budget import forecast
from small_runs import small

SCENARIOS = "scenarios/swing-pydoc.toml"
OPEN: dict[str, Any] = {"method": {"name": "no-filter"}, "proxy": {"name": "public", "size": 60}}
DP_SGD = {
    "privacy.training.clip": 1.0,
    "privacy.training.error_clip": 0.0,
    "privacy.training.name": "dp-sgd",
    "privacy.training.noise_multiplier": 1.0,
    "training.local.batch_size": 239,
    "training.local.epochs": 2.0,
    "training.local.learning_rate": 1.0,
    "training.local.optimizer": "sgd",
}
CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "temperature:3": {"method.distill.temperature": 3.0, "method.release.temperature": 3.0},
    "top-1": {"privacy.release.name": "top-1"},
    "top-k:2": {"method.release.name": "top-k", "method.release.k": 2},
    "nfdp": {"privacy.training.name": "nfdp", "privacy.training.fraction": 0.5},
    "dpsgd:8": {**DP_SGD, "privacy.training.epsilon": 8.0},
    "dpsgd-weak": {
        **DP_SGD,
        "privacy.training.noise_multiplier": 0.8,
        "training.local.batch_size": 119,
    },
    "gaussian:4": {
        "privacy.release.bound": 5.0,
        "privacy.release.epsilon": 4.0,
        "privacy.release.name": "gaussian",
        "privacy.unit": "client",
    },
    "laplace:4": {
        "privacy.release.bound": 5.0,
        "privacy.release.epsilon": 4.0,
        "privacy.release.name": "laplace",
        "privacy.unit": "client",
    },
    "summary:3": {
        "privacy.release.axes": 20,
        "privacy.release.by": "dp-class-means",
        "privacy.release.epsilon": 3.0,
        "privacy.release.name": "summary",
    },
    "secagg": {"privacy.server.name": "secure-aggregation", "privacy.server.sigma": 0.0},
    "top-1+nfdp": {
        "privacy.release.name": "top-1",
        "privacy.training.name": "nfdp",
        "privacy.training.fraction": 0.5,
    },
    "temperature:2+top-k:3": {
        "method.distill.temperature": 2.0,
        "method.release.k": 3,
        "method.release.name": "top-k",
        "method.release.temperature": 2.0,
    },
}


def after(before: Scenario, name: str) -> dict[str, Any]:
    return {
        key: new for key, (_, new) in differences(before, chosen(before, name).scenario).items()
    }


@pytest.mark.parametrize("name", CHANGES)
def test_a_protection_changes_what_it_says_and_nothing_else(name: str) -> None:
    before = small(**OPEN)
    found = chosen(before, name)
    assert after(before, name) == CHANGES[name]
    assert found.name == name
    assert config.parse(found.scenario.model_dump()) == found.scenario


def test_large_batches_are_no_more_than_half_of_what_a_client_holds() -> None:
    before = small(**OPEN)
    world = before.world(1)
    batch = chosen(before, "dpsgd:8").scenario.training.local.batch_size
    assert batch == len(world.train) // 2 // world.n_clients
    weak = chosen(before, BASELINE).scenario.training.local.batch_size
    assert weak == len(world.train) // 4 // world.n_clients


def test_every_row_of_the_table_is_tested() -> None:
    here = {part.partition(":")[0] for name in CHANGES for part in name.split("+")}
    assert here | {"swing", "filter", "sampled-label", "response"} == set(PROTECTIONS)
    assert BASELINE in PROTECTIONS


def test_the_scenarios_own_protection_goes_first() -> None:
    settings = {
        "training": {"name": "dp-sgd", "epsilon": 8.0},
        "release": {"name": "top-1"},
        "delta": 1e-4,
        "budget": 9.0,
    }
    before = small(**OPEN, privacy=settings, references=["local-only"])
    plain = small(**OPEN, privacy={"delta": 1e-4})
    assert chosen(before, "none").scenario == bare(before) == plain
    assert after(plain, "secagg") == {
        "privacy.server.name": "secure-aggregation",
        "privacy.server.sigma": 0.0,
    }


def test_swing_is_the_scenarios_own_or_that_of_its_kind_of_data() -> None:
    images = small(**OPEN)
    assert chosen(images, "swing").scenario.privacy.release.model_dump()["degree"] == "density"
    own = {"name": "swing", "degree": "classes", "private_classes": [3, 5], "t_max": 7.0}
    mine = small(**OPEN, privacy={"release": own})
    assert chosen(mine, "swing").scenario == mine
    text = config.load(SCENARIOS)
    assert chosen(text, "swing").scenario.privacy == text.privacy
    assert chosen(bare(text), "swing").scenario.privacy == text.privacy


@pytest.mark.parametrize("name", ["none", "temperature:4", "top-1", "top-k:5", "dpsgd:8", BASELINE])
def test_texts_keep_their_training(name: str) -> None:
    text = config.load(SCENARIOS)
    assert chosen(text, name).scenario.training == text.training


@pytest.mark.parametrize("name", ["sampled-label:40", "response:40", "gaussian:8", "laplace:40"])
def test_what_protects_a_client_costs_its_epsilon_at_most(name: str) -> None:
    found = chosen(small(**OPEN), name)
    told = forecast(found.scenario).asked.total
    target = float(name.partition(":")[2])
    least = 0.5 if name.startswith("laplace") else 0.9  # Laplace promises it at delta 0
    assert least * target < told.epsilon <= target
    assert told.spent.protects.unit == "client"


def test_a_private_filter_and_dp_sgd_together_cover_a_record() -> None:
    found = chosen(small(proxy=OPEN["proxy"]), "dpsgd:6+filter:2")
    assert found.kind == "proved"
    assert 6 < forecast(found.scenario).asked.total.epsilon < 8.1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("swng", r"unknown protection.*got 'swng'.*dpsgd:E.*did you mean 'swing'"),
        ("none+", "unknown protection"),
        ("dpsgd", "needs a number above 0.*dpsgd:8"),
        ("dpsgd:x", "needs a number above 0"),
        ("dpsgd:-1", "needs a number above 0"),
        ("dpsgd:inf", "needs a number above 0"),
        ("swing:3", "swing takes no value"),
        ("top-k:2.5", "whole number"),
        ("filter:1", "no filter that could be made private"),
        ("secagg+top-k:2", "does not go with this release"),
    ],
)
def test_a_mistake_is_said(name: str, says: str) -> None:
    with pytest.raises(FedkdError, match=says):
        chosen(small(**OPEN), name)


def test_a_folder_has_no_colon() -> None:
    assert chosen(small(**OPEN), "temperature:2.50+top-k:3").folder == "temperature-2.5+top-k-3"

"""Privacy settings that the rest of a scenario cannot go with: refused with one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fedkd import config
from fedkd.errors import FedkdError

DPSGD = {"training": {"name": "dp-sgd"}}
PRIVATE = {**DPSGD, "filter": {"name": "dp-kmeans"}}
GNMAX = {"server": {"name": "gnmax", "threshold": 2, "sigma_threshold": 1, "sigma": 1}}
OPEN = {"method": {"name": "no-filter"}}
PUBLIC = {**OPEN, "proxy": {"name": "public", "size": 50}}
TEXT = {"data": {"name": "pydoc"}, "model": {"names": ["gru"]}}
LOGITS = {"method": {"name": "no-filter", "release": {"name": "logits"}}}
FEDAVG = {"method": {"name": "fedavg"}}


def released(name: str, **settings: Any) -> dict[str, Any]:
    return {"release": {"name": name, **settings}}


def told(privacy: Mapping[str, Any], rest: Mapping[str, Any]) -> str:
    with pytest.raises(FedkdError) as error:
        config.parse({**rest, "privacy": privacy})
    assert "\n" not in str(error.value)
    assert "fix:" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("privacy", "rest", "words"),
    [
        ({}, {}, "the training plain proves nothing"),
        ({"training": {"name": "nfdp"}}, {}, "the training nfdp proves nothing"),
        ({"training": {"name": "dp-sgd", "noise_multiplier": 0}}, OPEN, "dp-sgd proves nothing"),
        (DPSGD, {}, "the gate share tells of raw data"),
        ({"filter": {"name": "dp-kmeans"}}, {}, "the training plain proves nothing"),
        ({"unit": "client"}, {}, "contributed samples leave in the clear"),
        ({"unit": "client"}, PUBLIC, "the release plain proves nothing"),
        ({"unit": "client", **DPSGD}, PUBLIC, "the release plain proves nothing"),
        ({"unit": "client", **GNMAX}, {}, "contributed samples leave in the clear"),
        (GNMAX, PUBLIC, "the training plain proves nothing"),
        ({"unit": "client", **released("top-1")}, PUBLIC, "the release top-1 proves nothing"),
        (
            {"unit": "client", **released("swing", degree="density")},
            PUBLIC,
            "the release swing proves nothing",
        ),
        (
            {"unit": "client", **released("gaussian")},
            {"proxy": PUBLIC["proxy"]},
            "the gate share tells of all that a client has",
        ),
        (
            {"unit": "client", **released("gaussian"), "filter": {"name": "dp-kmeans"}},
            {"proxy": PUBLIC["proxy"]},
            "the gate share tells of all that a client has",
        ),
        ({"unit": "client"}, FEDAVG, "weights leave as they are"),
        ({}, FEDAVG, "the training plain proves nothing"),
        (
            {**DPSGD, **released("swing", degree="density")},
            OPEN,
            "temperatures by density tell of raw data",
        ),
    ],
)
def test_a_budget_that_nothing_covers_is_refused(
    privacy: dict[str, Any], rest: dict[str, Any], words: str
) -> None:
    text = told({**privacy, "budget": 3.0}, rest)
    unit = privacy.get("unit", "record")
    assert f"no client could stay within privacy.budget: for one {unit}, " in text
    assert words in text
    assert "got 3.0" in text
    config.parse({**rest, "privacy": privacy})  # it is the budget alone that cannot be


@pytest.mark.parametrize(
    ("privacy", "rest"),
    [
        (PRIVATE, {}),
        (DPSGD, OPEN),
        ({"training": {"name": "dp-sgd", "epsilon": 2.0}}, PUBLIC),
        ({**DPSGD, **released("top-1")}, OPEN),
        ({**DPSGD, **released("swing", degree="classes", private_classes=[1])}, OPEN),
        (DPSGD, {"method": {"name": "edgefd", "gate": {"name": "own"}}}),
        (DPSGD, FEDAVG),
        ({}, {"method": {"name": "local-only"}}),
        ({"unit": "client"}, {"method": {"name": "local-only"}}),
        *(
            ({"unit": "client", **released(name)}, PUBLIC)
            for name in ("gaussian", "laplace", "sampled-label", "randomised-response")
        ),
        ({"unit": "client", **released("swing", degree="density", noise="laplace")}, PUBLIC),
        (
            {"unit": "client", "server": {"name": "secure-aggregation", "sigma": 2.0}},
            PUBLIC,
        ),
        ({"unit": "client", **GNMAX}, {"proxy": PUBLIC["proxy"]}),
    ],
)
def test_a_budget_that_something_covers_is_taken(
    privacy: dict[str, Any], rest: dict[str, Any]
) -> None:
    assert config.parse({**rest, "privacy": {**privacy, "budget": 3.0}}).privacy.budget == 3.0


@pytest.mark.parametrize(
    ("privacy", "rest", "words"),
    [
        *(
            (released(name), LOGITS, f"got 'logits with {name}'")
            for name in ("top-1", "gaussian", "laplace", "sampled-label", "randomised-response")
        ),
        (released("swing", degree="density"), LOGITS, "got 'logits with swing'"),
        (released("gaussian"), FEDAVG, "sends weights, which no row of privacy.release protects"),
        (released("swing"), {}, "not one of images; got 'patterns'; allowed: density, classes"),
        (released("swing", degree="rarity"), {}, "not one of images; got 'rarity'"),
        (released("swing", degree="divergence"), {}, "not one of images; got 'divergence'"),
        (
            released("swing", degree="density"),
            {**TEXT, **OPEN},
            "got 'density'; allowed: patterns, rarity, divergence, memorization, classes",
        ),
        ({"filter": {"name": "dp-kmeans"}}, TEXT, "private filters look at pixels"),
        (released("swing", degree="density", t_min=9, t_max=8), {}, "got 8.0; allowed: 9.0 or"),
        (released("swing", degree="classes"), {}, "needs private classes"),
        (released("swing", degree="density", private_classes=[1]), {}, "no other has them"),
        ({"training": {"name": "dp-sgd", "epsilon": 1, "error_clip": 1}}, {}, "error feedback"),
    ],
)
def test_a_setting_that_would_do_something_else_is_refused(
    privacy: dict[str, Any], rest: dict[str, Any], words: str
) -> None:
    with pytest.raises(FedkdError) as error:
        config.parse({**rest, "privacy": privacy})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dp-kmeans", "dp-class-means", "dp-kernel"])
def test_a_filter_of_more_axes_than_pixels_is_refused_with_the_data(name: str) -> None:
    for axes, rest in ((64, {}), (65, OPEN), (65, FEDAVG)):
        config.parse({**rest, "privacy": {"filter": {"name": name, "axes": axes}}}).world(1)
    scenario = config.parse({"privacy": {"filter": {"name": name, "axes": 65}}})
    with pytest.raises(FedkdError, match=r"got 65; allowed: 1 to 64; .*privacy\.filter\.axes"):
        scenario.world(1)


def test_a_private_filter_that_is_not_asked_may_be_named_for_texts() -> None:
    scenario = config.parse({**TEXT, **OPEN, "privacy": {"filter": {"name": "dp-kmeans"}}})
    assert scenario.privacy.filter.name == "dp-kmeans"

"""Knobs turned to a target, on costs whose inverse is known in closed form."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import config
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from privacy.knobs import FILTERS_PART, PRECISION, calibrated, knobs, turned
from small_runs import small

DP_SGD = {"name": "dp-sgd", "noise_multiplier": 2.0}


def of(**privacy: Any) -> Scenario:
    return small(privacy=privacy)


def setting(scenario: Scenario, key: str) -> float:
    value: Any = scenario
    for name in key.split("."):
        value = getattr(value, name)
    return float(value)


def test_every_knob_is_a_setting_that_costs_something() -> None:
    found = {
        kind: [knob.key for knob in knobs(of(**privacy))]
        for kind, privacy in {
            "nothing": {},
            "noise": {"training": DP_SGD},
            "calibrated": {"training": {"name": "dp-sgd", "epsilon": 4.0}},
            "filter": {"filter": {"name": "dp-kernel"}},
            "gaussian": {"release": {"name": "gaussian"}},
            "label": {"release": {"name": "sampled-label"}},
            "swing": {"release": {"name": "swing", "degree": "density", "noise": "laplace"}},
            "noisy sum": {"server": {"name": "secure-aggregation", "sigma": 3.0}},
            "sum": {"server": {"name": "secure-aggregation"}},
            "quiet swing": {"release": {"name": "swing", "degree": "density"}},
        }.items()
    }
    assert all(keys.pop() == "training.rounds" for keys in found.values())
    assert found == {
        "nothing": [],
        "noise": ["privacy.training.noise_multiplier", "training.local.batch_size"],
        "calibrated": ["privacy.training.epsilon"],
        "filter": ["privacy.filter.epsilon"],
        "gaussian": ["privacy.release.epsilon"],
        "label": ["privacy.release.bound"],
        "swing": ["privacy.release.scale"],
        "noisy sum": ["privacy.server.sigma"],
        "sum": [],
        "quiet swing": [],
    }
    shut = small(
        privacy={"filter": {"name": "dp-kernel"}},
        method={"name": "edgefd", "gate": {"name": "own"}},
    )
    assert [knob.key for knob in knobs(shut)] == ["training.rounds"]  # the filter is never asked


@given(
    power=st.floats(0.3, 3),
    scale=st.floats(0.01, 100),
    target=st.floats(1e-3, 1e3),
    up=st.booleans(),
)
def test_a_real_knob_ends_at_the_inverse(
    power: float, scale: float, target: float, up: bool
) -> None:
    """epsilon = scale * v^power, or scale / v^power; its inverse is known."""
    scenario = of(training=DP_SGD, filter={"name": "dp-kmeans"})
    key = "privacy.filter.epsilon" if up else "privacy.training.noise_multiplier"
    (knob,) = [knob for knob in knobs(scenario) if knob.key == key]
    sign = 1 if up else -1

    def cost(changed: Scenario) -> float:
        return scale * setting(changed, key) ** (sign * power)

    best = (target / scale) ** (sign / power)
    found = turned(knob, scenario, cost, target)
    reach = 2.0 * 4 * 16 * 256
    if found is None:
        assert abs(math.log(best / knob.now)) > math.log(reach)
        return
    assert found.epsilon == cost(found.scenario) <= target
    assert knob.value(found.scenario) == found.value
    if abs(math.log(best / knob.now)) < math.log(reach):
        # Four digits of the value cost at most that much more.
        assert found.epsilon >= target * (1 - PRECISION) * (1 - 0.002 * power)


@given(batch=st.integers(1, 1000), target=st.integers(-3, 1100))
def test_a_whole_knob_ends_at_the_best_number(batch: int, target: int) -> None:
    phase = {"batch_size": batch}
    scenario = small(privacy={"training": DP_SGD}, training={"local": phase})
    (knob,) = [knob for knob in knobs(scenario) if knob.key.endswith("batch_size")]
    found = turned(knob, scenario, lambda s: s.training.local.batch_size + 0.5, target)
    best = [value for value in range(1, batch + 1) if value + 0.5 <= target]
    assert (found and found.value) == (best[-1] if best else None)


def test_a_record_is_calibrated_in_the_stated_proportion() -> None:
    scenario = of(training=DP_SGD, filter={"name": "dp-kmeans"})

    def cost(changed: Scenario) -> float:
        of_training = getattr(changed.privacy.training, "epsilon", None) or math.inf
        return math.hypot(of_training, setting(changed, "privacy.filter.epsilon"))

    done = calibrated(scenario, cost, 3.0)
    training, filter_ = (
        setting(done, f"privacy.{part}.epsilon") for part in ("training", "filter")
    )
    assert filter_ / (training + filter_) == pytest.approx(FILTERS_PART)
    assert 3 * (1 - 2 * PRECISION) < cost(done) <= 3
    changed = {"training", "filter"}
    assert done.model_copy(update={"privacy": scenario.privacy}) == scenario
    assert done.privacy.model_dump(exclude=changed) == scenario.privacy.model_dump(exclude=changed)


def test_what_no_noise_can_help_is_refused() -> None:
    plain = {"what": of(), "says": "dp-sgd"}
    top = {"what": of(unit="client", release={"name": "top-1"}), "says": "gaussian"}
    bare = {"what": of(training=DP_SGD), "says": "without a guarantee"}
    for case in (plain, top, bare):
        with pytest.raises(FedkdError, match=str(case["says"])):
            calibrated(case["what"], lambda scenario: math.inf, 1.0)  # type: ignore[arg-type]
    for target in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(FedkdError, match="above 0"):
            calibrated(of(training=DP_SGD), lambda scenario: 1.0, target)


def test_a_resolved_scenario_is_one_that_can_be_kept() -> None:
    done = calibrated(of(training=DP_SGD), lambda s: setting(s, "privacy.training.epsilon"), 2.5)
    assert config.parse(tomllib.loads(config.dump(done))) == done

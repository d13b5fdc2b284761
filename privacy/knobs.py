"""Which setting brings a scenario's epsilon down to a target? Each by itself, by monotone search.

A knob changes one setting (or, for `calibrated`, two in a fixed proportion), and epsilon moves
one way with it. `turned` finds how far it must go. Every value that is returned has been costed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from fedkd import config, protection
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from fedkd.exchange.gate import needs_scores

Cost = Callable[[Scenario], float]
"""Epsilon of the client that pays most."""
FILTERS_PART = 0.2
"""Of a calibrated record's epsilon; DP-SGD has the rest. They are what two would be that add up."""
PRECISION = 0.005
"""How near to the target, relatively, an epsilon must end."""
NARROWEST = 1e-4
"""Where a cost jumps, no search goes on in less than this factor between two values."""
GALLOP = (2.0, 4.0, 16.0, 256.0)
"""By so much, one after the other, a search goes away from where a knob is."""


class Knob(NamedTuple):
    """One way to change what a scenario costs."""

    key: str
    now: float
    change: Callable[[Scenario, float], Scenario]
    rising: bool
    """Whether epsilon rises with the value."""
    whole: bool = False

    def value(self, scenario: Scenario) -> float:
        """Where a scenario has the knob."""
        found: Any = scenario
        for name in self.key.split("."):
            found = getattr(found, name)
        return float(found)


class Turned(NamedTuple):
    """Where a knob must go, and what the scenario costs there."""

    value: float
    epsilon: float
    scenario: Scenario


def knobs(scenario: Scenario) -> list[Knob]:
    """What may be turned in a scenario; not each of them helps."""
    training, privacy = scenario.training, scenario.privacy
    found = []
    match privacy.training:
        case protection.DpSgd(epsilon=None, noise_multiplier=noise) if noise > 0:
            found.append(_knob("privacy.training.noise_multiplier", noise, rising=False))
            batch = training.local.batch_size
            found.append(_knob("training.local.batch_size", batch, rising=True, whole=True))
        case protection.DpSgd(epsilon=float(epsilon)):
            found.append(_knob("privacy.training.epsilon", epsilon, rising=True))
    if not isinstance(privacy.filter, protection.PlainFilter) and needs_scores(
        scenario.method.gate
    ):
        found.append(_knob("privacy.filter.epsilon", privacy.filter.epsilon, rising=True))
    if isinstance(privacy.release, protection.SummaryRelease):
        found.append(_knob("privacy.release.epsilon", privacy.release.epsilon, rising=True))
    found += _of_clients(privacy)
    found.append(_knob("training.rounds", training.rounds, rising=True, whole=True))
    return found


def _of_clients(privacy: protection.Privacy) -> list[Knob]:
    """The knob of what protects a whole client, if anything does."""
    match privacy.server:
        case protection.SecureAggregation(sigma=sigma) if sigma > 0:
            return [_knob("privacy.server.sigma", sigma, rising=False)]
    match privacy.release:
        case (
            protection.GaussianRelease(epsilon=epsilon)
            | protection.LaplaceRelease(epsilon=epsilon)
            | protection.RandomisedResponse(epsilon=epsilon)
        ):
            return [_knob("privacy.release.epsilon", epsilon, rising=True)]
        case protection.SampledLabel(bound=bound):
            return [_knob("privacy.release.bound", bound, rising=True)]
        case protection.Swing(noise="gaussian" | "laplace", scale=scale):
            return [_knob("privacy.release.scale", scale, rising=False)]
        case _:
            return []


def turned(knob: Knob, scenario: Scenario, cost: Cost, target: float) -> Turned | None:
    """The least that a knob must give up for an epsilon of at most `target`; None if it cannot.

    The best whole number, or a value with which epsilon is within PRECISION of the target.
    """

    def costs(value: float) -> float:
        try:
            return cost(knob.change(scenario, value))
        except FedkdError:  # a value that the setting or its mechanism does not take
            return math.inf

    if knob.whole:
        good = _whole(int(knob.now), costs, target)
    else:
        good = _real(knob.now, costs, target, knob.rising)
    if good is None:
        return None
    return Turned(good, costs(good), knob.change(scenario, good))


def _whole(now: int, costs: Callable[[float], float], target: float) -> float | None:
    """The largest number from 1 to `now` that costs at most `target`."""
    if costs(now) <= target:
        return now
    if costs(1) > target:
        return None
    low, high = 1, now
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if costs(middle) <= target else (low, middle)
    return low


def _real(now: float, costs: Callable[[float], float], target: float, rising: bool) -> float | None:
    """Gallop until a value on each side of the target is known, then close in on it."""
    safe_now = costs(now) <= target
    outwards = 1 if rising == safe_now else -1
    last = now
    for factor in GALLOP:
        value = last * factor**outwards
        if (costs(value) <= target) != safe_now:
            break
        last = value
    else:
        return last if safe_now else None
    good, bad = (last, value) if safe_now else (value, last)
    while costs(good) < (1 - PRECISION) * target and abs(math.log(bad / good)) > NARROWEST:
        middle = _between(good, bad, costs(good), costs(bad), target)
        good, bad = (middle, bad) if costs(middle) <= target else (good, middle)
    short = _rounded(good, up=not rising)
    return short if costs(short) <= target else good  # calibration is monotone to a tolerance


def _between(good: float, bad: float, low: float, high: float, target: float) -> float:
    """Where a straight line in logarithms is just below the target; never near an end."""
    share = 0.5
    if 0 < low < high < math.inf:
        aim = math.log((1 - PRECISION / 2) * target)
        share = (aim - math.log(low)) / (math.log(high) - math.log(low))
    return float(good * (bad / good) ** min(max(share, 0.05), 0.95))


def _rounded(value: float, *, up: bool) -> float:
    """Four digits, in one direction: 1.23456 is 1.235 or 1.234."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{(math.ceil if up else math.floor)(value / unit) * unit:.4g}")


def calibrated(scenario: Scenario, cost: Cost, target: float) -> Scenario:
    """The scenario with its noise set so that the epsilon of `privacy.unit` is at most `target`.

    For records: DP-SGD's epsilon (or a summary's) and that of a private filter, FILTERS_PART of
    both, are scaled together. For clients: the release's knob. Nothing else is changed.
    Raises: FedkdError for a target that is none, or where something leaves without a guarantee,
        whatever its noise.
    """
    if not 0 < target < math.inf:
        raise FedkdError("a target epsilon must be a number above 0", value=target)
    knob = _of_unit(scenario, target)
    bare = math.isinf(cost(knob.change(scenario, knob.now)))
    found = None if bare else turned(knob, scenario, cost, target)
    if found is None:
        why = "something leaves without a guarantee, so no noise brings epsilon to the target"
        raise FedkdError(
            why if bare else f"{knob.key} does not bring epsilon to the target by itself",
            value=target,
            fix="see what fedkd budget says of each part",
        )
    return found.scenario


def _of_unit(scenario: Scenario, target: float) -> Knob:
    privacy = scenario.privacy
    if privacy.unit == "client":
        of_clients = _of_clients(privacy)
        if not of_clients:
            raise FedkdError(
                "this release has no noise to calibrate for a client",
                value=privacy.release.name,
                allowed="gaussian, laplace, sampled-label, randomised-response, swing with noise",
                fix='privacy.release.name = "gaussian"',
            )
        return of_clients[0]
    if isinstance(privacy.release, protection.SummaryRelease):
        main = "privacy.release.epsilon"
    elif isinstance(privacy.training, protection.DpSgd):
        main = "privacy.training.epsilon"
    else:
        raise FedkdError(
            "this training has no noise to calibrate for a record",
            value=privacy.training.name,
            allowed="dp-sgd, or the release summary",
            fix='privacy.training.name = "dp-sgd", or privacy.unit = "client" with a private '
            "release",
        )
    filters = not isinstance(privacy.filter, protection.PlainFilter)
    part = FILTERS_PART if filters and needs_scores(scenario.method.gate) else 0.0

    def change(scenario: Scenario, whole: float) -> Scenario:
        changed = _set(scenario, main, (1 - part) * whole)
        return _set(changed, "privacy.filter.epsilon", part * whole) if part else changed

    keys = main + (" with privacy.filter.epsilon" if part else "")
    return Knob(keys, target, change, rising=True)


def _knob(key: str, now: float, *, rising: bool, whole: bool = False) -> Knob:
    return Knob(key, now, lambda scenario, value: _set(scenario, key, value), rising, whole)


def _set(scenario: Scenario, key: str, value: Any) -> Scenario:
    """The scenario with one setting changed, and validated again."""
    table = scenario.model_dump()
    *sections, last = key.split(".")
    section = table
    for name in sections:
        section = section[name]
    section[last] = value
    return config.parse(table)

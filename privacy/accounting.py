"""Epsilon of composed privacy events, by two accountants that check each other.

* PLD composes the distributions of the privacy loss themselves: tight, but on a grid. All Gaussian
  events are merged into one first, which is exact; the others are rounded up by "connect the
  dots", so the grid errs on the safe side only.
* RDP adds bounds on moments: loose (DP-SGD: by a tenth at an epsilon of 10, by half at 1), but
  nothing is discretised.

Both are upper bounds. The larger is what we show, with the two values beside it, so that a fault
in one of them does not make a promise. No epsilon is given without its delta, unit and relation.

Source: Mironov 2017 and Canonne, Kamath, Steinke 2020 (RDP to epsilon, Proposition 12) as in
dp_accounting; Doroshenko et al. 2022 (PLD). Deviation from dp_accounting: its PLDAccountant charges
`count` uses of randomised response as one, and its constructor rounds every loss up by as much as
a whole step of the grid; we place the same losses by connect the dots.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from dp_accounting import NeighboringRelation
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta
from numpy.typing import NDArray
from scipy.stats import norm

from fedkd.errors import FedkdError
from privacy.dp_events import to_dp_event
from privacy.events import (
    Event,
    Gaussian,
    Laplace,
    Protects,
    Pure,
    RandomisedResponse,
    SampledGaussian,
)

ORDERS = tuple(RdpAccountant().orders)
FINEST = 1e-4
"""The finest step of the grid of privacy losses, in nats."""
MOST_STEPS = 100_000
"""The grid gets coarser where the losses would span more steps."""
COARSEST = 0.1
"""The coarsest step at which PLD is still tight enough to be worth showing."""
LEAST_NOISE, MOST_NOISE = 2.0**-10, 2.0**30
"""Noise multipliers between which a calibration looks."""
CALIBRATED = 1e-4
"""How much more than the least noise a calibration may find, as a share of it."""
LEAST_DELTA = 1e-12
"""Below it the tails that PLD cuts off, up to 1e-15 a composition, are no longer negligible."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What composed events cost at `delta`."""

    protects: Protects
    delta: float
    epsilon: float
    """The larger of the two accountants' values."""
    pld: float | None
    """None where PLD cannot answer; `note` says why."""
    rdp: float
    note: str = ""

    def __str__(self) -> str:
        by = [f"PLD {self.pld:.4g}"] if self.pld is not None else []
        by.append(f"RDP {self.rdp:.4g}")
        note = f"; {self.note}" if self.note else ""
        return (
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g} for {self.protects} "
            f"({', '.join(by)}{note})"
        )


def epsilon(events: Iterable[Event], protects: Protects, delta: float) -> Spent:
    """The cost of all events together, for the unit and relation that they protect.

    Equal events are merged and results are kept, so asking again after each round is cheap.

    Args: delta: 0 is answered for events with a pure epsilon, and is infinite for the others.
    Raises: FedkdError for an event of another unit or relation: those do not add up.
    """
    merged = _merge(events, protects, delta)
    rdp = rdp_epsilon(merged, protects, delta)
    tight, note = _pld_epsilon(merged, delta)
    shown = rdp if tight is None else max(tight, rdp)
    return Spent(protects=protects, delta=delta, epsilon=shown, pld=tight, rdp=rdp, note=note)


def rdp_epsilon(events: Iterable[Event], protects: Protects, delta: float) -> float:
    """As `epsilon`, by RDP alone: a valid bound in about a millisecond, for a check each round."""
    merged = _merge(events, protects, delta)
    return min(_pure_sum(merged), _rdp_epsilon(merged, delta))


def deltas(
    events: Iterable[Event], protects: Protects, epsilons: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The delta of all events together at each epsilon: the whole privacy profile.

    By PLD, which is tight; by RDP where PLD cannot answer. Upper bounds, from 0 to 1.
    Shapes: `epsilons` [k], ascending, at least 0 -> [k].
    Raises: FedkdError for an event of another unit or relation.
    """
    merged = _merge(events, protects, delta=0)
    mu, others = _gaussian_part(merged)
    if not merged:
        return np.zeros(len(epsilons))
    if not others:
        far = norm.logcdf(-mu / 2 - epsilons / mu)
        found = norm.cdf(mu / 2 - epsilons / mu) - np.exp(epsilons + far)
    elif (whole := _composed(merged)) is not None:
        found = np.asarray(whole.get_delta_for_epsilon(epsilons), dtype=np.float64)
    else:
        found = np.array([compute_delta(ORDERS, _rdp_sum(merged), e)[0] for e in epsilons])
    return np.where(epsilons >= _pure_sum(merged), 0, np.clip(found, 0, 1))


@lru_cache(maxsize=1024)
def least_gaussian(
    budget: float, protects: Protects, delta: float, others: tuple[Event, ...] = ()
) -> Gaussian:
    """The Gaussian event of least noise that costs at most `budget` at `delta`, `others` included.

    By `rdp_epsilon`, hence by `epsilon` too, which shows the larger of two bounds and would show
    about a twelfth more than `budget` for the analytic calibration.
    Guarantee: (budget, delta)-DP for `protects`, of all these events together.
    Raises: FedkdError if the others alone cost that much, or no noise is enough.
    """

    def cost(multiplier: float) -> float:
        event = Gaussian(
            noise_multiplier=multiplier, unit=protects.unit, relation=protects.relation
        )
        return rdp_epsilon((*others, event), protects, delta)

    low, high = LEAST_NOISE, 2 * LEAST_NOISE
    while cost(high) > budget:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise FedkdError(
                "no noise keeps this within the budget",
                value=f"epsilon {budget:g} at delta {delta:g}",
                fix="raise the epsilon or the delta",
            )
    while high / low > 1 + CALIBRATED:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= budget else (middle, high)
    return Gaussian(noise_multiplier=high, unit=protects.unit, relation=protects.relation)


def _merge(events: Iterable[Event], protects: Protects, delta: float) -> tuple[Event, ...]:
    """Equal events as one with their count summed, in an order that depends on nothing else."""
    if not 0 <= delta < 1:
        raise FedkdError("delta is no probability", value=delta, allowed="0 <= delta < 1")
    counts: Counter[Event] = Counter()
    for event in events:
        if event.protects != protects:
            raise FedkdError(
                "epsilons for different units or neighbouring relations do not add up",
                value=str(event.protects),
                allowed=str(protects),
                fix="ask for each of them by itself",
            )
        counts[event.model_copy(update={"count": 1})] += event.count
    merged = [event.model_copy(update={"count": n}) for event, n in counts.items()]
    return tuple(sorted(merged, key=lambda event: event.model_dump_json()))


def _pure_sum(events: tuple[Event, ...]) -> float:
    """Basic composition at delta = 0: the sum of pure epsilons, infinite if an event has none."""
    return math.fsum(
        math.inf if isinstance(event, Gaussian | SampledGaussian) else event.pure * event.count
        for event in events
    )


@lru_cache(maxsize=4096)
def _rdp_epsilon(events: tuple[Event, ...], delta: float) -> float:
    return float(compute_epsilon(ORDERS, _rdp_sum(events), delta)[0])


def _rdp_sum(events: tuple[Event, ...]) -> NDArray[np.float64]:
    """Renyi divergence of all events together at each of `ORDERS`."""
    zero = np.zeros(len(ORDERS))
    return sum((_rdp(e.model_copy(update={"count": 1})) * e.count for e in events), start=zero)


@lru_cache(maxsize=4096)
def _rdp(event: Event) -> NDArray[np.float64]:
    """Renyi divergence of one use at each of `ORDERS`."""
    relation = (
        NeighboringRelation.REPLACE_ONE
        if event.relation == "replace" or isinstance(event, Pure)
        else NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    accountant = RdpAccountant(neighboring_relation=relation)
    with quiet():
        accountant.compose(to_dp_event(event))
    rdp: NDArray[np.float64] = accountant.rdp
    return rdp


@contextmanager
def quiet() -> Iterator[None]:
    """Without dp_accounting's remark on each order that it leaves out: any order gives a bound."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@lru_cache(maxsize=4096)
def _pld_epsilon(events: tuple[Event, ...], delta: float) -> tuple[float | None, str]:
    """By PLD; or None, and why not."""
    pure = _pure_sum(events)
    if delta == 0 or not events:
        return pure, ""
    mu, others = _gaussian_part(events)
    if not others:
        return float(get_epsilon_gaussian(1 / mu, delta)), ""
    if delta < LEAST_DELTA:
        return None, f"PLD cuts off tails, so it does not answer for delta below {LEAST_DELTA:g}"
    whole = _composed(events)
    if whole is None:
        return None, "PLD's grid is too coarse for losses this large"
    tight = min(pure, float(whole.get_epsilon_for_delta(delta)))
    return (tight, "") if math.isfinite(tight) else (None, "PLD failed numerically")


def _gaussian_part(events: tuple[Event, ...]) -> tuple[float, list[Event]]:
    """All Gaussian events as one, by its mu = 1 / multiplier, and the other events."""
    gaussians = [event for event in events if isinstance(event, Gaussian)]
    others: list[Event] = [event for event in events if not isinstance(event, Gaussian)]
    # Gaussian losses add up to a Gaussian loss: mu^2 = sum of count / multiplier^2.
    mu = math.sqrt(math.fsum(e.count / e.noise_multiplier**2 for e in gaussians))
    return mu, others


@lru_cache(maxsize=8)
def _composed(events: tuple[Event, ...]) -> Any:
    """The privacy loss distribution of all events; None where the grid would be too coarse."""
    mu, others = _gaussian_part(events)
    step = _step(events)
    if step > COARSEST:
        return None
    parts = [_pld(e.model_copy(update={"count": 1}), step).self_compose(e.count) for e in others]
    if mu > 0:
        parts.append(pld.from_gaussian_mechanism(1 / mu, value_discretization_interval=step))
    return reduce(lambda one, other: one.compose(other), parts)


def _step(events: tuple[Event, ...]) -> float:
    """A step of the grid: fine enough, few enough steps, and the first pure loss is on it."""
    widest = min(_pure_sum(events), _rdp_epsilon(events, 1e-15))
    # A power of two times the finest, so that counts that differ little share their grid.
    step = float(
        FINEST * 2.0 ** max(0, math.ceil(math.log2(max(widest, FINEST) / MOST_STEPS / FINEST)))
    )
    for event in events:
        if not isinstance(event, Gaussian | SampledGaussian) and event.pure > step:
            return event.pure / math.ceil(event.pure / step)
    return step


@lru_cache(maxsize=64)
def _pld(event: Event, step: float) -> Any:
    """The privacy loss distribution of one use on a grid."""
    if isinstance(event, Pure | RandomisedResponse):
        return pld.PrivacyLossDistribution(_response_pmf(event.epsilon, event.n_categories, step))
    if isinstance(event, Laplace):
        return pld.from_laplace_mechanism(
            event.noise_multiplier, value_discretization_interval=step
        )
    assert isinstance(event, SampledGaussian)
    return pld.from_gaussian_mechanism(
        event.noise_multiplier,
        sampling_prob=event.rate,
        value_discretization_interval=step,
    )


def _response_pmf(loss: float, k: int, step: float) -> Any:
    """Randomised response on a grid, symmetric: losses are -loss, 0 and loss."""
    ends = [f(x / step) for x in (-loss, loss) for f in (math.floor, math.ceil)]
    points = sorted({*ends, 0})
    return pld_pmf.create_pmf_pessimistic_connect_dots(
        step, points, [_response_delta(point * step, loss, k) for point in points]
    )


def _response_delta(eps: float, loss: float, k: int) -> float:
    """Hockey-stick divergence at `eps` of two truths under k-way randomised response."""
    if eps >= loss:
        return 0.0
    lie = 1 / (math.exp(loss) + k - 1)
    truth = math.exp(loss) * lie
    other = -math.expm1(eps) * lie * (k - 2) if eps < 0 else 0.0
    swapped = max(0.0, lie - math.exp(eps) * truth)
    return min(1.0, truth - math.exp(eps) * lie + other + swapped)

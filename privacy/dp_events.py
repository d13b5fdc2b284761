"""The ledger's events in dp_accounting's words, and back."""

from __future__ import annotations

import math
from typing import Any

import dp_accounting
from pydantic import TypeAdapter, ValidationError

from fedkd.errors import FedkdError
from privacy.events import (
    EVENTS,
    Event,
    Gaussian,
    Laplace,
    Protects,
    Pure,
    RandomisedResponse,
    SampledGaussian,
)

_ROW: TypeAdapter[Event] = TypeAdapter(Event)


def to_dp_event(event: Event) -> dp_accounting.DpEvent:
    """All uses of an event, for dp_accounting, which knows neither the unit nor the relation."""
    one: dp_accounting.DpEvent
    match event:
        case Gaussian():
            one = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        case Laplace():
            one = dp_accounting.LaplaceDpEvent(event.noise_multiplier)
        case Pure() | RandomisedResponse():
            # Its parameter is the probability to answer at random, the truth included.
            k = event.n_categories
            at_random = k / (math.exp(event.epsilon) + k - 1)
            one = dp_accounting.RandomizedResponseDpEvent(at_random, k)
        case SampledGaussian():
            gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
            one = dp_accounting.PoissonSampledDpEvent(event.rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(one, event.count)


def from_dp_event(
    event: dp_accounting.DpEvent, protects: Protects, count: int = 1
) -> tuple[Event, ...]:
    """The rows for `count` uses of an event of dp_accounting.

    Raises: FedkdError for an event that the ledger has no row for, or none with these values.
    """
    unit, relation = protects
    match event:
        case dp_accounting.NoOpDpEvent():
            return ()
        case dp_accounting.SelfComposedDpEvent():
            return from_dp_event(event.event, protects, count * event.count)
        case dp_accounting.ComposedDpEvent():
            return tuple(row for e in event.events for row in from_dp_event(e, protects, count))
    row: dict[str, Any]
    match event:
        case dp_accounting.GaussianDpEvent():
            row = {"name": "gaussian", "noise_multiplier": event.noise_multiplier}
        case dp_accounting.LaplaceDpEvent():
            row = {"name": "laplace", "noise_multiplier": event.noise_multiplier}
        case dp_accounting.RandomizedResponseDpEvent(noise_parameter=p, num_buckets=k):
            loss = math.log1p(k * (1 - p) / p)
            row = {"name": "randomised-response", "epsilon": loss, "n_categories": k}
        case dp_accounting.PoissonSampledDpEvent(event=dp_accounting.GaussianDpEvent() as inner):
            row = {
                "name": "sampled-gaussian",
                "rate": event.sampling_probability,
                "noise_multiplier": inner.noise_multiplier,
            }
        case _:
            raise FedkdError(
                "the ledger has no row for this privacy event",
                value=event,
                allowed=", ".join(EVENTS),
            )
    try:
        return (_ROW.validate_python({**row, "unit": unit, "relation": relation, "count": count}),)
    except ValidationError as error:
        raise FedkdError(
            f"there is no proof of this for {protects}: {error.errors()[0]['msg']}", value=event
        ) from None

"""Which model for a client's budget? The zoo's, by cost and by likeness to a teacher's."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from fedkd import training
from fedkd.config import Scenario
from fedkd.errors import FedkdError
from fedkd.models.likeness import Cost, cost, mean_likeness
from fedkd.models.zoo import IMAGE_MODELS, TEXT_MODELS, Classifier, build
from fedkd.rng import stream, torch_stream

RECORDS = {"images": 256, "text": 16}
"""How many the models are compared on; a text has many positions."""


class Suggestion(NamedTuple):
    """One model, with its cost and `fedkd.models.likeness` to the teacher."""

    name: str
    weights: int
    flops: int
    likeness: float | None
    """None where the budget does not bear the model."""
    fits: bool
    """Whether the budget bears it."""


def suggest(
    scenario: Scenario, teacher: str = "", weights: int | None = None, flops: int | None = None
) -> tuple[str, list[Suggestion]]:
    """The teacher, and the models that take the data: what fits, likest first, then the others.

    Args: teacher: of the zoo or a user's own; "": the largest of `model.names`. weights, flops: the
        most that a client can hold, and spend on one record's prediction.
    Raises: FedkdError for a teacher that cannot take the data.
    """
    seed = scenario.seeds[0]
    train = scenario.world(seed).train
    kind = "text" if train.is_text else "images"
    some = stream(seed, "data", purpose="suggest").permutation(len(train))[: RECORDS[kind]]
    x = training.inputs(train.rows(np.sort(some))[0])
    channels, height, width = train.x.shape[1:]

    def new(name: str, draw: int) -> Classifier:
        draws = torch_stream(seed, "server", draw, purpose="suggest")
        return build(name, (channels, height, width), train.n_classes, draws, train.x.dtype)

    def cost_of(name: str) -> Cost:
        return cost(new(name, 0), x[:1])

    teacher = teacher or max(scenario.model.names, key=lambda name: cost_of(name).weights)
    zoo = TEXT_MODELS if train.is_text else IMAGE_MODELS
    names = dict.fromkeys([*zoo, *scenario.model.names])
    found = []
    new(teacher, 0)  # one that cannot take the data is refused before anything is measured
    for name in names:
        try:
            price = cost_of(name)
        except FedkdError:
            if name in scenario.model.names:
                raise
            continue
        fits = price.weights <= (weights or price.weights) and price.flops <= (flops or price.flops)
        alike = mean_likeness(partial(new, teacher), partial(new, name), x) if fits else None
        found.append(Suggestion(name, *price, alike, fits))
    return teacher, sorted(found, key=lambda one: (not one.fits, -(one.likeness or 0)))

"""The quantile attack: is a view surer of a target than of nearly all public samples like it?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.ensemble import HistGradientBoostingRegressor

from fedkd.errors import FedkdError
from privacy.audit.signals import Doubles

LEVEL = 0.95


def quantile(
    target: Doubles,
    features: ArrayLike,
    population: Doubles,
    population_features: ArrayLike,
    *,
    level: float = LEVEL,
) -> Doubles:
    """phi less the `level` quantile that phi would have, given the features, for a non-member.

    It needs one view and public samples, no reference: the attack of whoever has the proxy set
    only. The quantile is regressed on public features of the public samples: pixels, the label, a
    public model's phi. A score of 0 is a false-positive rate of about 1 - level, feature by feature
    and not only on average; so many public samples are needed that some lie above it.
    Shapes: target [targets]; features [targets, d]; population [z], the view's phi on the public
    samples, and population_features [z, d]; samples without a signal are left out.
    Raises: FedkdError where no public sample has a signal, or level is not between 0 and 1.
    Empirical: one attack. The same input gives the same scores.
    Source: Bertran et al. 2023, arXiv:2307.03694. Deviations: boosted trees on the pinball loss
    for their neural networks, and one level, whose score is then swept, for a model a level.
    """
    if not 0 < level < 1:
        raise FedkdError("level is not a quantile", value=level, allowed="between 0 and 1")
    known = ~np.isnan(population)
    if not known.any():
        raise FedkdError("the view answered no public sample")
    trees = HistGradientBoostingRegressor(
        loss="quantile", quantile=level, early_stopping=False, random_state=0
    )
    trees.fit(np.asarray(population_features)[known], population[known])
    expected: Doubles = trees.predict(np.asarray(features))
    return target - expected

"""A Bayesian LiRA for few references: targets tell each other how much signals spread.

After the abstract of BaVarIA (arXiv:2603.11799), whose body was not available: that LiRA and RMIA
are log-likelihood ratios of one family, and that a Bayesian variance, hence Student's t, serves
best where there are few shadow models. The formulas are ours, put together from textbook parts.

A target's signals are normal. Nothing is known of its mean beforehand, and its variance s2 is one
of those of all targets: s2 ~ dof s0^2 / chi^2(dof). That is a normal-inverse-gamma prior which is
flat in the mean. A mean drawn around that of all targets was tried and did worse: such a prior ties
how far a target may lie from the others to its own noise, and easy targets are not noisy ones. What
is predicted for one more view is Student's t. (dof, s0^2) are fitted to the mean and variance of
ln of the sample variances (Smyth 2004, "Linear models and empirical Bayes methods", section 6.2).
Variances that are all equal give dof without end: this is then Co-op LiRA with pooled variance.
Wildly unequal ones give dof near 0: then it is the one with Student's t.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from privacy.audit.lira import LEAST_SPREAD, known_moments, log_survival_t
from privacy.audit.signals import Doubles, Flags, Moments, without

LEAST_DOF, MOST_DOF = 1e-3, 1e4
"""Of the prior. With 10,000 degrees of freedom, t is as good as normal."""


class Prior(NamedTuple):
    """Over the variances of targets: dof * variance / chi^2(dof)."""

    dof: float
    variance: float


class Prediction(NamedTuple):
    """Student's t [targets] of what one more view would say; NaN where no reference answered."""

    dof: Doubles
    location: Doubles
    scale: Doubles


def fit(found: Moments) -> Prior:
    """The prior that targets suggest, of which one at least has two references."""
    dofs = (found.n - 1)[found.n > 1]
    variances = np.maximum(found.squares[found.n > 1] / dofs, LEAST_SPREAD**2)
    logs = np.log(variances) - digamma(dofs / 2) + np.log(dofs / 2)
    by_chance = polygamma(1, dofs / 2).mean()
    dof = _dof(float(logs.var(ddof=1) - by_chance) if len(logs) > 1 else 0.0)
    return Prior(dof, float(np.exp(logs.mean() + digamma(dof / 2) - np.log(dof / 2))))


def predict(prior: Prior, found: Moments) -> Prediction:
    """What one more view would say at each target."""
    n = np.where(found.n > 0, found.n, np.nan)
    dof = prior.dof + n - 1
    variance = (prior.dof * prior.variance + found.squares) / dof
    return Prediction(dof, found.mean, np.sqrt(variance * (1 + 1 / n)))


def bavaria(target: Doubles, references: Doubles, members: Flags | None = None) -> Doubles:
    """-ln survival under OUT; with IN references too, ln t(phi; IN) - ln t(phi; OUT). Nats.

    Shapes: target [targets]; references [views, targets]; members bool [views, targets], which
    reference learnt which target, or None if none did. NaN where a target has no reference of a
    kind.
    Raises: FedkdError where no target has two references of a kind.
    Empirical: one attack.
    """
    if members is None:
        dof, location, scale = _predicted(references)
        return -log_survival_t((target - location) / scale, dof)
    inside, outside = without(references, ~members), without(references, members)
    ratio: Doubles = _log_density(target, inside) - _log_density(target, outside)
    return ratio


def _predicted(signals: Doubles) -> Prediction:
    found = known_moments(signals)
    return predict(fit(found), found)


def _log_density(target: Doubles, signals: Doubles) -> Doubles:
    dof, location, scale = _predicted(signals)
    return np.asarray(stats.t.logpdf(target, dof, location, scale))


def _dof(excess: float) -> float:
    """The dof whose trigamma(dof / 2) is how much more ln variances vary than by chance."""
    low, high = LEAST_DOF / 2, MOST_DOF / 2
    if excess <= polygamma(1, high):
        return MOST_DOF
    if excess >= polygamma(1, low):
        return LEAST_DOF
    return 2 * float(brentq(lambda half: polygamma(1, half) - excess, low, high, rtol=1e-10))

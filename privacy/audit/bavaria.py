"""A Bayesian LiRA for few references: targets tell each other how much signals spread.

After the abstract of BaVarIA (arXiv:2603.11799), whose body was not available: that LiRA and RMIA
are log-likelihood ratios of one family, and that a Bayesian variance, hence Student's t, serves
best where there are few shadow models. The formulas are ours, put together from textbook parts.

A target's signals are normal with its own mean mu and variance s2. Over targets,
s2 ~ dof s0^2 / chi^2(dof) and mu | s2 ~ N(m0, s2 / weight): a normal-inverse-gamma prior. What is
predicted for one more view is Student's t. The prior is fitted from the signals themselves:
(dof, s0^2) to the mean and variance of ln of the sample variances (Smyth 2004, "Linear models and
empirical Bayes methods", section 6.2), m0 and weight to those of the sample means. Variances that
are all equal give dof without end: this is then Co-op LiRA with pooled variance. Wildly unequal
ones give dof near 0: then it is nearly the one with Student's t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from privacy.audit.lira import LEAST_SPREAD, known_moments, log_survival_t
from privacy.audit.signals import Doubles, Flags, Moments, without

LEAST_DOF, MOST_DOF = 1e-3, 1e4
"""Of the prior. With 10,000 degrees of freedom, t is as good as normal."""
MOST_WEIGHT = 1e6
"""Of the prior, in references: then all targets share one mean."""


class Predicted(NamedTuple):
    """Student's t of each target [targets]."""

    dof: Doubles
    location: Doubles
    scale: Doubles


@dataclass(frozen=True)
class Prior:
    """Over the mean and variance of a target's signals, fitted to all targets."""

    dof: float
    variance: float
    mean: float
    weight: float
    """How many references the prior's mean counts for."""

    def predict(self, found: Moments) -> Predicted:
        """What one more view would say; NaN where no reference answered."""
        n, total = found.n, found.n + self.weight
        dof = self.dof + n
        location: Doubles = (self.weight * self.mean + n * found.mean) / total
        apart = self.weight * n / total * np.square(found.mean - self.mean)
        scale2 = (self.dof * self.variance + found.squares + apart) / dof * (1 + 1 / total)
        return Predicted(dof, location, np.maximum(np.sqrt(scale2), LEAST_SPREAD))


def fit(found: Moments) -> Prior:
    """The prior that a set of targets suggests; two references are needed on some of them."""
    dofs = (found.n - 1)[found.n > 1]
    variances = np.maximum(found.squares[found.n > 1] / dofs, LEAST_SPREAD**2)
    logs = np.log(variances) - digamma(dofs / 2) + np.log(dofs / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, dofs / 2).mean()) if len(logs) > 1 else 0.0
    dof = _dof(excess)
    variance = float(np.exp(logs.mean() + digamma(dof / 2) - np.log(dof / 2)))
    there = found.n > 0
    means, pooled = found.mean[there], found.squares.sum() / dofs.sum()
    between = means.var(ddof=1) - (pooled / found.n[there]).mean() if len(means) > 1 else 0.0
    weight = pooled / max(between, pooled / MOST_WEIGHT, LEAST_SPREAD**2)
    return Prior(dof, variance, float(means.mean()), float(weight))


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


def _predicted(signals: Doubles) -> Predicted:
    found = known_moments(signals)
    return fit(found).predict(found)


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

"""RMIA: does a view favour a target over public samples more than references do?"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit, logsumexp

from fedkd.errors import FedkdError
from privacy.audit.signals import Doubles, averaged

OFFLINE_A = 0.3
"""Privacy Meter's default."""


def rmia(
    target: Doubles,
    references: Doubles,
    population: Doubles,
    population_references: Doubles,
    *,
    a: float = OFFLINE_A,
    gamma: float = 1.0,
) -> Doubles:
    """The share of public samples z with ratio(x) / ratio(z) > gamma: from 0 to 1 [targets].

    ratio(x) = p(x) / ((1 + a)/2 mean p_OUT(x) + (1 - a)/2): what is below the line stands for the
    mean of views that learnt x and views that did not, guessed from the latter alone; a = 1 says
    that learning x makes no difference. One reference is enough. p = expit(phi), in logarithms, so
    views that are nearly sure still differ.
    Shapes: target [targets]; references [views, targets], none of which learnt its target
    (`signals.without`); population [z] and population_references [views, z]: the same views on the
    public samples, such as the proxy set. All are phi. Public samples without both are left out.
    Empirical: one attack. It tells no more than z + 1 scores apart, so a false-positive rate below
    1 / z has no meaning.
    Raises: FedkdError where a is not in [0, 1], gamma is not positive, or no z is left.
    Source: Zarifzadeh, Liu, Shokri 2024, arXiv:2312.03262, with the code of Privacy Meter.
    Deviation: the mean is over all OUT references of a target; there, over the largest of them.
    """
    if not (0 <= a <= 1 and gamma > 0):
        raise FedkdError(
            "RMIA needs other settings",
            value=f"a={a}, gamma={gamma}",
            allowed="0 <= a <= 1, gamma > 0",
        )
    of_z = _log_ratio(population, population_references, a)
    of_z = np.sort(of_z[~np.isnan(of_z)])
    if not len(of_z):
        raise FedkdError("no public sample was answered by the view and by a reference")
    of_x = _log_ratio(target, references, a)
    below = np.searchsorted(of_z, of_x - np.log(gamma), side="left") / len(of_z)
    return np.where(np.isnan(of_x), np.nan, below)


def _log_ratio(view: Doubles, references: Doubles, a: float) -> Doubles:
    ratio: Doubles = log_expit(view) - _log_reference(references, a)
    return ratio


def _log_reference(references: Doubles, a: float) -> Doubles:
    """ln((1 + a)/2 mean p + (1 - a)/2), from the mean of 1 - p where that is the small one."""
    wrong = averaged(expit(-references))
    # ln 0 is meant, where no reference has answered and where a is 1.
    with np.errstate(divide="ignore", invalid="ignore"):
        known = ~np.isnan(references)
        logs = logsumexp(np.where(known, log_expit(references), -np.inf), axis=0)
        mean = logs - np.log(known.sum(axis=0))
        of_small = np.logaddexp(np.log((1 + a) / 2) + mean, np.log((1 - a) / 2))
        of_large = np.log1p(-(1 + a) / 2 * wrong)
    return np.where(np.isnan(wrong), np.nan, np.where(wrong < 0.5, of_large, of_small))

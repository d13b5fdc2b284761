"""LiRA: is a view surer of a target than views that never learnt it? And Co-op LiRA, from peers.

Empirical: what one attack found; another may find more. Scores are float64 [targets], higher for a
member, NaN without evidence. None is a probability: a normal CDF in float32 is 1 from 5.5 standard
deviations on, which makes ties where the false-positive rate is low; z and -ln(survival) do not.

Source: Carlini et al. 2022, arXiv:2112.03570, and the code with it (TensorFlow Privacy,
research/mi_lira_2021/plot.py). Deviations from that code: offline is one-sided (there, a target
that is much *less* sure than the references scores as a member); the fixed standard deviation of
OUT signals comes from OUT signals (there, from IN signals) and is that within targets (there, it
also holds how targets differ); variances are unbiased; each target uses all of its references.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import stats
from scipy.special import betaln, hyp2f1, log_ndtr

from fedkd.errors import FedkdError
from privacy.audit.signals import Doubles, Flags, Moments, moments, without

LEAST_SPREAD = 1e-6
"""Nats. Signals that differ by less differ by how float32 logits were rounded."""

LEAST_REFERENCES = 2
"""A spread needs two references on some target at least."""


def coop_lira(
    target: Doubles,
    references: Doubles,
    *,
    spread: Literal["pooled", "per-target", "student-t"] = "pooled",
) -> Doubles:
    """How far the view stands above its peers at each target; nothing is trained.

    `pooled`: z with one variance for all targets, the choice for few peers. `per-target`: z with
    the target's own, as published. `student-t`: -ln of the survival function of Student's t with
    n - 1 degrees of freedom, n the peers that answered; targets that all peers answered keep their
    order under `per-target`, the others are trusted less.
    Shapes: target [targets]; references [views, targets]: the same signal of the other clients.
    NaN where no peer answered, or fewer than two unless `pooled`.
    Raises: FedkdError where no target has two references.
    Source: Shi, Ouyang, Wang 2025, arXiv:2502.08001; published: normal CDF, variance by target.
    Deviations: the score, as above; z is of a *new* view, so it is divided by sqrt(1 + 1/n) too.
    """
    of_out = known_moments(references)
    sd = _pooled(of_out) if spread == "pooled" else _own(of_out)
    z: Doubles = (target - of_out.mean) / (sd * np.sqrt(1 + 1 / np.maximum(of_out.n, 1)))
    return -log_survival_t(z, np.maximum(of_out.n - 1, 1)) if spread == "student-t" else z


def lira_offline(
    target: Doubles, references: Doubles, members: Flags | None = None, *, fixed: bool = False
) -> Doubles:
    """-ln of the chance that a view which never learnt the target is as sure of it, nats.

    Normal about the median of the OUT references; `fixed` takes one variance for all targets.
    Shapes: target [targets]; references [views, targets]; members bool [views, targets], which
    reference learnt which target, or None if none did.
    Raises: FedkdError where no target has two OUT references.
    """
    out = references if members is None else without(references, members)
    centre, sd = _centre(out), _sd(out, fixed)
    surprise: Doubles = -log_ndtr((centre - target) / sd)
    return surprise


def lira_online(
    target: Doubles, references: Doubles, members: Flags, *, fixed: bool = False
) -> Doubles:
    """ln N(phi; IN) - ln N(phi; OUT): the log-likelihood ratio of member to non-member, nats.

    Each normal about the median of its references; `fixed` takes one variance for all targets,
    one of IN and one of OUT. NaN where a target has no IN or no OUT references (two, unless fixed).
    Shapes: as for `lira_offline`.
    Raises: FedkdError where no target has two IN, or none has two OUT references.
    """
    ratio = np.zeros_like(target)
    for sign, side in ((1, without(references, ~members)), (-1, without(references, members))):
        ratio += sign * stats.norm.logpdf(target, _centre(side), _sd(side, fixed))
    return ratio


def log_survival_t(t: Doubles, dof: Doubles | np.int64) -> Doubles:
    """ln P[T > t] of Student's t, also where P underflows.

    Where t > sqrt(dof) or 20, from P = I_x(dof/2, 1/2) / 2 with x = dof / (dof + t^2), and
    I_x(a, b) = x^a (1-x)^b F(a+b, 1; a+1; x) / (a B(a, b)); see DLMF 8.17.8.
    """
    t, dof = np.broadcast_arrays(np.asarray(t, float), np.asarray(dof, float))
    far = t > np.minimum(np.sqrt(dof), 20)
    found = stats.t.logsf(np.where(far, 0.0, t), dof)
    a, b = dof[far] / 2, 0.5
    x = 1 / (1 + t[far] ** 2 / dof[far])
    series = np.log(hyp2f1(a + b, 1, a + 1, x)) - np.log(a) - betaln(a, b)
    found[far] = a * np.log(x) + b * np.log1p(-x) + series - np.log(2)
    return np.asarray(found, dtype=np.float64)


def known_moments(signals: Doubles) -> Moments:
    """`moments` of references [views, targets], whose spread can be estimated.

    Raises: FedkdError where no target has two references.
    """
    found = moments(signals)
    if not (found.n >= LEAST_REFERENCES).any():
        raise FedkdError(
            "no target has two references, so their spread is unknown",
            value=f"{len(signals)} references",
            fix="more references, or the attacks rmia or threshold",
        )
    return found


def _pooled(found: Moments) -> Doubles:
    dof = np.maximum(found.n - 1, 0).sum()
    return np.full(found.mean.shape, max(np.sqrt(found.squares.sum() / dof), LEAST_SPREAD))


def _own(found: Moments) -> Doubles:
    dof = np.where(found.n >= LEAST_REFERENCES, found.n - 1, np.nan)
    return np.maximum(np.sqrt(found.squares / dof), LEAST_SPREAD)


def _sd(signals: Doubles, fixed: bool) -> Doubles:
    return (_pooled if fixed else _own)(known_moments(signals))


def _centre(signals: Doubles) -> Doubles:
    """Medians [targets]; NaN where no view answered, of which `np.nanmedian` would warn."""
    there = ~np.isnan(signals).all(axis=0)
    centre = np.full(signals.shape[1], np.nan)
    centre[there] = np.nanmedian(signals[:, there], axis=0)
    return centre

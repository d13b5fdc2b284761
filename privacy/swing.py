"""Swing: the more private a position is, the hotter its soft label, and noise on top.

After the abstract of Swing Distillation (Li et al., arXiv 2212.08349); the formulas are ours. The
abstract says that each token has its own temperature by how likely its position is private, and
that noise is added to the soft targets. It claims no differential privacy, and its body was not
available: the temperature curve, the clipping, the noise, the weights and the bounds below are not
from the paper. A position is one sample: a token position, or an image.

What may be claimed depends on where the degrees come from. If everybody knows them (computed from
public data and public models), so are the temperatures, and each position counts with its own. If
they come from private data, a degree that moves is a leak of its own: then readers are told no
temperature, and every position is charged as if at the lowest one. That covers any degree,
since logits divided by more stay in the same box. Without noise nothing is claimed: a heuristic,
judged by audits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import dp_accounting
import torch
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.mechanisms import Cost, Gaussian, Noise
from privacy.sensitivity import clip_logits, l1_sensitivity, l2_sensitivity, positive, project


class Swung(NamedTuple):
    """What leaves, and what its reader learns from it with."""

    values: Tensor  # float32 [m, classes], rows on the simplex
    temperatures: Tensor  # float64 [m], the student's; the lowest one if degrees are private
    weights: Tensor  # float64 [m], 1/T^2 where noised: Hinton's T^2 would amplify the noise


@dataclass(frozen=True, kw_only=True)
class Swing:
    """T = t_min (t_max/t_min)^(d^sharpness) of degrees d in [0, 1]; logits clipped at +-bound.

    Guarantee: replace one client; all rows of `values`, with `temperatures` and `weights`. Event:
    one Gaussian mechanism, or a composition of Laplace mechanisms; NonPrivateDpEvent without noise,
    or with noise on some positions only.
    """

    degrees: Literal["public", "private"]
    """Can everybody compute the degrees? No claim is true if this is wrong."""
    noise: Noise | None
    bound: float = 5.0
    t_min: float = 1.0
    t_max: float = 20.0
    sharpness: float = 1.0
    noise_from: float = 0.0
    """The least degree that is noised. Above 0 some positions are not, so nothing is claimed."""
    pooled: tuple[int, ...] = ()
    """Classes that answers do not tell apart, at any position: the alphabet of secrets. A model
    that remembers a secret also hints at its symbols where the text has none. Ours."""

    def __post_init__(self) -> None:
        positive(bound=self.bound, t_min=self.t_min, sharpness=self.sharpness)
        if not self.t_min <= self.t_max < math.inf:
            raise FedkdError(
                "the highest temperature is below the lowest",
                value=self.t_max,
                allowed=f"{self.t_min} or more, and finite",
            )
        if self.noise is not None and math.isinf(self.bound):
            raise FedkdError(
                "noised soft labels gain nothing from a temperature unless logits are clipped",
                value=self.bound,
                allowed="a finite bound",
                fix="set bound, 5 for example",
            )

    def temperatures(self, degrees: Tensor) -> Tensor:
        """Temperatures float64 [m] of degrees [m] in [0, 1]."""
        d = degrees.double()
        if d.ndim != 1 or not bool(((d >= 0) & (d <= 1)).all()):
            raise FedkdError(
                "degrees of privacy must be one number a position", allowed="[m], from 0 to 1"
            )
        return self.t_min * (self.t_max / self.t_min) ** (d**self.sharpness)

    def soften(self, logits: Tensor, degrees: Tensor) -> Tensor:
        """Soft labels float64 [m, classes] before the noise: softmax(clipped / T).

        Pooled classes share what they have together equally, which moves no row further apart.
        """
        clipped = clip_logits(logits, self.bound)
        q = torch.softmax(clipped / self.temperatures(degrees)[:, None], dim=1)
        if self.pooled:
            alike = list(self.pooled)
            q[:, alike] = q[:, alike].mean(dim=1, keepdim=True)
        return q

    def release(self, logits: Tensor, degrees: Tensor, generator: torch.Generator) -> Swung:
        """What leaves, of logits [m, classes] at positions with degrees [m]."""
        q = self.soften(logits, degrees)
        told = self.told(degrees)
        if self.noise is not None:
            noised = (degrees >= self.noise_from)[:, None].to(q.device)
            q = torch.where(noised, project(self.noise.add(q, generator)), q)
        return Swung(q.float(), told, self.weights(degrees))

    def weights(self, degrees: Tensor) -> Tensor:
        """The weights float64 [m] of positions with degrees [m]; of private ones, all alike."""
        told = self.told(degrees)
        if self.noise is None:
            return torch.ones_like(told)
        known = torch.ones_like(degrees) if self.degrees == "private" else degrees
        return torch.where(known >= self.noise_from, told**-2, 1.0)

    def told(self, degrees: Tensor) -> Tensor:
        """The temperatures float64 [m] that readers may know, and that the cost is taken at."""
        t = self.temperatures(degrees)
        return t if self.degrees == "public" else torch.full_like(t, self.t_min)

    def cost(self, degrees: Tensor, n_classes: int) -> Cost:
        """The charge for one release at positions with degrees [m].

        Of private degrees only their number is used, so the charge itself tells nothing.
        """
        told = self.told(degrees)
        if self.noise is None or self.noise_from > 0:
            event, pure, largest = dp_accounting.NonPrivateDpEvent(), None, None
        else:
            if isinstance(self.noise, Gaussian):
                sizes = l2_sensitivity(self.bound, told, n_classes)
            else:
                sizes = l1_sensitivity(self.bound, told)
            event, pure = self.noise.charge(sizes)
            largest = float(sizes.max()) if len(sizes) else None
        return Cost(
            neighbours="replace one client", event=event, pure_epsilon=pure, sensitivity=largest
        )


def gaussian_mu(bound: float, temperatures: Tensor, sigmas: Tensor, n_classes: int) -> float:
    """mu of positions at temperatures [m] with Gaussian noise of sigmas [m] or []: Gaussian DP.

    mu^2 = sum of (L2 sensitivity / sigma)^2, at most the sum of 2 tanh(B/T)^2 / sigma^2. Epsilon is
    `mechanisms.gaussian_epsilon(mu, delta)`. Holds for public temperatures and sigmas only.
    """
    return float((l2_sensitivity(bound, temperatures, n_classes) / sigmas).norm())


def rows(swung: Swung) -> Tensor:
    """What a student learns from, float32 [m, classes + 2]: values, temperature, weight."""
    extra = torch.stack([swung.temperatures, swung.weights], dim=1)
    return torch.cat([swung.values, extra.to(swung.values)], dim=1)


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """The student's loss [m] in nats: w T^2 KL(values || softmax(logits / T)).

    Shapes: logits [m, classes]; target [m, classes + 2] as `rows` gives it.
    """
    values, t, weight = target[:, :-2], target[:, -2], target[:, -1]
    student = torch.log_softmax(logits / t[:, None], dim=1)
    kl = (torch.xlogy(values, values) - values * student).sum(1)
    return weight * t**2 * kl

"""Bounding the sensitivity: how far can one client's whole data move one row that it releases?

This half of a mechanism is deterministic. It turns logits [m, classes] into rows of which any two
differ by at most a known amount in L1 and L2, whatever data and model the client has. The other
half, the noise, is in `privacy.mechanisms`.

Source: `a = 2 B / T` below is the spread of logits clipped at B and divided by T. The bounds are
derived here, not in a paper; each function holds its proof, the tests attack it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedkd.errors import FedkdError

Neighbours = Literal["replace one client", "add or remove one client"]
"""What may differ between two runs that must look alike: the whole data of one client, or its
presence, an absent client being a row of zeros in a sum that others add noise to."""


def positive(**values: float) -> None:
    """Raise a FedkdError for the first of the named values that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise FedkdError(f"{name} must be positive", value=value, allowed="above 0")


def finite(values: Tensor) -> Tensor:
    """The values [m, classes] in float64; a FedkdError if one is NaN or infinite."""
    if values.ndim != 2:
        raise FedkdError(
            "a release needs rows", value=tuple(values.shape), allowed="shape [m, classes]"
        )
    if not bool(values.isfinite().all()):
        raise FedkdError(
            "a client's logits hold NaN or infinity", fix="lower its learning rate; nothing left"
        )
    return values.double()


def clip_logits(logits: Tensor, bound: float) -> Tensor:
    """Logits [m, classes] moved so that the midrange of a row is 0, then clipped at +-bound.

    The move does not change a softmax, and clips as little of the spread as can be.
    """
    z = finite(logits)
    middle = (z.amax(1, keepdim=True) + z.amin(1, keepdim=True)) / 2
    return (z - middle).clamp(-bound, bound)


def clip_rows(values: Tensor, norm: float, order: int = 2) -> Tensor:
    """Each row of [m, classes] scaled down to `norm` in L1 (`order` 1) or L2 where it is longer."""
    v = finite(values)
    lengths: Tensor = torch.linalg.vector_norm(v, ord=order, dim=1, keepdim=True)
    return v * (norm / lengths.clamp(min=norm))


def l1_sensitivity(bound: float, temperature: Tensor) -> Tensor:
    """2 tanh(B/T): the most that softmax(clipped/T) moves in L1, twice the total variation.

    Shapes: temperature [m] or []; so is the result. Tight for an even number of classes.
    Proof: exchanging one logit vector for another multiplies the odds of any set of classes by at
    most exp(2a); a probability whose log-odds move by 2a moves by at most tanh(a/2), from -a to a.
    """
    return 2 * torch.tanh(bound / temperature)


def l2_sensitivity(bound: float, temperature: Tensor, n_classes: int) -> Tensor:
    """The most that softmax(clipped/T) moves in L2: the smaller of two bounds.

    * sqrt(2 tanh(B/T) (high - low)), the root of what moves in L1 times what one class moves, from
      low = 1 / (1 + (C-1) exp(a)) to high = 1 / (1 + (C-1) exp(-a)). Tight for two classes; never
      above the simpler sqrt(2) tanh(B/T).
    * a sqrt(C) high: the softmax has the Jacobian diag(p) - pp', whose largest eigenvalue is at
      most the largest probability, and logits move by at most a sqrt(C). Smaller where T is high
      and classes are many (B = 5, T = 100, C = 10: 0.035; sqrt(2) tanh(B/T) is 0.071).
    """
    a = 2 * bound / temperature
    high = 1 / (1 + (n_classes - 1) * torch.exp(-a))
    low = 1 / (1 + (n_classes - 1) * torch.exp(a))
    by_length = torch.sqrt(2 * torch.tanh(a / 2) * (high - low))
    by_slope = a * math.sqrt(n_classes) * high
    return torch.minimum(by_length, by_slope)


def log_ratio(bound: float, temperature: Tensor, n_classes: int) -> Tensor:
    """The largest |ln(q_y / q'_y)| of two softmax(clipped/T): epsilon of a label drawn from one.

    a + ln[(1 + (C-1) e^a) / (e^a + C-1)], at most 2a = 4B/T; attained by y at +-B and all other
    classes at the other end, since each of the three terms of the ratio is then at its extreme.
    """
    a = 2 * bound / temperature
    others = n_classes - 1
    return a + torch.log(others + torch.exp(-a)) - torch.log1p(others * torch.exp(-a))


@dataclass(frozen=True)
class SoftLabels:
    """softmax(clip(z, B) / T), rows on the simplex. B = infinity: no clipping, T lowers nothing."""

    bound: float = math.inf
    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive(bound=self.bound, temperature=self.temperature)

    def apply(self, logits: Tensor) -> Tensor:
        """Soft labels float64 [m, classes] of logits [m, classes]."""
        return torch.softmax(clip_logits(logits, self.bound) / self.temperature, dim=1)

    def tidy(self, noised: Tensor) -> Tensor:
        """The nearest distributions to noised soft labels: post-processing, which costs nothing."""
        return project(noised)

    def sensitivity(self, order: Literal[1, 2], neighbours: Neighbours, n_classes: int) -> float:
        """The most that one row moves in L1 or L2; a row that may be absent is 1 long at most."""
        if neighbours == "add or remove one client":
            return 1.0
        at = torch.tensor(self.temperature, dtype=torch.float64)
        if order == 1:
            return float(l1_sensitivity(self.bound, at))
        return float(l2_sensitivity(self.bound, at, n_classes))


@dataclass(frozen=True)
class ClippedRows:
    """Raw logits, each row scaled down to a norm; logits that are not clipped can move any far."""

    norm: float
    order: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        positive(norm=self.norm)

    def apply(self, logits: Tensor) -> Tensor:
        """Rows float64 [m, classes] of length at most `norm`."""
        return clip_rows(logits, self.norm, self.order)

    def tidy(self, noised: Tensor) -> Tensor:
        """Noised logits are logits."""
        return noised

    def sensitivity(self, order: Literal[1, 2], neighbours: Neighbours, n_classes: int) -> float:
        """The most that one row moves in L1 or L2: its length, or twice that if it is replaced."""
        longest = self.norm * (math.sqrt(n_classes) if order < self.order else 1)
        return longest if neighbours == "add or remove one client" else 2 * longest


Bound = SoftLabels | ClippedRows


def project(values: Tensor) -> Tensor:
    """The nearest points of the simplex (Euclidean) to the rows of values [m, classes].

    Source: Held, Wolfe, Crowder 1974: subtract the one number that leaves a sum of 1 after clipping
    at 0. Of the sorted values, the largest prefix that stays positive finds it.
    """
    v = values.double()
    ordered = v.sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, v.shape[1] + 1, device=v.device)
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (v - excess.gather(1, last)).clamp_(min=0)

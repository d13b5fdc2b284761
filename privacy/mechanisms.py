"""Releases of soft labels: bound the sensitivity (`privacy.sensitivity`), then add noise (here).

A mechanism protects the *whole data of one client* from whoever sees its rows, and says by `cost`
what a ledger must charge. What leaves is float32 [m, classes]; noise is drawn in float64. As
everywhere with floating-point noise, the last bits are not covered by the claim (Mironov 2012).

Record level: output noise gives none. No bound is known for how far one record moves the logits of
a network, so only the client as a whole is claimed here; for records train with DP-SGD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import dp_accounting
import numpy as np
import torch
from dp_accounting import gaussian_mechanism
from torch import Tensor
from torch.nn.functional import one_hot

from fedkd.errors import FedkdError
from privacy.sensitivity import (
    Bound,
    Neighbours,
    SoftLabels,
    finite,
    log_ratio,
    positive,
)

SMALLEST_DELTA = 1e-10
"""Below it the rounding of an FFT (about 1e-16) would show in an epsilon."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a ledger charges for one release, all its rows together."""

    neighbours: Neighbours
    event: Any
    """A dp_accounting DpEvent; NonPrivateDpEvent where nothing is claimed.

    Noise multipliers are noise over the distance between neighbours, whichever `neighbours` are
    meant. An accountant must not double that again, as PLDAccountant does to a Gaussian under
    REPLACE_ONE; randomised response in turn is accepted under REPLACE_ONE only.
    """
    pure_epsilon: float | None
    """Epsilon with delta = 0, added over the rows; None if no epsilon holds with delta = 0."""
    sensitivity: float | None = None
    """The most that one row moves in the norm of the noise; the largest one if rows differ."""


def repeated(event: Any, count: int) -> Any:
    """The DpEvent of `count` uses.

    PLDAccountant of dp-accounting 0.6 charges one use for any count of RandomizedResponseDpEvent;
    `RandomisedResponse.epsilon_after` and the RDP accountant charge them all.
    """
    if count == 0:
        return dp_accounting.NoOpDpEvent()
    return dp_accounting.SelfComposedDpEvent(event, count)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of Gaussian mechanisms of which the sensitivities over sigma, squared, add
    up to mu^2. Exact (Balle, Wang 2018; Dong, Roth, Su 2022), not a bound."""
    return float(gaussian_mechanism.get_epsilon_gaussian(1 / mu, delta)) if mu > 0 else 0.0


@dataclass(frozen=True)
class Gaussian:
    """Normal noise of standard deviation sigma on every value."""

    sigma: float
    order: Literal[2] = 2

    def __post_init__(self) -> None:
        positive(sigma=self.sigma)

    @classmethod
    def calibrated(cls, epsilon: float, delta: float, sensitivity: float) -> Gaussian:
        """The least noise for (epsilon, delta) at an L2 sensitivity, over all that is released.

        The analytic calibration: the textbook's sqrt(2 ln(1.25/delta)) / epsilon is wrong above 1.
        """
        positive(epsilon=epsilon, delta=delta, sensitivity=sensitivity)
        return cls(sensitivity * float(gaussian_mechanism.get_sigma_gaussian(epsilon, delta)))

    def add(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Values [m, classes] plus noise, float64; drawn on the CPU so that devices agree."""
        draws = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        return values + self.sigma * draws.to(values.device)

    def charge(self, sensitivities: Tensor) -> tuple[Any, float | None]:
        """The event of rows with these L2 sensitivities [m]: together one Gaussian mechanism."""
        mu = float(sensitivities.norm()) / self.sigma
        return (dp_accounting.GaussianDpEvent(1 / mu) if mu else dp_accounting.NoOpDpEvent()), None


@dataclass(frozen=True)
class Laplace:
    """Laplace noise of the given scale on every value; its standard deviation is sqrt(2) scale."""

    scale: float
    order: Literal[1] = 1

    def __post_init__(self) -> None:
        positive(scale=self.scale)

    @classmethod
    def calibrated(cls, epsilon: float, sensitivity: float) -> Laplace:
        """The least noise for pure epsilon at an L1 sensitivity, over all that is released."""
        positive(epsilon=epsilon, sensitivity=sensitivity)
        return cls(sensitivity / epsilon)

    def add(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Values [m, classes] plus noise, float64: the difference of two exponential draws."""
        pair = torch.empty((2, *values.shape), dtype=torch.float64).exponential_(
            generator=generator
        )
        return values + self.scale * (pair[0] - pair[1]).to(values.device)

    def charge(self, sensitivities: Tensor) -> tuple[Any, float | None]:
        """The event of rows with these L1 sensitivities [m], and the sum of their epsilons."""
        distinct, counts = np.unique(sensitivities.numpy(), return_counts=True)
        events = [
            repeated(dp_accounting.LaplaceDpEvent(self.scale / size), count)
            for size, count in zip(distinct.tolist(), counts.tolist(), strict=True)
        ]
        return dp_accounting.ComposedDpEvent(events), float(sensitivities.sum()) / self.scale


Noise = Gaussian | Laplace


@dataclass(frozen=True)
class Noised:
    """Bounded rows plus noise, moved back to the simplex if they came from there.

    Guarantee: `neighbours`; every row released, for any number of readers; event: one Gaussian, or
    a composition of Laplace mechanisms. Adding or removing a client only makes sense of a sum over
    clients that `noise.add` is called on; one client's own rows show that it is there.
    """

    bound: Bound
    noise: Noise
    neighbours: Neighbours = "replace one client"

    def release(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """What leaves, float32 [m, classes], of logits [m, classes]."""
        return self.bound.tidy(self.noise.add(self.bound.apply(logits), generator)).float()

    def cost(self, rows: int, n_classes: int) -> Cost:
        """The charge for `rows` rows."""
        size = self.bound.sensitivity(self.noise.order, self.neighbours, n_classes)
        event, pure = self.noise.charge(torch.full((rows,), size, dtype=torch.float64))
        return Cost(neighbours=self.neighbours, event=event, pure_epsilon=pure, sensitivity=size)


@dataclass(frozen=True)
class HardLabels:
    """One label drawn from each soft label softmax(clip(z, B)/T): the exponential mechanism.

    Guarantee: replace one client; pure epsilon a row, exactly `sensitivity.log_ratio`. Event:
    binary randomised response at that epsilon, which dominates every mechanism of pure epsilon
    (Kairouz, Oh, Viswanath 2015), so its composition is an upper bound.
    """

    labels: SoftLabels

    def __post_init__(self) -> None:
        if math.isinf(self.labels.bound):
            raise FedkdError(
                "a drawn label is private only if logits are clipped",
                value=self.labels.bound,
                allowed="a finite bound",
                fix="set bound, 5 for example",
            )

    def release(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One-hot float32 [m, classes]."""
        q = self.labels.apply(logits)
        drawn = torch.multinomial(q.cpu(), 1, generator=generator)[:, 0]
        return one_hot(drawn, q.shape[1]).float().to(logits.device)

    def cost(self, rows: int, n_classes: int) -> Cost:
        """The charge for `rows` labels."""
        at = torch.tensor(self.labels.temperature, dtype=torch.float64)
        epsilon = float(log_ratio(self.labels.bound, at, n_classes))
        event = dp_accounting.RandomizedResponseDpEvent(_at_random(epsilon, 2), 2)
        return Cost(
            neighbours="replace one client",
            event=repeated(event, rows),
            pure_epsilon=rows * epsilon,
        )


def _kept(epsilon: float, n_classes: int) -> float:
    """(e^eps - 1) / (e^eps - 1 + C), for any large epsilon."""
    gain = -math.expm1(-epsilon)
    return gain / (gain + n_classes * math.exp(-epsilon))


def _at_random(epsilon: float, n_classes: int) -> float:
    """1 - `_kept`, which would be 0 above an epsilon of 37 if it were taken from 1."""
    share = n_classes * math.exp(-epsilon)
    return share / (share - math.expm1(-epsilon))


@dataclass(frozen=True)
class RandomisedResponse:
    """The arg-max, kept with probability beta, else a class drawn uniformly from all.

    Guarantee: replace one client; pure `epsilon` a row, tight. `epsilon_after` composes exactly.
    Source: k-ary randomised response; beta and the unbiasing as in PrivateKT (Qi et al., Nature
    Communications 2023), where epsilon/K is spent a row. Its public code charges no round but
    the last; here every row of every round is charged.
    """

    epsilon: float
    n_classes: int

    def __post_init__(self) -> None:
        positive(epsilon=self.epsilon)
        if self.n_classes < 2:
            raise FedkdError(
                "randomised response needs classes", value=self.n_classes, allowed="2 or more"
            )

    @property
    def beta(self) -> float:
        """How likely the arg-max is kept: (e^eps - 1) / (e^eps - 1 + C)."""
        return _kept(self.epsilon, self.n_classes)

    def release(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One-hot float32 [m, classes]."""
        truth = finite(logits).argmax(1).cpu()
        keep = torch.rand(truth.shape, generator=generator, dtype=torch.float64) < self.beta
        other = torch.randint(self.n_classes, truth.shape, generator=generator)
        return one_hot(torch.where(keep, truth, other), self.n_classes).float().to(logits.device)

    def unbias(self, mean: Tensor) -> Tensor:
        """The unbiased share of clients behind each class [m, classes], of their mean answer.

        (mean - (1 - beta)/C) / beta: sums to 1, but may leave [0, 1]; `sensitivity.project` helps.
        """
        return (mean - (1 - self.beta) / self.n_classes) / self.beta

    def cost(self, rows: int) -> Cost:
        """The charge for `rows` labels."""
        at_random = _at_random(self.epsilon, self.n_classes)
        event = dp_accounting.RandomizedResponseDpEvent(at_random, self.n_classes)
        return Cost(
            neighbours="replace one client",
            event=repeated(event, rows),
            pure_epsilon=rows * self.epsilon,
        )

    def epsilon_after(self, uses: int, delta: float) -> float:
        """Epsilon at `delta` of that many uses, replace one client. Exact, up to rounding.

        The privacy loss of a use is +epsilon, 0 or -epsilon, so that of all is a walk on a lattice:
        its distribution is a power of a polynomial of degree 2, and no grid is needed.
        """
        if not SMALLEST_DELTA <= delta < 1:
            raise FedkdError(
                "delta is out of range",
                value=delta,
                allowed=f"{SMALLEST_DELTA} to below 1",
                fix="with delta = 0, epsilon is the number of uses times epsilon",
            )
        truth = self.beta + (1 - self.beta) / self.n_classes
        lie = (1 - self.beta) / self.n_classes
        step = np.array([lie, 1 - truth - lie, truth])
        walk = np.fft.irfft(np.fft.rfft(step, 2 * uses + 1) ** uses, 2 * uses + 1)
        loss = self.epsilon * np.arange(uses + 1)
        mass = walk[uses:].clip(0)
        here = mass[::-1].cumsum()[::-1]
        with np.errstate(divide="ignore"):
            there = np.logaddexp.accumulate((np.log(mass) - loss)[::-1])[::-1]  # its logarithm
        # A test that rejects from some loss on is best (Neyman, Pearson): the worst one counts.
        counts = here > delta
        return float(np.max(np.log(here[counts] - delta) - there[counts], initial=0))


@dataclass(frozen=True)
class TopOne:
    """The arg-max alone: a heuristic. Less leaves, but there is no epsilon to claim."""

    def release(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One-hot float32 [m, classes]; nothing is drawn."""
        z = finite(logits)
        return one_hot(z.argmax(1), z.shape[1]).float()

    def cost(self, rows: int) -> Cost:
        """No guarantee at all."""
        return Cost(
            neighbours="replace one client",
            event=dp_accounting.NonPrivateDpEvent(),
            pure_epsilon=None,
        )

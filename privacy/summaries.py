"""What the private summaries of a client share: budgets, noise, and the public view of a sample.

A summary is released once and then scores or teaches any number of proxy samples, which costs
nothing more (post-processing). So which samples a client answers no longer tells what it holds,
beyond what the summary's own guarantee allows. The summaries:

* `privacy.private_kmeans`: noisy Lloyd steps, (epsilon, delta);
* `privacy.class_means`: noisy class means of random Fourier features, (epsilon, delta);
* `privacy.interval_trees`: noisy counts that answer sums of L1 distances, pure epsilon;
* `privacy.private_gate`: the threshold on their scores, pure epsilon.

Guarantee, of each: for one client, neighbouring data sets differ in one record that is added or
removed (record level). The proxy set is public: it is fixed, and what a client contributed to it
itself has no protection left. That a client has data at all is not hidden, nor is anything that
several of its records say alike. Labels are private, the number of classes is public.

Limit: noise is drawn in float64 by textbook formulas, so the low bits of a release may betray
it (Mironov, CCS 2012). That is an attack on bits, not on what is simulated here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dp_accounting import GaussianDpEvent, NonPrivateDpEvent
from dp_accounting.dp_event import DiscreteLaplaceDpEvent, DpEvent
from dp_accounting.gaussian_mechanism import get_sigma_gaussian
from torch import Tensor

from fedkd.errors import FedkdError

ROUNDING = 1 + 1e-6
"""Sensitivities are raised by this much: more than float32 features can exceed their bound."""


def noise_multiplier(epsilon: float, delta: float) -> float:
    """The least noise, in sensitivities, of one Gaussian release that is (epsilon, delta)-DP.

    Infinite epsilon needs no noise. Source: Balle and Wang, ICML 2018, as dp-accounting has it.

    >>> round(noise_multiplier(1, 1e-5), 2)
    3.73
    """
    check_epsilon(epsilon)
    if not 0 < delta < 1:
        raise FedkdError("a Gaussian release needs a delta", value=delta, allowed="0 < delta < 1")
    return 0.0 if epsilon == math.inf else float(get_sigma_gaussian(epsilon, delta))


def gaussian_event(multiplier: float) -> DpEvent:
    """The privacy event of one Gaussian release; without noise there is no privacy."""
    return GaussianDpEvent(multiplier) if multiplier > 0 else NonPrivateDpEvent()


def pure_event(epsilon: float) -> DpEvent:
    """The privacy event of any release that is epsilon-DP with delta 0.

    Of all of them, binary randomised response loses most (Kairouz, Oh, Viswanath, ICML 2015), and
    discrete Laplace noise of sensitivity 1 is that: its loss is epsilon or -epsilon. Continuous
    Laplace noise would promise too much here. dp-accounting's PLD accountant composes it under
    add/remove; its RDP accountant does not know it.
    """
    return NonPrivateDpEvent() if epsilon == math.inf else DiscreteLaplaceDpEvent(epsilon, 1)


def check_epsilon(epsilon: float) -> None:
    """Raises: FedkdError unless epsilon > 0; infinity means no noise."""
    if not epsilon > 0:
        raise FedkdError(
            "epsilon must be positive", value=epsilon, allowed="> 0, or inf for no noise"
        )


def check_multiplier(multiplier: float) -> None:
    """Raises: FedkdError unless the noise multiplier is finite and not negative."""
    if not 0 <= multiplier < math.inf:
        raise FedkdError(
            "a noise multiplier must be finite and not negative",
            value=multiplier,
            allowed=">= 0; 0 for no noise",
        )


def check_samples(x: Tensor, n_values: int | None = None) -> None:
    """Raises: FedkdError unless x is [n, p >= 1], finite, and p is `n_values` if that is given."""
    if x.ndim != 2 or x.shape[1] == 0 or n_values not in (None, x.shape[1]):
        raise FedkdError(
            "samples have the wrong shape",
            value=tuple(x.shape),
            allowed=f"[n, {'p >= 1' if n_values is None else n_values}]",
        )
    if not bool(x.isfinite().all()):
        raise FedkdError("samples hold NaN or infinity", fix="clean the data before it is released")


def check_labels(x: Tensor, y: Tensor, n_classes: int) -> None:
    """Raises: FedkdError unless y int64 [n] has one label in [0, n_classes) for each row of x."""
    if n_classes < 1:
        raise FedkdError("a summary needs at least one class", value=n_classes, allowed=">= 1")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise FedkdError(
            f"y must be int64 with one label for each of {len(x)} samples",
            value=f"{y.dtype} {tuple(y.shape)}",
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < n_classes:
        raise FedkdError(
            "a label is out of range",
            value=int(y.max() if y.min() >= 0 else y.min()),
            allowed=f"0 to {n_classes - 1}",
        )


def normal(shape: Sequence[int], std: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise, float64, of this standard deviation."""
    return std * torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def laplace(shape: Sequence[int], scale: float, generator: torch.Generator) -> Tensor:
    """Laplace noise, float64, of this scale: the difference of two exponential draws."""
    draws = torch.empty((2, *shape), dtype=torch.float64).exponential_(generator=generator)
    return scale * (draws[0] - draws[1])


@dataclass(frozen=True, eq=False)
class View:
    """A public linear map into a ball: what of a sample a summary looks at.

    Shapes: `mean` float64 [p]; `axes` float64 [p, d], orthonormal columns. `radius` > 0.
    """

    mean: Tensor
    axes: Tensor
    radius: float

    def look(self, x: Tensor) -> Tensor:
        """The samples x [n, p] as float64 [n, d]; those outside the ball are drawn to its edge.

        Raises: FedkdError where x has another width, NaN or infinity.
        """
        check_samples(x, len(self.mean))
        return to_ball((x.double() - self.mean) @ self.axes, self.radius)


def to_ball(x: Tensor, radius: float) -> Tensor:
    """The rows of x [n, d], the longer ones shortened to `radius`."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * (radius / norms.clamp(min=radius))


def view(proxy: Tensor, n_axes: int = 20, cover: float = 0.9) -> View:
    """The principal axes of the proxy samples [n, p], and the ball that holds `cover` of them.

    Noise grows with the number of axes, so 784 pixels of noise would drown a small client. All of
    it is read off the proxy set alone, so it costs no budget. Float64, so it repeats its bits.
    Raises: FedkdError where the proxy is empty, not finite or constant, or has fewer columns.
    """
    check_samples(proxy)
    if not 1 <= n_axes <= proxy.shape[1] or not 0 < cover <= 1:
        raise FedkdError(
            "a view needs axes and a part of the proxy to cover",
            value=(n_axes, cover),
            allowed=f"1 to {proxy.shape[1]} axes, 0 < cover <= 1",
        )
    if len(proxy) == 0:
        raise FedkdError("a view needs proxy samples", value=0, allowed="1 or more")
    x = proxy.double()
    mean = x.mean(0)
    axes = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors.flip(1)[:, :n_axes]
    norms = torch.linalg.vector_norm((x - mean) @ axes, dim=1)
    radius = float(norms.quantile(cover))
    if radius == 0:
        raise FedkdError("the proxy samples are all alike", fix="choose another proxy")
    return View(mean, axes.contiguous(), radius)

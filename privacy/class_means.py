"""Private class means of random Fourier features: a filter and a teacher that is never trained.

With features z(x) of unit length whose inner products approach a Gaussian kernel, a client
releases per class the noisy sum of z and the noisy count. From these and the second moment of the
proxy's features, which is public, follows how many times denser each class of the client is at x
than the proxy set, by least squares in closed form. The noise on what is then said about one x
does not depend on the number of features, nor on the number of pixels.

Source: random features, Rahimi and Recht, NIPS 2007, in the paired form of Sutherland and
Schneider, UAI 2015, whose features have length exactly 1; the density ratio is uLSIF, Kanamori,
Hido, Sugiyama, JMLR 2009. Ours: the two under one Gaussian release, and the ridge below. Kernel
means alone, <S_c, z(x)> / n_c, were measured as well and filter and teach worse (a class
of no records is noise over noise), so there is no such path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.summaries import (
    ROUNDING,
    check_labels,
    check_multiplier,
    check_samples,
    gaussian_event,
    normal,
)

SENSITIVITY = math.sqrt(2) * ROUNDING
"""L2, of all sums and counts together: one record moves one sum by 1 and one count by 1."""

_MEDIAN_ROWS = 1000  # proxy samples whose distances set the bandwidth
_FLOOR = 1e-3  # densities below this multiple of the proxy's are not told apart


@dataclass(frozen=True, eq=False)
class Features:
    """Random Fourier features of a Gaussian kernel, and what the proxy set says of them: public.

    Shapes: `frequencies` float32 [p, D / 2]; `moment` float64 [D, D], mean of z z' on the proxy.
    """

    frequencies: Tensor
    moment: Tensor

    def of(self, x: Tensor) -> Tensor:
        """z(x) float64 [n, D] of x [n, p], each of length 1.

        Raises: FedkdError where x has another width, NaN or infinity.
        """
        check_samples(x, len(self.frequencies))
        return _features(x, self.frequencies)


def _features(x: Tensor, frequencies: Tensor) -> Tensor:
    angles = x.float() @ frequencies
    waves = torch.cat([angles.cos(), angles.sin()], 1).double()
    return waves / math.sqrt(frequencies.shape[1])


def features(
    proxy: Tensor, generator: torch.Generator, *, n_features: int = 1000, bandwidth: float = 0.5
) -> Features:
    """`n_features` random features, from the proxy samples [n, p] and the generator alone.

    The kernel's standard deviation is `bandwidth` times the median distance of proxy samples.
    Raises: FedkdError where the proxy has under two samples, is not finite, or all alike.
    """
    check_samples(proxy)
    if len(proxy) < 2 or n_features < 2 or n_features % 2 or not 0 < bandwidth < math.inf:
        raise FedkdError(
            "random features need proxy samples, an even number and a bandwidth",
            value=(len(proxy), n_features, bandwidth),
            allowed=">= 2 samples, an even number >= 2 of features, bandwidth > 0",
        )
    rows = torch.randperm(len(proxy), generator=generator)[:_MEDIAN_ROWS]
    median = float(torch.pdist(proxy[rows].double()).median())
    if median == 0:
        raise FedkdError("the proxy samples are mostly alike", fix="choose another proxy")
    draws = torch.randn(proxy.shape[1], n_features // 2, generator=generator)
    frequencies = draws / (bandwidth * median)
    z = _features(proxy, frequencies)
    return Features(frequencies, z.T @ z / len(z))


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """One noisy release, and what follows from it.

    Shapes: `sums` float64 [classes, D]; `counts` float64 [classes]. Both carry Gaussian noise of
    standard deviation `noise_multiplier * SENSITIVITY`. `weights` float64 [D, classes]: a row of
    features times these is the density ratio of each class.
    """

    features: Features
    sums: Tensor
    counts: Tensor
    weights: Tensor
    event: DpEvent

    def ratio(self, x: Tensor) -> Tensor:
        """How much denser client and class c are at x [n, p] than the proxy: float64 [n, classes].

        Over the classes these sum to the ratio of the client's density to the proxy's. They are
        estimates, so they may be negative.
        """
        return self.features.of(x) @ self.weights

    def score(self, x: Tensor) -> Tensor:
        """How strange [n] each of x [n, p] is: minus the density ratio of all classes together."""
        return -self.ratio(x).sum(1)

    def teach(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """Soft labels float64 [n, classes]: the classes' densities at x to the 1 / temperature."""
        return torch.softmax(self.ratio(x).clamp(min=_FLOOR).log() / temperature, 1)


def class_means(
    x: Tensor,
    y: Tensor,
    n_classes: int,
    features: Features,
    noise_multiplier: float,
    generator: torch.Generator,
    *,
    ridge: float = 1e-3,
) -> ClassMeans:
    """The private class means of the records x [n, p] with labels y int64 [n]; n may be 0.

    The ridge of the least squares is at least `ridge` and ten times the noise on a mean, which was
    chosen on Fashion-MNIST; it follows from what is released, so it costs nothing.

    Guarantee: one Gaussian release of `noise_multiplier` sensitivities; add/remove one record of
    the client, its label included; any number of uses. `event` is its privacy event.
    Raises: FedkdError where x is not finite, y does not fit, or a number is out of range.
    """
    check_labels(x, y, n_classes)
    check_multiplier(noise_multiplier)
    if not 0 < ridge < math.inf:
        raise FedkdError("least squares need a ridge", value=ridge, allowed="> 0")
    std = noise_multiplier * SENSITIVITY
    z = features.of(x)
    sums = z.new_zeros(n_classes, z.shape[1]).index_add_(0, y, z)
    sums += normal(sums.shape, std, generator)
    counts = torch.bincount(y, minlength=n_classes).double()
    counts += normal(counts.shape, std, generator)
    n = float(counts.sum().clamp(min=1))
    ridged = features.moment + max(ridge, 10 * std / n) * torch.eye(len(features.moment))
    weights = torch.linalg.solve(ridged, sums.T / n)
    return ClassMeans(features, sums, counts, weights, gaussian_event(noise_multiplier))

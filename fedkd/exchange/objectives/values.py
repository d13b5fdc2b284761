"""Objectives that compare numbers class by class, move mass between classes, or temper a sample."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedkd.exchange.objectives.base import FLOOR, Divergence, Objective, entropy

Space = Literal["logits", "log-probabilities", "probabilities"]


def _gap(space: Space, temperature: float, logits: Tensor, target: Tensor) -> Tensor:
    """Student minus consensus [n, classes], times temperature, which logits have not."""
    if space == "logits":
        return logits - target
    log_q = F.log_softmax(logits / temperature, dim=1)
    if space == "log-probabilities":
        return (log_q - target.clamp_min(FLOOR).log()) * temperature
    return (log_q.exp() - target) * temperature


class L1(Objective):
    """Mean absolute difference over classes; on logits it is FedMD's.

    `space` says of what; logits need `method.release` to be `logits`. Log-probabilities take a
    target below `FLOOR` for `FLOOR`; on probabilities it is 2 / classes of total variation.
    Source: Li and Wang, arXiv 1910.03581, and its released code.
    """

    name: Literal["l1"] = "l1"
    space: Space = "logits"

    @property
    def raw(self) -> bool:
        """On logits."""
        return self.space == "logits"

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Means [n] over classes."""
        return _gap(self.space, self.temperature, logits, target).abs().mean(dim=1)


class MSE(Objective):
    """Mean squared difference over classes; on probabilities it is Brier's score.

    `space` as in `L1`.
    Source: logit matching, Ba and Caruana, NeurIPS 2014; in FD libraries as a variant of FedMD.
    """

    name: Literal["mse"] = "mse"
    space: Space = "logits"

    @property
    def raw(self) -> bool:
        """On logits."""
        return self.space == "logits"

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Means [n] over classes."""
        return _gap(self.space, self.temperature, logits, target).square().mean(dim=1)


class Sinkhorn(Divergence):
    """Sinkhorn divergence: what it costs to move one distribution's mass to the other (SinkD).

    S(p, q) = OT(p, q) - OT(p, p) / 2 - OT(q, q) / 2, where OT is optimal transport under cost 1
    between any two classes, regularised by epsilon KL(plan || p x q). At least 0, and 0 where
    q = p; finite where both have no class in common. As epsilon -> 0 it is total variation.
    Sums over the kernel (1 - k) I + k 11', k = exp(-1 / epsilon), cost O(classes). An iteration
    shrinks the error by tanh(1 / (2 epsilon))^2 or better: 0.58 at epsilon 0.5, and 0.97 at 0.2,
    which needs more of them.
    Source: Cui et al., COLING 2024, arXiv 2402.17110; the debiased form is Feydy et al., AISTATS
    2019. Deviations: there cost and plan are between the samples of a batch, and a
    permuted student costs nothing; here each sample stands alone, and classes have no order.
    """

    name: Literal["sinkhorn"] = "sinkhorn"
    epsilon: float = Field(0.5, ge=0.1)
    iterations: int = Field(20, ge=1)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The divergences [n], in units of the cost."""
        q = log_q.exp()
        return self._between(p, q) - (self._within(p) + self._within(q)) / 2

    def _kernel(self, mass: Tensor) -> Tensor:
        k = math.exp(-1 / self.epsilon)
        return (1 - k) * mass + k * mass.sum(dim=1, keepdim=True)

    def _between(self, p: Tensor, q: Tensor) -> Tensor:
        """The dual value [n] of OT(p, q); exact to second order in the last iteration's error."""
        right = torch.ones_like(q)
        for _ in range(self.iterations):
            left = 1 / self._kernel(q * right)
            right = 1 / self._kernel(p * left)
        return self.epsilon * (p * left.log() + q * right.log()).sum(dim=1)

    def _within(self, p: Tensor) -> Tensor:
        """The dual value [n] of OT(p, p), whose two potentials are one.

        The last step leaves neither side of the plan exact, so the term of its mass stays.
        """
        both = torch.ones_like(p)
        for _ in range(self.iterations):
            both = (both / self._kernel(p * both)).sqrt()
        mass = (p * both * self._kernel(p * both)).sum(dim=1)
        return self.epsilon * (2 * (p * both.log()).sum(dim=1) - (mass - 1))


class AdaptiveTemperature(Objective):
    """Cross-entropy at a temperature of the sample's own, higher where it is surer (ALDR-KL).

    The least value over t >= temperature of t (log of the mean of e^(z / t)) - sum of p z +
    strength / 2 (t - temperature)^2; there t = temperature + KL(softmax(z / t) || uniform) /
    strength. A sure student is tempered, so a wrong consensus pulls at it less. As strength grows
    it is cross-entropy at the temperature, less log classes.
    Source: Zhu, Ying and Yang, ICML 2023, arXiv 2112.14869, ALDR-KL. Deviations: soft labels, so no
    margin; t is solved for and not one step of an alternation; all times `temperature`, to keep the
    gradient's size.
    """

    name: Literal["aldr-kl"] = "aldr-kl"
    strength: float = Field(1.0, gt=0)

    def temperatures(self, logits: Tensor) -> Tensor:
        """The temperatures [n, 1] at which the value is least, to 2^-40 of their range.

        Bisection: KL to uniform falls with t, so that what must be 0 rises with it.
        """
        z = logits.detach().double()
        most = math.log(z.shape[1]) / self.strength
        low = torch.full_like(z[:, :1], self.temperature)
        high = low + most
        for _ in range(40):
            middle = (low + high) / 2
            sure = math.log(z.shape[1]) - entropy((z / middle).softmax(dim=1))[:, None]
            above = middle - self.temperature > sure / self.strength
            low, high = low.where(above, middle), middle.where(above, high)
        return ((low + high) / 2).to(logits.dtype)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Values [n]; the gradient is exact, since t is where it has no slope."""
        t = self.temperatures(logits)
        value = -(target * F.log_softmax(logits / t, dim=1)).sum(dim=1) - math.log(logits.shape[1])
        t = t.squeeze(1)
        penalty = self.strength / 2 * (t - self.temperature) ** 2
        return (t * value + penalty) * self.temperature

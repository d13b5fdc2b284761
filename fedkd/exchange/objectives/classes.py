"""Objectives that treat some classes apart: the target class, single classes, the k largest.

Those that need the label of a sample take the arg-max of the target, since a proxy sample has no
label; of equals, the first.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedkd.exchange.objectives.base import Divergence, Objective, forward_kl


def _others(log_q: Tensor, p: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """log q and p [n, classes], each renormalised over the classes other than `label` [n, 1].

    At the label both are 0; where p has nothing else, its row is 0.
    """
    others = log_q.scatter(1, label, -torch.inf)
    log_q = F.log_softmax(others, dim=1).scatter(1, label, 0.0)
    rest = p.scatter(1, label, 0.0)
    return log_q, rest / rest.sum(dim=1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)


class NKD(Divergence):
    """Normalised KD: the target class, and the other classes made to sum to 1 (NKD).

    -p_t log q_t - gamma * sum over i != t of N(p)_i log N(q)_i. Its first term pulls q_t to 1, so
    the least value is not at q = p.
    Source: Yang et al., ICCV 2023, arXiv 2303.13005; gamma 1.5 as there. Deviations:
    one temperature for both terms (there the first has none); t is the target's arg-max; the
    cross-entropy with the true label is left to local training. Its teacherless twin USKD learns
    from labels alone, which is no way to learn a consensus.
    """

    name: Literal["nkd"] = "nkd"
    gamma: float = Field(1.5, ge=0)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The sum of both cross-entropies [n]."""
        label = p.argmax(dim=1, keepdim=True)
        target = -(p.gather(1, label) * log_q.gather(1, label)).squeeze(1)
        log_others, others = _others(log_q, p, label)
        return target - self.gamma * (others * log_others).sum(dim=1)


class DKD(Divergence):
    """Decoupled KD: KL of target class against rest, and KL among the rest (DKD).

    KL is the sum of the first and (1 - p_t) times the second; here the second keeps its weight,
    however sure the target is.
    Source: Zhao et al., CVPR 2022, arXiv 2203.08679; alpha 1 and beta 8 as there for
    CIFAR-100. Deviation: t is the target's arg-max.
    """

    name: Literal["dkd"] = "dkd"
    alpha: float = Field(1.0, ge=0)
    """Of target class against rest."""
    beta: float = Field(8.0, ge=0)
    """Of the rest among themselves."""

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """alpha TCKD + beta NCKD [n] in nats."""
        label = p.argmax(dim=1, keepdim=True)
        log_rest = log_q.scatter(1, label, -torch.inf).logsumexp(dim=1, keepdim=True)
        p_t = p.gather(1, label)
        rest = p.scatter(1, label, 0.0).sum(dim=1, keepdim=True)
        two = forward_kl(
            torch.cat([log_q.gather(1, label), log_rest], 1), torch.cat([p_t, rest], 1)
        )
        log_others, others = _others(log_q, p, label)
        return self.alpha * two + self.beta * forward_kl(log_others, others)


class TopKLoss(Divergence):
    """KL of the target's k largest classes and of the rest as one: for sparse answers.

    What a sparse answer says of its tail is a guess, so only the tail's mass is learnt. Never above
    KL (data processing), and equal to it where at most one class is left over.
    Source: the top-k losses of OstQuant (KL-Top, arXiv 2501.13987) and TopKLD, as we understand
    them; the lumped rest is Tian et al.'s coarse-graining, and ours here.
    """

    name: Literal["top-k"] = "top-k"
    k: int = Field(5, ge=1)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """KL [n] in nats over k classes and the rest."""
        if self.k >= p.shape[1]:
            return forward_kl(log_q, p)
        top = p.topk(self.k, dim=1).indices
        log_rest = log_q.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
        rest = p.scatter(1, top, 0.0).sum(dim=1, keepdim=True)
        return forward_kl(
            torch.cat([log_q.gather(1, top), log_rest], dim=1),
            torch.cat([p.gather(1, top), rest], 1),
        )


class BinaryKL(Objective):
    """Each class a yes or no of its own, by sigmoids: keeps absolute scores (BCKD).

    The sum over classes of |s(v) - s(z)| KL(s(v) || s(z)), with s(z) = sigmoid(z / temperature), of
    student logits z and consensus logits v: `method.release` must be `logits`. No gradient through
    weights.
    Source: Yang et al., ICCV 2023, arXiv 2308.14286. Deviations: KL in place of binary
    cross-entropy, which has the same gradient and is 0 at the consensus; a temperature.
    """

    name: Literal["bckd"] = "bckd"

    @property
    def raw(self) -> bool:
        """It is."""
        return True

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Values [n] in nats, times temperature^2."""
        z, v = logits / self.temperature, target / self.temperature
        p = v.sigmoid()
        weight = (p - z.detach().sigmoid()).abs()
        kl = p * (F.logsigmoid(v) - F.logsigmoid(z)) + (1 - p) * (
            F.logsigmoid(-v) - F.logsigmoid(-z)
        )
        return (weight * kl).sum(dim=1) * self.temperature**2

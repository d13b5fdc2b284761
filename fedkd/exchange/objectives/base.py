"""What the objectives have in common: a temperature, and how they keep zeros finite."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedkd.section import Section

FLOOR = 1e-7
"""Where an objective takes the log of a target, the least that it takes for one: about float32's
precision of a probability. So a class that the target rules out costs much, but not everything."""


class Objective(Section):
    """From student logits and a target to one value a sample; the caller reduces."""

    name: str
    temperature: float = Field(1.0, gt=0)

    @property
    def raw(self) -> bool:
        """Whether the target is the consensus of raw logits itself, and not a distribution."""
        return False

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Values [n] of student `logits` [n, classes] against `target` [n, classes].

        Gradients flow into `logits` alone.
        """


class Divergence(Objective):
    """Of two distributions: p, the target, and q = softmax(logits / temperature)."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Values [n], times temperature^2.

        The factor keeps the gradient's size the same at every temperature (Hinton et al. 2015).
        """
        log_q = F.log_softmax(logits / self.temperature, dim=1)
        return self.divergence(log_q, target) * self.temperature**2

    @abstractmethod
    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """Values [n] of log-probabilities log_q [n, classes] and distributions p [n, classes]."""


def forward_kl(log_q: Tensor, p: Tensor) -> Tensor:
    """KL(p || q) [n] in nats; 0 log 0 is 0."""
    return F.kl_div(log_q, p, reduction="none").sum(dim=1)


def reverse_kl(log_q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) [n] in nats, with p at least `FLOOR` inside the log."""
    return (log_q.exp() * (log_q - p.clamp_min(FLOOR).log())).sum(dim=1)


def safe_log(x: Tensor) -> Tensor:
    """log x where x > 0; at 0 a finite number with gradient 0, for a term that 0 multiplies."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()


def entropy(p: Tensor) -> Tensor:
    """Of distributions p [n, classes], in nats [n]."""
    return -torch.xlogy(p, p).sum(dim=1)

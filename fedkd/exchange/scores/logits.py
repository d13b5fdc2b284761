"""Scores by how sure the client's own model is; there is nothing to fit.

They take logits [n, classes], or [n, L, classes] of texts, whose positions' scores are averaged.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.section import Section


class _OfLogits(Section):
    name: str
    space: Literal["logits"] = "logits"
    needs_public: ClassVar[bool] = False

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator, public: Tensor | None = None
    ) -> Tensor:
        """Nothing is learnt: an empty state."""
        return x.new_empty(0)

    def score(self, state: Tensor, x: Tensor) -> Tensor:
        """Scores [n]."""
        each = self.each(x.double())
        return each if each.ndim == 1 else each.mean(dim=1)

    @abstractmethod
    def each(self, logits: Tensor) -> Tensor:
        """Scores [...] of logits [..., classes]."""


class Energy(_OfLogits):
    """Energy of the model's logits: -t log of the sum of e^(z / t).

    Source: Liu et al., NeurIPS 2020; temperature 1 as there.
    """

    name: Literal["energy"] = "energy"
    temperature: float = Field(1.0, gt=0)

    def each(self, logits: Tensor) -> Tensor:
        """The energy."""
        return -self.temperature * (logits / self.temperature).logsumexp(dim=-1)


class MaxSoftmax(_OfLogits):
    """One minus the model's largest probability.

    Source: Hendrycks and Gimpel, ICLR 2017.
    """

    name: Literal["max-softmax"] = "max-softmax"

    def each(self, logits: Tensor) -> Tensor:
        """1 - max p, without losing digits where that is small."""
        return -torch.expm1(logits.log_softmax(dim=-1).amax(dim=-1))


class Entropy(_OfLogits):
    """Entropy of the model's prediction, in nats."""

    name: Literal["entropy"] = "entropy"

    def each(self, logits: Tensor) -> Tensor:
        """The entropy."""
        log_p = logits.log_softmax(dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)

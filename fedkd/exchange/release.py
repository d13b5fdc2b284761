"""Stage 3, release: what leaves the client for a sample that it answers."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.section import Section, table


class Probabilities(Section):
    """softmax(logits / temperature): soft labels."""

    name: Literal["probabilities"] = "probabilities"
    temperature: float = Field(1.0, gt=0)

    def release(self, logits: Tensor) -> Tensor:
        """Soft labels [n, classes] of logits [n, classes]."""
        return torch.softmax(logits / self.temperature, dim=1)

    def target(self, consensus: Tensor) -> Tensor:
        """The distribution that a student learns from a consensus [n, classes] of such answers."""
        return consensus


class Logits(Section):
    """The raw logits; the temperature is applied to their consensus."""

    name: Literal["logits"] = "logits"
    temperature: float = Field(1.0, gt=0)

    def release(self, logits: Tensor) -> Tensor:
        """The logits [n, classes] themselves."""
        return logits

    def target(self, consensus: Tensor) -> Tensor:
        """softmax(consensus / temperature) [n, classes]."""
        return torch.softmax(consensus / self.temperature, dim=1)


Release = Annotated[Probabilities | Logits, Field(discriminator="name")]
RELEASES = table(Probabilities, Logits)

"""Stage 3, release: what leaves the client for a sample that it answers.

`release` makes the values, and `coding` says how they travel: as they are, or as fewer numbers
that say nearly the same. A student learns from the consensus of what arrived.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.codecs import ArgMax as OneHot
from fedkd.section import Section, table
from fedkd.sparse import Coding, Draws, Largest


class SoftLabels(Section):
    """What releases of probabilities have in common."""

    name: str
    temperature: float = Field(1.0, gt=0)
    simplex: ClassVar[bool] = True
    """Whether each released row is a distribution over the classes."""

    def release(self, logits: Tensor) -> Tensor:
        """Soft labels [n, classes] of logits [n, classes]."""
        return torch.softmax(logits / self.temperature, dim=1)

    def target(self, consensus: Tensor) -> Tensor:
        """The distribution that a student learns from a consensus [n, classes] of such answers."""
        return consensus

    @property
    def coding(self) -> Coding | None:
        """How the values travel; None: as they are."""
        return None


class Probabilities(SoftLabels):
    """softmax(logits / temperature): soft labels."""

    name: Literal["probabilities"] = "probabilities"


class TopK(SoftLabels):
    """The k largest soft labels of a sample, the rest of the mass spread evenly."""

    name: Literal["top-k"] = "top-k"
    k: int = Field(5, ge=1)
    """Classes a sample; all of them, if there are fewer."""

    @property
    def coding(self) -> Coding:
        """The k largest."""
        return Largest(self.k)


class Sampled(SoftLabels):
    """Draws from the soft labels of a sample, as counts: unbiased."""

    name: Literal["sampled"] = "sampled"
    draws: int = Field(50, ge=1, le=65_535)
    """Draws a sample, with replacement. At most what a count of two bytes can say."""

    @property
    def coding(self) -> Coding:
        """The draws."""
        return Draws(self.draws)


class ArgMax(SoftLabels):
    """The likeliest class of a sample alone: one number."""

    name: Literal["arg-max"] = "arg-max"

    @property
    def coding(self) -> Coding:
        """The class."""
        return OneHot()


class Logits(Section):
    """The raw logits; the temperature is applied to their consensus."""

    name: Literal["logits"] = "logits"
    temperature: float = Field(1.0, gt=0)
    simplex: ClassVar[bool] = False
    coding: ClassVar[None] = None

    def release(self, logits: Tensor) -> Tensor:
        """The logits [n, classes] themselves."""
        return logits

    def target(self, consensus: Tensor) -> Tensor:
        """softmax(consensus / temperature) [n, classes]."""
        return torch.softmax(consensus / self.temperature, dim=1)


Release = Annotated[Probabilities | TopK | Sampled | ArgMax | Logits, Field(discriminator="name")]
RELEASES = table(Probabilities, TopK, Sampled, ArgMax, Logits)

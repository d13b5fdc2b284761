"""Stage 5, distill: how a student learns from the consensus.

A loss returns one value a sample and leaves the reduction to its caller.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedkd.section import Section, table


class KL(Section):
    """KL(consensus || student) at a temperature, times its square (Hinton et al. 2015)."""

    name: Literal["kl"] = "kl"
    temperature: float = Field(1.0, gt=0)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Divergences [n] in nats of student `logits` [n, classes] from `target` [n, classes].

        The factor temperature^2 keeps the gradient's size the same at every temperature.
        """
        log_student = F.log_softmax(logits / self.temperature, dim=1)
        kl = F.kl_div(log_student, target, reduction="none").sum(dim=1)
        return kl * self.temperature**2


Distill = Annotated[KL, Field()]
DISTILLS = table(KL)

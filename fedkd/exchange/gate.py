"""Stage 2, gate: which proxy samples does this client answer?

A gate turns scores (higher is stranger) into one threshold, from what the client has alone:
`heldout`, scores [m] of private samples that the score was not fitted on; `own`, of the samples
that it contributed to the pool; `others`, of the rest of the pool. No label of the proxy set is
seen. `accept` then answers whatever is at most as strange as the threshold, and whatever the
client contributed itself, which is EdgeFD's first stage as we read it (its text was not
available; see docs/methods.md). `Soft` gives weights instead.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.section import Section, table

CONFIDENCE = 0.05
"""One-sided error probability of the bands around both empirical distributions in `share`."""


class Open(Section):
    """Answer everything: no filter."""

    name: Literal["open"] = "open"

    def threshold(self, heldout: Tensor, own: Tensor, others: Tensor) -> float:
        """Infinity."""
        return math.inf


class Own(Section):
    """Answer only what the client contributed itself."""

    name: Literal["own"] = "own"

    def threshold(self, heldout: Tensor, own: Tensor, others: Tensor) -> float:
        """Minus infinity."""
        return -math.inf


class Constant(Section):
    """Answer what scores at most a fixed value."""

    name: Literal["constant"] = "constant"
    value: float

    def threshold(self, heldout: Tensor, own: Tensor, others: Tensor) -> float:
        """The value."""
        return self.value


class Quantile(Section):
    """Answer what scores at most a quantile of the client's own held-out samples."""

    name: Literal["quantile"] = "quantile"
    q: float = Field(0.1, ge=0, le=1)

    def threshold(self, heldout: Tensor, own: Tensor, others: Tensor) -> float:
        """The q-quantile of `heldout` and `own` together, with linear interpolation."""
        return float(torch.quantile(torch.cat([heldout, own]), self.q))


class Share(Section):
    """Open the quantile as far as the others' samples look like the client's own."""

    name: Literal["share"] = "share"
    power: float = Field(4.0, gt=0)
    floor: float = Field(0.5, ge=0, le=1)
    """The least quantile where the client contributed nothing, so nobody is sure to answer."""

    def threshold(self, heldout: Tensor, own: Tensor, others: Tensor) -> float:
        """The quantile of the client's own scores at `share ** power`, or at `floor` if higher.

        Ours, and chosen on validation data (docs/methods.md). A client whose samples make up the
        whole pool (IID) opens fully. One whose classes the others do not have stays nearly shut if
        the pool is contributed, since each sample's contributor answers it anyway; of a public
        pool it answers the half that it finds most familiar.
        """
        mine = torch.cat([heldout, own])
        q = share(mine, others) ** self.power
        return float(torch.quantile(mine, q if len(own) else max(q, self.floor)))


class Budget(Section):
    """Answer the m most familiar of the others' samples: so many bytes a round, whatever they are.

    Of samples with the score of the last one, all are answered.
    """

    name: Literal["budget"] = "budget"
    m: int = Field(ge=1)

    def threshold(self, heldout: Tensor, own: Tensor, others: Tensor) -> float:
        """The m-th least score of `others`; infinity if there are not so many."""
        if len(others) <= self.m:
            return math.inf
        return float(others.kthvalue(self.m).values)


class Oracle(Section):
    """For analysis: answer the samples of classes that the client holds, by their true labels.

    No method may see those: it says what a perfect filter would give. Of texts, topics.
    """

    name: Literal["oracle"] = "oracle"

    def threshold(self, heldout: Tensor, own: Tensor, others: Tensor) -> float:
        """1/2, of a score that is 0 for a class that the client holds and 1 for another."""
        return 0.5


class Soft(Section):
    """Answer everything, each with a weight: how likely the sample is one of the client's own.

    Source: FedAUX, Sattler et al., arXiv 2102.02514, for `odds`: s(x) = P(private | x) + 1e-8. What
    the client contributed itself has weight 1, which is ours.
    """

    name: Literal["soft"] = "soft"
    by: Literal["odds", "ratio", "spread"] = "odds"
    """How a score s becomes a probability. `odds`: 1 / (1 + e^s), of log-odds. `ratio`:
    r / (1 + r), of a density ratio r = -s. `spread`, of any score: 1 / (1 + e^z), where z is how
    far s lies above the median of the client's own, in their interquartile ranges (ours)."""
    floor: float = Field(1e-8, gt=0, lt=1)
    """The least weight, so that a sample is never without a voter."""

    def threshold(self, heldout: Tensor, own: Tensor, others: Tensor) -> float:
        """Infinity."""
        return math.inf

    def weights(self, heldout: Tensor, pool: Tensor, own: Tensor) -> Tensor:
        """Float32 [n], from `floor` to 1. Args: as those of `accept`."""
        scores = pool.double()
        match self.by:
            case "odds":
                found = torch.sigmoid(-scores)
            case "ratio":
                ratio = (-scores).clamp_min(0)
                found = ratio / (1 + ratio)
            case "spread":
                mine = torch.cat([heldout, pool[own]]).double()
                low, middle, high = torch.quantile(mine, mine.new_tensor([0.25, 0.5, 0.75]))
                wide = (high - low).clamp_min(torch.finfo(torch.float64).tiny)
                found = torch.sigmoid((middle - scores) / wide)
        return torch.where(own, 1.0, found.clamp(self.floor, 1)).float()


def needs_scores(gate: Gate) -> bool:
    """Whether what the gate answers depends on any score."""
    return not isinstance(gate, Open | Own)


def share(heldout: Tensor, pool: Tensor) -> float:
    """Which share of the pool may come from the client's own distribution, at most?

    If the pool is a mixture pi * own + (1 - pi) * other, then F_pool(t) >= pi * F_own(t) for every
    t, so pi <= min over t of F_pool(t) / F_own(t). The minimum is taken where the ratio of a lower
    and an upper Dvoretzky-Kiefer-Wolfowitz band says that it can be trusted.

    Source: mixture proportion estimation (Blanchard, Lee, Scott, JMLR 2010; the upper band
    minimised as in Garg et al., NeurIPS 2021, "BBE"). Using it as a gate is ours.

    Args: heldout: scores [m] of own samples that the score was not fitted on; pool: scores [n] of
        proxy samples that the client did not contribute. Both higher is stranger.
    Returns: a value in [0, 1]; 1 where either is empty, since then nothing speaks against it.
    """
    if len(heldout) == 0 or len(pool) == 0:
        return 1.0
    at = heldout.sort().values
    own = torch.arange(1, len(at) + 1, dtype=torch.float64) / len(at)
    seen = torch.searchsorted(pool.sort().values, at, right=True).double() / len(pool)
    slack_own, slack_pool = (
        math.sqrt(math.log(1 / CONFIDENCE) / (2 * n)) for n in (len(at), len(pool))
    )
    trusted = own > slack_own
    if not bool(trusted.any()):
        return 1.0
    upper = (seen + slack_pool)[trusted] / (own - slack_own)[trusted]
    best = int(upper.argmin())
    return min(1.0, float(seen[trusted][best] / own[trusted][best]))


def accept(gate: Gate, heldout: Tensor, pool: Tensor, own: Tensor) -> tuple[Tensor, float]:
    """The mask [n] of proxy samples that a client answers, and the threshold used.

    Args: heldout: scores [m] of held-out private samples; pool: scores [n] of all proxy samples;
        own: bool [n], true where the client contributed the sample.
    """
    threshold = gate.threshold(heldout, pool[own], pool[~own])
    return own | (pool <= threshold), threshold


Gate = Annotated[
    Open | Own | Constant | Quantile | Share | Budget | Oracle | Soft, Field(discriminator="name")
]
GATES = table(Open, Own, Constant, Quantile, Share, Budget, Oracle, Soft)

"""Which records of the pool a round is about: a draw by the server, the same for all clients.

A row says in which order it would ask; the server asks the first share of them. It knows what
it has told so far: of each record the entropy of its last consensus in nats (infinite before
there is one; of a text, the mean over its positions) and its likeliest class (-1).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.section import Section, table

Ids = NDArray[np.int64]
Nats = NDArray[np.float64]


class All(Section):
    """Every record, in every round."""

    name: Literal["all"] = "all"
    cache: ClassVar[int] = 0


class Draw(Section):
    """What the draws have in common."""

    name: str
    share: float = Field(0.2, gt=0, le=1)
    """Of the pool's records, in each round; at least one."""
    cache: int = Field(0, ge=0)
    """For how many rounds after it was told a consensus stands: till then its records, when they
    are drawn, are learnt from what clients have kept, and neither answered nor told again. 0: not
    at all.

    Source: the soft-label cache of SCARLET, arXiv 2504.19602, which keeps for 50 rounds. Deviation:
    each client counts the rounds itself, so no signals are sent; who missed a round learns less.
    """

    def fresh(self, told_in: Ids, round_: int) -> NDArray[np.bool_]:
        """Whether what was told in these rounds (0: never) still stands in a round."""
        return (told_in > 0) & (round_ - told_in <= self.cache)

    def size(self, n: int) -> int:
        """How many of n records."""
        return max(1, round(self.share * n))


class Random(Draw):
    """A share drawn evenly, anew each round: the baseline of the others."""

    name: Literal["random"] = "random"

    def order(self, entropy: Nats, likeliest: Ids, draws: np.random.Generator) -> Ids:
        """Record ids [n], first to last."""
        return draws.permutation(len(entropy))


class Uncertain(Draw):
    """What was never told first, then the records whose last consensus was least certain."""

    name: Literal["entropy"] = "entropy"

    def order(self, entropy: Nats, likeliest: Ids, draws: np.random.Generator) -> Ids:
        """As `Random.order`."""
        chance = draws.permutation(len(entropy))
        return chance[np.argsort(-entropy[chance], kind="stable")]


class Coverage(Draw):
    """What was never told first, then as many of each likeliest class as of the others."""

    name: Literal["coverage"] = "coverage"

    def order(self, entropy: Nats, likeliest: Ids, draws: np.random.Generator) -> Ids:
        """As `Random.order`: one of each class in turn."""
        chance = draws.permutation(len(entropy))
        turn = np.full(len(chance), -1)  # never told
        for label in np.unique(likeliest[likeliest >= 0]):
            of_label = likeliest[chance] == label
            turn[of_label] = np.arange(of_label.sum())
        return chance[np.argsort(turn, kind="stable")]


Select = Annotated[All | Random | Uncertain | Coverage, Field(discriminator="name")]
SELECTS = table(All, Random, Uncertain, Coverage)

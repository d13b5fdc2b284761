"""What hostile clients answer, in simulations: a client's own answers -> what it sends instead.

Published attackers of soft labels know what all honest clients answer. These know what one client
knows: its own model's answers stand for those of the honest. So damage is that of clients that do
not share what they know, a lower bound of what colluding ones could do.

Shapes: rows float32 [m, classes], distributions; so are those returned. Ties go to the first class.
Sources: Roux et al., ICLR 2025, arXiv 2402.12265 (from its released code) for the one-hot ones;
FDLA, arXiv 2401.03685, and PCFDLA, arXiv 2407.18039, from their abstracts: the exact maps are ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.section import Section, table

Rows = NDArray[np.float32]


class NoAttack(Section):
    """Honest answers: to lie in the mask or the pool alone."""

    name: Literal["none"] = "none"

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """The rows."""
        return rows


class RandomClass(Section):
    """A random class for each sample (NaiveSignFlip)."""

    name: Literal["random-class"] = "random-class"

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """As said."""
        return _sure(draws.integers(rows.shape[1], size=len(rows)), rows)


class OneClass(Section):
    """The same class for all samples (FixedSignFlip)."""

    name: Literal["one-class"] = "one-class"
    target: int = Field(0, ge=0)

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """As said; the last class where there are not so many."""
        target = min(self.target, rows.shape[1] - 1)
        return _sure(np.full(len(rows), target), rows)


class SecondBest(Section):
    """The second likeliest class (AdversarialSignFlip)."""

    name: Literal["second-best"] = "second-best"

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """As said."""
        return _sure(np.argsort(-rows, axis=1, kind="stable")[:, min(1, rows.shape[1] - 1)], rows)


class Lma(Section):
    """The least likely class (loss maximisation attack)."""

    name: Literal["lma"] = "lma"

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """As said."""
        return _sure(rows.argmin(axis=1), rows)


class Cpa(Section):
    """The class that is least like the likeliest one (class prior attack).

    Likeness is ours, since the attacker has no labels: S[i, j] is the mean probability of class j
    over its own rows whose likeliest class is i.
    """

    name: Literal["cpa"] = "cpa"

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """As said."""
        best = rows.argmax(axis=1)
        likeness = np.zeros((rows.shape[1], rows.shape[1]))
        np.add.at(likeness, best, rows)
        likeness /= np.maximum(np.bincount(best, minlength=rows.shape[1]), 1)[:, None]
        return _sure(likeness.argmin(axis=1)[best], rows)


class Fdla(Section):
    """The honest confidences in reverse order: the least likely class gets the highest."""

    name: Literal["fdla"] = "fdla"

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """As said: each row keeps its values."""
        order = np.argsort(rows, axis=1, kind="stable")
        spoilt = np.empty_like(rows)
        np.put_along_axis(spoilt, order, np.take_along_axis(rows, order[:, ::-1], axis=1), axis=1)
        return spoilt


class Pcfdla(Section):
    """A chosen peak on the second likeliest class, the rest spread evenly: less conspicuous."""

    name: Literal["pcfdla"] = "pcfdla"
    peak: float = Field(0.6, gt=0, le=1)

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """As said."""
        peaks = SecondBest().spoil(rows, draws)
        others = rows.shape[1] - 1
        even = (1 - self.peak) / max(others, 1)
        return np.where(peaks == 1, self.peak if others else 1.0, even).astype(np.float32)


class FreeRider(Section):
    """Made-up soft labels, drawn evenly from all distributions: as if nothing had been learnt."""

    name: Literal["free-rider"] = "free-rider"

    def spoil(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """As said."""
        return draws.dirichlet(np.ones(rows.shape[1]), size=len(rows)).astype(np.float32)


Attack = Annotated[
    NoAttack | RandomClass | OneClass | SecondBest | Lma | Cpa | Fdla | Pcfdla | FreeRider,
    Field(discriminator="name"),
]
ATTACKS = table(NoAttack, RandomClass, OneClass, SecondBest, Lma, Cpa, Fdla, Pcfdla, FreeRider)


def _sure(classes: NDArray[np.int64], rows: Rows) -> Rows:
    """One-hot rows."""
    spoilt = np.zeros_like(rows)
    spoilt[np.arange(len(rows)), classes] = 1
    return spoilt

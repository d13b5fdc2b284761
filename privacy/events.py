"""What a release costs, as the ledger keeps it: one small row for each kind of mechanism.

An event says how much noise there was, how often it was used (`count`), whom it protects (`unit`)
and against which change of the data (`relation`). A noise multiplier is the scale of the noise
divided by the sensitivity *under that relation*, so the same noise on soft labels that move by
sqrt(2) if a client's data are replaced has a multiplier of sigma / sqrt(2).

An event is a proof. What has none is no event: the ledger says why in words, and charges infinity.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from fedkd.section import Section, table

Unit = Literal["record", "client"]
Relation = Literal["add-remove", "replace"]

MOST_EPSILON = 300.0
"""For one use of a pure mechanism; its probabilities still are numbers there."""


class Protects(NamedTuple):
    """Whom an epsilon is for, and against which change of the data it holds."""

    unit: Unit
    relation: Relation

    def __str__(self) -> str:
        change = "added or removed" if self.relation == "add-remove" else "replaced"
        return f"one {self.unit} {change}"


class _Event(Section):
    unit: Unit
    relation: Relation
    count: int = Field(1, ge=1, le=10**9)

    @property
    def protects(self) -> Protects:
        """Unit and neighbouring relation: only events that agree in both compose."""
        return Protects(self.unit, self.relation)


class Gaussian(_Event):
    """Gaussian noise on a value or vector of bounded L2 norm."""

    name: Literal["gaussian"] = "gaussian"
    noise_multiplier: float = Field(gt=0)


class Laplace(_Event):
    """Laplace noise on one number; a vector of bounded L1 norm is charged as `pure`."""

    name: Literal["laplace"] = "laplace"
    noise_multiplier: float = Field(ge=1 / MOST_EPSILON)

    @property
    def pure(self) -> float:
        """The epsilon of one use at delta = 0."""
        return 1 / self.noise_multiplier


class Pure(_Event):
    """Any mechanism with a pure epsilon, such as the exponential mechanism.

    Charged as two-way randomised response, which every such mechanism is a post-processing of
    (Kairouz, Oh, Viswanath 2015, Theorem 8), so never too low.
    """

    name: Literal["pure"] = "pure"
    epsilon: float = Field(gt=0, le=MOST_EPSILON)

    @property
    def pure(self) -> float:
        """The epsilon of one use at delta = 0."""
        return self.epsilon

    @property
    def n_categories(self) -> int:
        """Of the randomised response that it is charged as."""
        return 2


class RandomisedResponse(_Event):
    """The truth with probability e^epsilon / (e^epsilon + k - 1), else any other of k categories.

    It is proved for a replaced answer, so for no other relation.
    """

    name: Literal["randomised-response"] = "randomised-response"
    relation: Literal["replace"] = "replace"
    epsilon: float = Field(gt=0, le=MOST_EPSILON)
    n_categories: int = Field(ge=2)

    @property
    def pure(self) -> float:
        """The epsilon of one use at delta = 0."""
        return self.epsilon


class SampledGaussian(_Event):
    """Gaussian noise on the sum over a Poisson sample: one step of DP-SGD.

    Each record is in with probability `rate`, by itself. Proved for add-remove only.
    """

    name: Literal["sampled-gaussian"] = "sampled-gaussian"
    relation: Literal["add-remove"] = "add-remove"
    rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(gt=0)


Event = Annotated[
    Gaussian | Laplace | Pure | RandomisedResponse | SampledGaussian, Field(discriminator="name")
]
EVENTS = table(Gaussian, Laplace, Pure, RandomisedResponse, SampledGaussian)

"""The second term of the private loss: what holds a client back while it learns its own data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedkd.section import Section, table


class NoRegulariser(Section):
    """Private learning is the private loss alone."""

    name: Literal["none"] = "none"
    mu: ClassVar[float] = 0.0


class Proximal(Section):
    """mu / 2 times the squared distance from the weights that the client began the round with.

    Source: FedProx, Li et al., MLSys 2020, equation 2. Under `weights` a client begins
    with the server's; elsewhere with its own, as the last consensus left them, which is ours.
    """

    name: Literal["proximal"] = "proximal"
    mu: float = Field(0.1, ge=0)
    """At 0 nothing is added: the bits are those of `none`."""


class Labels(Section):
    """gamma times a loss to what the other clients say of the record's label on average.

    Source: FD, Jeong et al., arXiv 1811.11479; the loss is `method.distill`'s. gamma 1 as in
    HtFLlib; the paper's is not known. Only under the exchange `label-means`.
    """

    name: Literal["labels"] = "labels"
    gamma: float = Field(1.0, ge=0)
    mu: ClassVar[float] = 0.0


Regulariser = Annotated[NoRegulariser | Proximal | Labels, Field(discriminator="name")]
REGULARISERS = table(NoRegulariser, Proximal, Labels)

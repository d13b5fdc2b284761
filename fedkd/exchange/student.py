"""A model of the server's own: whether it learns from the consensus, and what it tells."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedkd.section import Section, table


class NoStudent(Section):
    """The server has no model."""

    name: Literal["none"] = "none"


class ServerStudent(Section):
    """The server trains a model on the consensus, as clients do, and goes on with it each round.

    It starts from weights that it drew, learns by `method.distill` and `training.student`, and sees
    no private record and no label: only the pool and the consensus.
    """

    name: Literal["server"] = "server"
    tells: Literal["student", "consensus"] = "student"
    """What clients learn from: the model's own soft labels (or logits) of the samples in the
    consensus, or the consensus itself."""
    model: str = ""
    """Which; empty is the first of `model.names`."""


Student = Annotated[NoStudent | ServerStudent, Field(discriminator="name")]
STUDENTS = table(NoStudent, ServerStudent)

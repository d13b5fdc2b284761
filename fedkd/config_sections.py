"""The sections of a scenario that say how it runs: method, models, learning, attendance, grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from fedkd.errors import FedkdError, did_you_mean
from fedkd.exchange.attacks import Attack, NoAttack
from fedkd.exchange.combine import Combine, Summed
from fedkd.exchange.distill import Distill
from fedkd.exchange.gate import Gate, Soft
from fedkd.exchange.methods import METHODS, Exchange
from fedkd.exchange.regulariser import Regulariser
from fedkd.exchange.release import Release
from fedkd.exchange.score import Score
from fedkd.exchange.selection import Select
from fedkd.exchange.student import Student
from fedkd.models.zoo import check_names
from fedkd.rng import stream
from fedkd.section import Section

STAGES = ("score", "gate", "release", "combine", "distill", "select", "regulariser", "student")


class MethodConfig(Section):
    """A row of the table of methods, with any of its stages replaced or adjusted."""

    name: str = "edgefd"
    score: Score
    gate: Gate
    release: Release
    combine: Combine
    distill: Distill
    select: Select
    regulariser: Regulariser
    student: Student

    @model_validator(mode="before")
    @classmethod
    def _from_table(cls, given: Any) -> Any:
        """Start from the table's row; a stage that keeps its name is adjusted, else replaced."""
        if not isinstance(given, Mapping):
            return given
        name = given.get("name", "edgefd")
        if not isinstance(name, str) or name not in METHODS:
            raise FedkdError(
                "unknown method in method.name",
                value=name,
                allowed=", ".join(METHODS),
                fix=did_you_mean(str(name), METHODS),
            )
        filled = {**given, "name": name}
        for stage in STAGES:
            row = getattr(METHODS[name], stage).model_dump()
            change = given.get(stage, {})
            if isinstance(change, Mapping) and change.get("name", row["name"]) == row["name"]:
                filled[stage] = {**row, **change}
        return filled

    @property
    def weighed(self) -> bool:
        """Whether answers count by weights of their own, sent along or seen in them."""
        by_rule = isinstance(self.combine, Summed) and self.combine.weighs
        return by_rule or isinstance(self.gate, Soft)

    @property
    def exchange(self) -> Exchange:
        """What travels; see `fedkd.exchange.methods`."""
        return METHODS[self.name].exchange


class Model(Section):
    """The clients' models: client i takes `names[i mod len(names)]`."""

    names: tuple[str, ...] = Field(("mlp",), min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Model:
        check_names(self.names, "model.names")
        return self


class Phase(Section):
    """One of a round's two ways to learn. Each phase starts with a fresh optimiser."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the phase's samples; below one, that share of a pass."""
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    """Of `sgd` only."""


class Training(Section):
    """How clients learn: in each round first from their own data, then from the consensus."""

    rounds: int = Field(10, ge=1)
    local: Phase = Phase()
    """From private data."""
    distill: Phase = Phase()
    """From the consensus."""
    warmup: float = Field(0.0, ge=0)
    """Passes over private data, as `local`, that a client makes before its first round."""
    pretrain: Phase | None = None
    """From the true labels of a public proxy set, before anything else; None: they stay unknown."""
    student: Phase = Phase(epochs=10.0)
    """From the consensus, of a server's model (`method.student`), which has no other lessons."""
    participation: float = Field(1.0, gt=0, le=1)
    """The fraction of clients that take part in a round; at least one."""
    evaluate_every: int = Field(1, ge=1)
    """Rounds between two measurements of the clients; the last round is always measured."""
    heldout: float = Field(0.1, gt=0, lt=1)
    """Share of a client's private data that its score is not fitted on, for the gate."""
    timeout_s: float = Field(3600.0, gt=0)
    """How long the server waits for the replies of one step."""

    def taking_part(self, n_clients: int) -> int:
        """How many clients take part in a round.

        >>> Training(participation=0.001).taking_part(10)
        1
        """
        return max(1, round(self.participation * n_clients))

    def rate(self, n_clients: int) -> float:
        """The probability with which a client takes part in a round: `participation` but for
        rounding, which counts where few take part."""
        return self.taking_part(n_clients) / n_clients


class Wire(Section):
    """How soft labels travel: in fewer bytes, with or without a loss; see docs/wire.md."""

    up: Literal["float32", "float16", "int8", "argmax"] = "float32"
    """The answers of clients. `method.release` has other ways: top-k and sampled."""
    down: Literal["float32", "float16", "int8", "argmax"] = "float32"
    """The consensus, which students learn as it arrives."""
    mask: bool = False
    """Whether a bit for each proxy sample says which are answered, where that is shorter."""
    zstd: int = Field(0, ge=0, le=19)
    """The level at which answers and consensus are compressed; 0 is not at all."""

    @property
    def plain(self) -> bool:
        """Whether everything travels as it is."""
        return self == Wire()


class Hostile(Section):
    """Clients of a simulation that lie: some of them, drawn from the seed."""

    share: float = Field(0.0, ge=0, le=1)
    """Of all clients, rounded down. The server's means of accuracies leave them out."""
    attack: Attack = NoAttack()
    """What they answer instead of what their models say."""
    everything: bool = False
    """Whether they answer every proxy sample, as if all looked like their own data."""
    pool: bool = False
    """Whether what they give to the proxy set is noise."""

    @lru_cache(maxsize=8)  # noqa: B019 - a frozen value, and few of them
    def clients(self, n_clients: int, seed: int) -> frozenset[int]:
        """Who lies."""
        n = int(self.share * n_clients + 1e-9)
        if n == 0:
            return frozenset()
        return frozenset(stream(seed, "hostile").permutation(n_clients)[:n].tolist())


class Attendance(Section):
    """Who must be there, and what becomes of whoever is late: of deployments above all."""

    gather_s: float = Field(60.0, gt=0)
    """How long the server waits for all clients before the first round; then for `quorum`."""
    quorum: float = Field(0.0, ge=0, le=1)
    """Share of a round's clients that must be heard in each step, else the round is repeated; one
    client is always needed."""
    repeats: int = Field(3, ge=0)
    """How often a round is repeated before the run stops, to be resumed; only where nodes can come
    and go."""
    late: Literal["drop", "use"] = "drop"
    """An answer that comes after `training.timeout_s`: thrown away, or used in the next round if
    its client is not heard there."""

    def needed(self, n_taking_part: int) -> int:
        """How many clients a round needs.

        >>> Attendance(quorum=0.5).needed(5)
        3
        """
        return max(1, math.ceil(self.quorum * n_taking_part))


class Limits(Section):
    """The most that one client may do in a run; who does more is refused, the others go on."""

    rows: float = Field(1.0, gt=0, le=1)
    """Share of the proxy samples that it may answer in a round."""
    contributed: int | None = Field(None, ge=0)
    """Records that it may give to the proxy set; None is no limit."""


class Grid(Section):
    """What carries the messages."""

    name: Literal["inline", "cohort", "workers", "ray", "flower"] = "inline"
    block: tuple[NonNegativeInt, ...] = Field((1,), min_length=1)
    """`cohort`, and inside each process of `workers` and `ray`: how many clients are advanced
    together: one number, or one for each of `model.names`; 0 is what a short calibration finds
    best. What is advanced together is equal up to rounding."""
    workers: int = Field(0, ge=0)
    """`workers` and `ray`: processes; 0 is as many as there are cores or resources."""
    address: str = ""
    """`ray` only: the cluster to attach to, HOST:PORT or "auto"; empty starts Ray here."""
    client_cpus: int = Field(1, ge=1)
    """`ray` and `flower`: logical CPUs a process."""
    client_gpus: float = Field(0.0, ge=0)
    """`ray` and `flower`: logical GPUs a process; fractions share one."""

    @field_validator("block", mode="before")
    @classmethod
    def _one_for_all(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int) else given

    @model_validator(mode="after")
    def _gpus_can_be_had(self) -> Grid:
        if self.client_gpus > 1 and self.client_gpus % 1:
            raise FedkdError(
                "a process can have a fraction of one GPU, or whole ones",
                value=self.client_gpus,
                fix="set grid.client_gpus to a whole number, or to at most 1",
            )
        return self

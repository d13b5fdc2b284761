"""A scenario: a TOML file -> a frozen, validated value. Unknown keys are errors.

Every section is a row of one of the house's tables (see `fedkd.section`), so what a scenario may
say is exactly what the rooms can do. `load` reads a file, `dump` writes the resolved scenario back.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fedkd.codecs import coding_of
from fedkd.config_errors import explain
from fedkd.config_method import check_method
from fedkd.config_overrides import apply
from fedkd.config_privacy import check_axes, check_privacy
from fedkd.config_sections import (
    Attendance,
    Grid,
    Hostile,
    Limits,
    MethodConfig,
    Model,
    Training,
    Wire,
)
from fedkd.data.canaries import Canaries
from fedkd.data.federation import Federation, build, held
from fedkd.data.partition import Iid, Natural, Own, Partition, Strong, Virtual
from fedkd.data.proxy import Contributed, Proxy
from fedkd.data.sources import Digits, Source
from fedkd.data.sources import load as load_data
from fedkd.errors import FedkdError, did_you_mean
from fedkd.exchange.methods import METHODS
from fedkd.packing import Packing
from fedkd.protection import PlainServer, Privacy, SecureAggregation
from fedkd.section import Section
from fedkd.sparse import Coding


class Scenario(Section):
    """Everything that decides a run's result, and the grid that carries it out."""

    name: str = Field("scenario", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seeds: tuple[int, ...] = Field((1,), min_length=1)
    device: str = Field("cpu", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int = Field(1, ge=1)
    """Torch threads a process. Part of the scenario, since sums in another order differ in bits."""
    validation: float = Field(0.05, ge=0, lt=1)
    """Share of the training set kept apart, to choose rounds and settings by."""
    data: Source = Digits()
    partition: Partition = Strong()
    proxy: Proxy = Contributed()
    canaries: Canaries | None = None
    """Made-up records in clients' data, to see what leaks of them."""
    model: Model = Model()
    method: MethodConfig = Field(default_factory=lambda: MethodConfig.model_validate({}))
    training: Training = Training()
    attendance: Attendance = Attendance()
    limits: Limits = Limits()
    privacy: Privacy = Privacy()
    wire: Wire = Wire()
    hostile: Hostile = Hostile()
    grid: Grid = Grid()
    audit: bool = False
    """Whether the server records all that it hears and tells, for audits; it needs a run folder."""
    audit_mb: int = Field(2000, ge=1)
    """The most that the recording of one row and seed may take on disk, in megabytes."""
    references: tuple[str, ...] = ()
    """Rows that are run beside this one; see `REFERENCES`."""

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        for name in self.references:
            if name not in REFERENCES:
                raise FedkdError(
                    "unknown reference row in references",
                    value=name,
                    allowed=", ".join(REFERENCES),
                    fix=did_you_mean(name, REFERENCES),
                )
        block, names = self.grid.block, self.model.names
        if len(block) not in (1, len(names)):
            raise FedkdError(
                "grid.block must be one number, or one for each of model.names",
                value=block,
                allowed=f"1 number, or {len(names)}",
            )
        self._check_wire()
        self._check_hostile()
        if self.limits.rows < 1 and isinstance(self.privacy.server, SecureAggregation):
            raise FedkdError(
                "who answers how many samples is hidden by secure aggregation",
                value=f"limits.rows = {self.limits.rows:g}",
                fix="limits.rows = 1",
            )
        self.privacy.check_server(self.method.exchange, self.method.release.name)
        check_method(self)
        check_privacy(self)
        self._check_own()
        return self

    def _check_hostile(self) -> None:
        lies = self.hostile.share > 0
        if lies and isinstance(self.partition, Own):
            raise FedkdError(
                "nobody can be told to lie with data of its own", fix="hostile.share = 0"
            )
        if lies and not self.method.release.simplex and self.hostile.attack.name != "none":
            raise FedkdError(
                "the attacks are on distributions, and the answers are raw logits",
                value=f"hostile.attack.name = {self.hostile.attack.name!r}",
                fix='method.release.name = "probabilities"',
            )

    def _check_wire(self) -> None:
        release, wire = self.method.release, self.wire
        if "argmax" in (wire.up, wire.down) and not release.simplex:
            raise FedkdError(
                "only the likeliest class is sent, and students learn from raw logits",
                value=f"wire.up = {wire.up!r}, wire.down = {wire.down!r}",
                allowed="float32, float16, int8",
                fix='set that, or method.release.name = "probabilities"',
            )
        if wire.up == "float32":
            return
        if release.coding is not None:
            raise FedkdError(
                f"the answers of method.release.name = {release.name!r} are already coded",
                value=f"wire.up = {wire.up!r}",
                fix='wire.up = "float32"',
            )
        if isinstance(self.privacy.server, SecureAggregation):
            raise FedkdError(
                "answers under a mask are sent whole, as what sums exactly",
                value=f"wire.up = {wire.up!r}",
                fix='wire.up = "float32"',
            )

    def _check_own(self) -> None:
        if not isinstance(self.partition, Own):
            return
        for key, wrong, fix in (
            ("references", bool(self.references), "references = []"),
            ("canaries", self.canaries is not None, "drop the section canaries"),
            (
                "proxy",
                self.uses_pool and self.proxy.name == "public",
                'proxy.name = "contributed" or "foreign"',
            ),
        ):
            if wrong:
                raise FedkdError(
                    f"partition own has no data on the server that {key} could use", fix=fix
                )

    @property
    def uses_pool(self) -> bool:
        """Whether a proxy set is needed; where it is not, clients keep all their data."""
        return self.method.exchange in ("soft-labels", "proxy-labels")

    @property
    def coding_up(self) -> Coding | None:
        """How answers are coded; None: they travel as they are."""
        release = self.method.release
        return release.coding or coding_of(self.wire.up, release.simplex)

    @property
    def coding_down(self) -> Coding | None:
        """How the consensus is coded; None: it travels as it is."""
        return coding_of(self.wire.down, self.method.release.simplex)

    def packing(self, n_samples: int) -> Packing | None:
        """How messages about `n_samples` proxy samples are packed; None: they are not."""
        wire = self.wire
        return Packing(n_samples, wire.mask, wire.zstd) if wire.mask or wire.zstd else None

    @property
    def blocks(self) -> dict[str, int]:
        """How many clients of each model are advanced together: 1 unless a cohort takes more."""
        names = self.model.names
        block = self.grid.block if self.grid.name in ("cohort", "workers", "ray") else (1,)
        return dict(zip(names, block * len(names) if len(block) == 1 else block, strict=True))

    @property
    def at_once(self) -> int:
        """Messages that one call of the client app gets: so many that a block of each model fills.

        Models take turns along the clients.
        """
        most = max(self.blocks.values())
        return 1 if most == 1 else most * len(self.blocks)

    def world(self, seed: int) -> Federation:
        """Who holds which samples; built once a process.

        Raises: FedkdError for impossible data, or settings that these cannot go with.
        """
        proxy = self.proxy if self.uses_pool else None
        world = build(self.data, self.partition, proxy, self.validation, seed, self.canaries)
        check_axes(self, world.train.x[0].numel())
        return world

    def held(self, seed: int, seat: int, source: Source) -> Federation:
        """What the client of a seat knows where each brings its own data; kept once a process.

        Raises: FedkdError for data that do not fit, or where the scenario is to be simulated.
        """
        if not isinstance(self.partition, Own):
            raise FedkdError(
                "this client was started with data of its own, and the scenario deals data out",
                value=f"partition.name = {self.partition.name!r}",
                fix='partition.name = "own" in the scenario, or a client without --data',
            )
        proxy = self.proxy if self.uses_pool else None
        world = held(source, seat, self.partition, proxy, seed)
        check_axes(self, world.train.x[0].numel())
        return world

    def measures(self, round_: int) -> bool:
        """Whether the clients are measured in a round."""
        rounds, every = self.training.rounds, self.training.evaluate_every
        return round_ % every == 0 or round_ == rounds

    def on(self, grid: Grid) -> Scenario:
        """This scenario on another grid; the result is the same."""
        return self.model_copy(update={"grid": grid})

    def row(self, reference: str) -> Scenario:
        """This scenario as one of the `REFERENCES`.

        Where a row has no soft labels, there is nothing for `privacy.server` to protect; where it
        has no proxy set, there are no labels to begin with.
        """
        row = self.model_copy(update={**REFERENCES[reference][1](self), "references": ()})
        if not row.uses_pool:
            begins = self.training.model_copy(update={"pretrain": None})
            row = row.model_copy(update={"training": begins})
        if row.method.exchange == "soft-labels":
            return row
        privacy = self.privacy.model_copy(update={"server": PlainServer()})
        return row.model_copy(update={"privacy": privacy})


def _method(name: str) -> dict[str, Any]:
    return {"method": MethodConfig.model_validate({"name": name})}


def _no_filter(scenario: Scenario) -> dict[str, Any]:
    """Only the filter goes: release, combine and distill stay, else two things would differ."""
    row = METHODS["no-filter"]
    change = {"name": "no-filter", "score": row.score, "gate": row.gate}
    return {"method": scenario.method.model_copy(update=change)}


def _iid(scenario: Scenario) -> dict[str, Any]:
    if isinstance(scenario.partition, Natural):
        owners = load_data(scenario.data).train.client_ids
        return {"partition": Iid(clients=1 if owners is None else len(set(owners.tolist())))}
    if isinstance(scenario.partition, Virtual):
        return {"partition": scenario.partition.model_copy(update={"alpha": None})}
    return {"partition": Iid(clients=scenario.partition.clients)}


def _centralised(scenario: Scenario) -> dict[str, Any]:
    return {"partition": Iid(clients=1), **_method("local-only")}


Change = Callable[[Scenario], dict[str, Any]]
REFERENCES: dict[str, tuple[str, Change]] = {
    "local-only": ("clients learn alone", lambda scenario: _method("local-only")),
    "no-filter": ("every client answers everything", _no_filter),
    "iid": ("the same method, data shared out at random", _iid),
    "fedavg": ("weights are averaged instead (FedAvg)", lambda scenario: _method("fedavg")),
    "proxy-labels": (
        "clients learn the proxy set's true labels, which no method may see",
        lambda scenario: _method("proxy-labels"),
    ),
    "centralised": ("one client holds all the data", _centralised),
}
"""Rows that a comparison carries: a line, and how the scenario changes."""


def parse(table: Mapping[str, Any], *, where: str = "scenario") -> Scenario:
    """The scenario that a table says. Raises: FedkdError for the first thing that is wrong."""
    try:
        return Scenario.model_validate(table)
    except ValidationError as error:
        raise explain(error, Scenario, where) from None


def load(path: str | Path, overrides: Iterable[str] = ()) -> Scenario:
    """Read a TOML file; `overrides` are "training.rounds=5", as `--set` gives them."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedkdError(
            "no such scenario file", value=str(path), fix="see scenarios/*.toml for examples"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FedkdError(f"cannot read the scenario {path}: {error}") from None
    apply(table, overrides)
    return parse(table, where=str(path))


def dump(scenario: Scenario) -> str:
    """The resolved scenario as TOML; `load` reads back an equal one."""
    return tomli_w.dumps(scenario.model_dump(mode="json", exclude_none=True))


@lru_cache(maxsize=32)
def from_json(text: str) -> Scenario:
    """The scenario that a server sent, parsed once a process."""
    try:
        return Scenario.model_validate_json(text)
    except ValidationError as error:
        raise explain(error, Scenario, "the server's scenario") from None

"""What is to be compared: a scenario file, and what its section `[compare]` or the flags name.

A method and a split are each a few `--set`s on the scenario, so all else is equal. A comparison is
never without its reference rows.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from fedkd import config
from fedkd.config import REFERENCES, Scenario
from fedkd.config_errors import explain
from fedkd.config_overrides import apply
from fedkd.data.partition import PARTITIONS
from fedkd.data.proxy import Foreign
from fedkd.errors import FedkdError, did_you_mean
from fedkd.exchange.methods import METHODS
from fedkd.section import Section
from scenarios.simulate import Plan

REFERENCE_ROWS = tuple(name for name in REFERENCES if name != "iid")
"""What a comparison can be held against; `iid` is a split here."""
ALWAYS = ("local-only", "no-filter", "fedavg", "proxy-labels")
"""Without the others; without the filter; with weights instead of answers; with the proxy set's
true labels, which is the most that soft labels could teach."""
PARAMETERS = {
    "dirichlet": "alpha",
    "quantity": "alpha",
    "pathological": "classes_per_client",
    "shards": "shards_per_client",
    "virtual": "alpha",
}
"""What the value after a split's colon is."""


class Choice(Section):
    """A method or a split: its name, what to call it, and what else to set for it."""

    name: str
    label: str = ""
    set: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def called(self) -> str:
        """The label, or else the name."""
        return self.label or self.name


class Asked(Section):
    """The section `[compare]`; what is left out is the scenario's own."""

    methods: tuple[Choice, ...] = ()
    splits: tuple[Choice, ...] = ()
    seeds: tuple[int, ...] = ()
    references: tuple[str, ...] = Field(ALWAYS, min_length=1)


class Run(NamedTuple):
    """A method on a split, with every seed: one run folder."""

    split: str
    method: str
    reference: bool
    scenario: Scenario

    def folder(self, home: Path) -> Path:
        """The run folder."""
        return home / slug(self.split) / slug(self.method)

    @property
    def cells(self) -> list[Plan]:
        """One for each seed."""
        row = self.scenario.method.name
        return [Plan(row, seed, self.scenario) for seed in self.scenario.seeds]


@dataclass(frozen=True)
class Comparison:
    """What is compared; runs by split, in the order asked for, references last."""

    name: str
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    left_out: Mapping[str, str]
    """Of the usual references, those that this scenario cannot have, and why."""

    @property
    def splits(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(run.split for run in self.runs))

    @property
    def methods(self) -> dict[str, bool]:
        """Each method, and whether it is a reference."""
        return {run.method: run.reference for run in self.runs}


def load(path: Path, overrides: Iterable[str] = (), flags: Mapping[str, Any] = {}) -> Comparison:
    """The comparison that a file asks for; `flags` replace keys of its section `[compare]`.

    Raises: FedkdError for an unknown name, what is asked for twice, or a scenario that cannot be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        config.load(path)  # it says what is wrong
        raise
    section = table.pop("compare", {})
    if not isinstance(section, dict):
        raise FedkdError(f"'compare' in {path} must be a section", value=section, fix="[compare]")
    for key, value in {**section, **flags}.items():
        if value == []:
            raise FedkdError(f"nothing is named in {key}", fix=f"leave {key} out, or name some")
    try:
        asked = Asked.model_validate({**section, **flags})
    except ValidationError as error:
        raise explain(error, Asked, f"[compare] of {path}") from None
    apply(table, overrides)
    return comparison(config.parse(table, where=str(path)), asked)


def comparison(base: Scenario, asked: Asked) -> Comparison:
    """Every method and reference on every split. Raises: as `load`."""
    seeds = asked.seeds or base.seeds
    table = {**base.model_dump(), "seeds": seeds, "references": ()}
    methods = asked.methods or (Choice(name=base.method.name),)
    splits = asked.splits or (Choice(name=_split_of(base)),)
    references = [name for name in asked.references if name not in [one.called for one in methods]]
    _once("seed", seeds)
    _once("method", [slug(one.called) for one in methods])
    _once("split", [slug(one.called) for one in splits])
    _once("reference", references)
    for name in references:
        _known("reference", name, REFERENCE_ROWS)
    runs: list[Run] = []
    left_out: dict[str, str] = {}
    for split in splits:
        on_split = _with(table, split, _of_split(split.name))
        for method in methods:
            _known("method", method.name, METHODS)
            what = _with(on_split, method, [f"method.name={method.name}", *_draw_of(base, method)])
            runs.append(_run(base, split, method.called, config.parse(what), False))
        for name in references:
            try:
                runs.append(_run(base, split, name, _row(config.parse(on_split), name), True))
            except FedkdError as error:
                if "references" in asked.model_fields_set:
                    raise
                left_out[name] = str(error)
    return Comparison(base.name, seeds, tuple(runs), left_out)


def _draw_of(base: Scenario, method: Choice) -> list[str]:
    """The `--set`s that let a method ask about as much of the pool a round as all others do."""
    draw = base.method.select.model_dump()
    own = any(change.startswith("method.select") for change in method.set)
    if own or draw["name"] == "all" or METHODS[method.name].exchange != "soft-labels":
        return []
    return [f"method.select.{key}={json.dumps(value)}" for key, value in draw.items()]


def slug(name: str) -> str:
    """A label as the name of a folder.

    >>> slug("edgefd, q 0.5"), slug("dirichlet:0.1")
    ('edgefd-q-0.5', 'dirichlet-0.1')
    """
    kept = "".join(c if c.isalnum() or c in "._-" else " " for c in name)
    return "-".join(kept.split()).strip(".-_")


def _row(scenario: Scenario, reference: str) -> Scenario:
    """The reference row. Raises: FedkdError where the scenario cannot have it."""
    if reference == "fedavg" and len(set(scenario.model.names)) > 1:
        raise FedkdError("fedavg needs one model for all clients", value=scenario.model.names)
    if reference == "proxy-labels" and isinstance(scenario.proxy, Foreign):
        raise FedkdError("a foreign proxy set has no labels to teach", value=reference)
    return config.parse(scenario.row(reference).model_dump())


def _run(base: Scenario, split: Choice, method: str, what: Scenario, reference: bool) -> Run:
    name = f"{base.name}-{slug(split.called)}-{slug(method)}"
    return Run(split.called, method, reference, what.model_copy(update={"name": name}))


def _with(table: Mapping[str, Any], one: Choice, changes: Sequence[str]) -> dict[str, Any]:
    """A scenario's table as a choice changes it."""
    if not slug(one.called):
        raise FedkdError("a label needs a letter or a digit", value=one.called)
    changed = config.parse(table).model_dump()  # a copy, whose sections may be changed
    try:
        apply(changed, [*changes, *one.set])
        return config.parse(changed).model_dump()
    except FedkdError as error:
        raise FedkdError(f"{one.called}: {error}") from None


def _split_of(base: Scenario) -> str:
    """The name that gives the scenario's own partition."""
    own = base.partition.name
    value = getattr(base.partition, PARAMETERS.get(own, ""), None)
    return own if value is None else f"{own}:{value:g}"


def _of_split(name: str) -> list[str]:
    """The `--set`s that a split's name stands for."""
    row, colon, text = name.partition(":")
    known = [key for key in PARTITIONS if key != "own"]
    _known(
        "split",
        row,
        known,
        [f"{k}:{PARAMETERS[k].upper()}" if k in PARAMETERS else k for k in known],
    )
    if not colon:
        return [f"partition.name={row}"]
    if row not in PARAMETERS:
        raise FedkdError(f"the split {row} takes no value", value=name, fix=row)
    return [f"partition.name={row}", f"partition.{PARAMETERS[row]}={text}"]


def _known(kind: str, name: str, known: Iterable[str], allowed: Iterable[str] = ()) -> None:
    names = list(known)
    if name not in names:
        raise FedkdError(
            f"unknown {kind}",
            value=name,
            allowed=", ".join(allowed or names),
            fix=did_you_mean(name, names),
        )


def _once(kind: str, names: Sequence[Any]) -> None:
    for name in names:
        if names.count(name) > 1:
            fix = None if kind == "seed" else 'give each a label: {name = "…", label = "…"}'
            raise FedkdError(f"this {kind} is asked for twice", value=name, fix=fix)

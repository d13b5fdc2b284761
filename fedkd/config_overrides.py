"""`--set section.key=value`: changes to a scenario's table before it is validated."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

from fedkd.data.partition import PARTITIONS
from fedkd.data.proxy import PROXIES
from fedkd.data.sources import SOURCES
from fedkd.errors import FedkdError
from fedkd.exchange.attacks import ATTACKS
from fedkd.exchange.combine import COMBINES
from fedkd.exchange.distill import DISTILLS
from fedkd.exchange.gate import GATES
from fedkd.exchange.regulariser import REGULARISERS
from fedkd.exchange.release import RELEASES
from fedkd.exchange.score import SCORES
from fedkd.exchange.selection import SELECTS
from fedkd.exchange.student import STUDENTS
from fedkd.protection import FILTERS, PROTECTED_RELEASES, SERVERS, TRAININGS

ROWS = {
    "method.score": SCORES,
    "method.gate": GATES,
    "method.release": RELEASES,
    "method.combine": COMBINES,
    "method.distill": DISTILLS,
    "method.select": SELECTS,
    "method.regulariser": REGULARISERS,
    "method.student": STUDENTS,
    "data": SOURCES,
    "hostile.attack": ATTACKS,
    "partition": PARTITIONS,
    "proxy": PROXIES,
    "privacy.training": TRAININGS,
    "privacy.filter": FILTERS,
    "privacy.release": PROTECTED_RELEASES,
    "privacy.server": SERVERS,
}
"""The table that a section's `name` chooses from."""


def apply(table: dict[str, Any], overrides: Iterable[str]) -> None:
    """Change `table` in place. Raises: FedkdError for an override that is not KEY=VALUE."""
    for override in sorted(overrides, key=_outside_in):
        _apply(table, override)


def _outside_in(override: str) -> tuple[int, bool]:
    """A section or a new name drops what was in it, so neither may come after settings in it."""
    key = override.partition("=")[0].strip()
    return (key.count("."), key.rpartition(".")[2] != "name")


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one dotted key; the value is TOML, or else taken as text."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise FedkdError("--set needs KEY=VALUE", value=override, fix="--set training.rounds=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
    for part in parents:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise FedkdError("--set goes through a key that is not a section", value=override)
    if parents and last == "name" and table.get("name") != value:
        _choose(table, ".".join(parents), value)
    table[last] = value


def _choose(section: dict[str, Any], path: str, name: Any) -> None:
    """Drop the settings that the newly named row does not have; `clients`, say, stays."""
    row = ROWS.get(path, {}).get(name)
    known = row.model_fields if row is not None else {}
    for key in [key for key in section if key not in known]:
        del section[key]

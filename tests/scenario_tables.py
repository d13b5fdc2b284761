"""What the tests of scenarios share: the tables, and how to look into a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedkd.config import parse
from fedkd.errors import FedkdError
from fedkd.section import Section

Toml = dict[str, Any]
FILES = [  # a comparison's plan is more than a scenario; tests/scenarios/compare loads those
    path
    for path in sorted((Path(__file__).parents[1] / "scenarios").glob("*.toml"))
    if not path.stem.startswith("compare-")
]
EDGEFD = Path(__file__).parents[1] / "scenarios" / "edgefd-digits.toml"
NEEDED: dict[str, Toml] = {  # keys without a default
    "constant": {"value": 0.5},
    "budget": {"m": 50},
    "npz": {"path": "x.npz"},
    "python": {"path": "package.module:function"},
    "huggingface": {"path": "mnist"},
    "text": {"path": "texts"},
    "huggingface-text": {"path": "wikitext"},
    "swing": {"degree": "density"},
    "gnmax": {"threshold": 5.0, "sigma_threshold": 2.0, "sigma": 1.0},
    "foreign": {"source": {"name": "digits"}},
}
BESIDE: dict[str, Toml] = {  # what else a row goes with
    **{name: {"method": {"release": {"name": "logits"}}} for name in ("l1", "mse", "bckd")},
    "labels": {"method": {"name": "fd"}},
    "soft": {"method": {"score": {"name": "logistic"}}},
}


def nested(path: str, value: Any) -> Toml:
    """{"a": {"b": value}} for "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def chosen(where: str, name: str) -> Toml:
    """A scenario's table that chooses a row, with all that it needs."""
    table = nested(where, {"name": name, **NEEDED.get(name, {})})
    for section, beside in BESIDE.get(name, {}).items():
        table[section] |= beside
    return table


def at(scenario: Any, path: str) -> Any:
    for key in path.split("."):
        scenario = getattr(scenario, key)
    return scenario


def differences(a: Section, b: Section, prefix: str = "") -> set[str]:
    """Dotted keys at which two sections differ."""
    found: set[str] = set()
    for key in type(a).model_fields:
        one, other = getattr(a, key), getattr(b, key)
        if isinstance(one, Section) and type(one) is type(other):
            found |= differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.add(prefix + key)
    return found


def refusal(table: Toml) -> str:
    with pytest.raises(FedkdError) as error:
        parse(table)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path

"""What there is to choose from: the house's tables, for `fedkd list`."""

from __future__ import annotations

from collections.abc import Mapping

from fedkd.config import REFERENCES
from fedkd.config_overrides import ROWS
from fedkd.exchange.methods import METHODS
from fedkd.models.zoo import MODELS
from fedkd.section import Section


def catalogue() -> dict[str, dict[str, str]]:
    """A line for every name, by the key of a scenario that takes it."""

    def lines(rows: Mapping[str, type[Section]]) -> dict[str, str]:
        return {name: row.line() for name, row in rows.items()}

    rows = {f"{key}.name": lines(table) for key, table in ROWS.items()}
    return {
        "method.name": {name: method.line for name, method in METHODS.items()},
        **rows,
        "model.names": {
            name: (build.__doc__ or "").strip().splitlines()[0] for name, build in MODELS.items()
        },
        "references": {name: line for name, (line, _) in REFERENCES.items()},
    }

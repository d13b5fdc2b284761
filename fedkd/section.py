"""The base of every part of a scenario: a frozen, validated value that may also do its part's work.

A row of one of the house's tables (a score, a gate, a partition, a data source, …) is one small
class: its fields are the keys a scenario may set, its docstring is the line that `fedkd list`
prints, its one or two methods are the work. So a new row is one class in one file.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen; unknown keys are errors; NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def line(cls) -> str:
        """The first line of the docstring: what `fedkd list` prints."""
        return (cls.__doc__ or "").strip().splitlines()[0]


def table(*rows: type[Section]) -> dict[str, type[Section]]:
    """The rows of one choice by their `name`, in the order given."""
    return {row.model_fields["name"].default: row for row in rows}

"""What `fedkd audit` does, of a run or of a comparison: audit, tell, and say how to go on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fedkd.config import Scenario
from fedkd.config_sections import Grid
from scenarios.audit import compare as comparing
from scenarios.audit import comparison, keys, run, text
from scenarios.audit.compare import Comparison
from scenarios.audit.protections import Chosen
from scenarios.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to audit, and how to tell of it."""

    parts: tuple[str, ...]
    shadows: int
    grid: Grid | None
    keys: tuple[Path, ...]
    """Folders of clients of a deployment that let themselves be audited."""
    as_json: bool
    console: Console
    words: tuple[str, ...]
    """Options that another call must repeat, besides these parts and shadows."""

    def carry_out(self, folder: Path) -> run.Audit:
        """Audit a run and tell how it goes on."""
        with text.Telling(Console(quiet=True) if self.as_json else self.console) as telling:
            return run.audit(
                folder,
                parts=self.parts,
                shadows=self.shadows,
                keys=keys.read(self.keys),
                grid=self.grid,
                listener=telling,
            )

    def again(self, *words: str) -> str:
        """The command with these options."""
        parts = [word for name in self.parts for word in ("--part", name)]
        shadows = ["--shadows", str(self.shadows)] if self.shadows else []
        return shlex.join(["fedkd", "audit", *words, *parts, *shadows, *self.words])


class Stopped(Exception):
    """By Ctrl-C. The text is the command that goes on."""


def audit(folder: Path, how: Options) -> Sequence[str]:
    """Audit a run and print what was found; returns where the ledgers are contradicted.

    Raises: Stopped; FedkdError as `run.audit`.
    """
    try:
        found = how.carry_out(folder)
    except KeyboardInterrupt:
        raise Stopped(how.again(str(folder))) from None
    if how.as_json:
        print(json.dumps(text.as_table(found), indent=2))
    else:
        for table in text.tables(found):
            how.console.print(table)
    return text.contradictions(found)


def compare(
    scenario: Scenario, path: Path, names: str, baseline: bool, folder: Path, how: Options
) -> Sequence[str]:
    """Compare protections and print the table; returns where the ledgers are contradicted.

    Args: path: the scenario's file; names: with commas between them; folder: where all is kept.
    Raises: Stopped; FedkdError as `compare.compare`.
    """
    only = [] if baseline else ["--no-baseline"]
    command = how.again(str(path), "--compare", names, *only, "--out", str(folder))

    def starts(one: Chosen) -> Progress | None:
        if how.as_json:
            return None
        how.console.print(f"[bold]== {one.name}[/bold]", highlight=False)
        return Progress(how.console, one.scenario)

    def written(so_far: Comparison) -> None:
        comparison.write(so_far, command)

    try:
        found = comparing.compare(
            scenario,
            names.split(","),
            folder,
            baseline=baseline,
            auditor=how.carry_out,
            starts=starts,
            written=written,
        )
    except KeyboardInterrupt:
        raise Stopped(command) from None
    if how.as_json:
        print(json.dumps(comparison.as_table(found), indent=2))
    else:
        how.console.print(comparison.table_of(found))
        how.console.print(f"comparison: {folder / comparison.PAGE}", soft_wrap=True)
    return found.contradictions

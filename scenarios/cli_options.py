"""What the commands of `fedkd` share: options, the console, the grid that options ask for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedkd import config
from fedkd.errors import FedkdError

# Not to a terminal: wide, so that tables in files and pipes keep a line a row.
console = Console(width=None if sys.stdout.isatty() else 120)
INTERRUPTED = 130

Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Share the clients among N processes; 0 is one a core."),
]
Ray = Annotated[
    bool, typer.Option("--ray", help="Share the clients among Ray actors on this machine.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="The same on a running cluster: HOST:PORT, or auto."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
ScenarioFile = Annotated[Path, typer.Argument(help="A scenario file, as scenarios/*.toml.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as runs/NAME-TIME.")]


def placed(
    scenario: config.Scenario, workers: int | None, ray: bool, ray_address: str | None
) -> config.Scenario:
    """The scenario on the grid that the options ask for; the grid's other settings stay."""
    change: dict[str, object] = {}
    if workers is not None and (ray or ray_address is not None):
        raise FedkdError(
            "two grids are asked for",
            value=f"--workers {workers} and {'--ray' if ray else '--ray-address'}",
            fix="leave one out; --ray with --set grid.workers=N limits Ray's workers",
        )
    if workers is not None:
        change = {"name": "workers", "workers": workers}
    elif ray or ray_address is not None:
        change = {"name": "ray", "address": ray_address or ""}
    return scenario.on(scenario.grid.model_copy(update=change))

"""Run a scenario: every row and seed is a cell, and a cell that is done is never run again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from scenarios import quiet  # noqa: F401  # before anything that imports flwr

from clients.app import app as folder_client_app  # isort: skip
from clients.app import make_app as make_client_app
from clients.store import MemoryStore
from fedkd import config, device
from fedkd.config import Scenario
from fedkd.config_sections import Grid
from fedkd.errors import FedkdError
from fedkd.files import locked
from fedkd.models import zoo
from privacy import ledger
from privacy.ledger import Ledger
from scenarios import spending
from scenarios.blocks import calibrated
from scenarios.grids import actors, flower, inline, workers
from scenarios.results import Cell, Result
from scenarios.spending import Ledgers
from server.app import DONE, check_folder
from server.app import LEDGER as SERVER_LEDGER
from server.app import make_app as make_server_app
from server.events import Event, read

CLIENT_APP = "clients.app:app"
Listener = Callable[[str, int, Event], None]
"""Is told row, seed and event."""


def simulate(
    scenario: str | Path | Scenario,
    *,
    folder: str | Path | None = None,
    overrides: tuple[str, ...] = (),
    listener: Listener | None = None,
    **training: Any,
) -> Result:
    """Run a scenario with its references and seeds.

    Args: scenario: a TOML file or a Scenario; folder: keeps events, checkpoints and clients, and
        makes the run resumable: what is already done there is not done again (None keeps nothing
        on disk); overrides: "section.key=value" as `--set` takes them; listener: is told every
        event; training: settings of the section `training`, such as rounds=5.
    Raises: FedkdError for a mistake in the scenario or its data, before anything is run.
    """
    if not isinstance(scenario, Scenario):
        scenario = config.load(scenario, overrides)
    if training:
        table = scenario.model_dump()
        scenario = config.parse({**table, "training": {**table["training"], **training}})
    run_folder = Path(folder) if folder is not None else None
    check_folder(scenario, run_folder)
    for plan in plans(scenario):
        plan.check()
    scenario = calibrated(scenario)
    if run_folder is None:
        cells = [run_cell(plan, None, listener) for plan in plans(scenario)]
    else:
        with locked(run_folder):
            keep_scenario(run_folder, scenario)
            cells = [run_cell(plan, run_folder, listener) for plan in plans(scenario)]
    return Result(scenario=scenario, folder=run_folder, cells=tuple(cells))


def resume(
    folder: str | Path, *, grid: Grid | None = None, listener: Listener | None = None
) -> Result:
    """Go on with a run folder: cells that are done are read, the others go on, on any grid."""
    folder = Path(folder)
    scenario = scenario_of(folder)
    return simulate(scenario.on(grid or scenario.grid), folder=folder, listener=listener)


def scenario_of(folder: Path) -> Scenario:
    """The scenario that a run folder keeps."""
    path = folder / "scenario.toml"
    if not path.exists():
        raise FedkdError("not a run folder", value=str(folder), fix="give a folder under runs/")
    return config.load(path)


def load_result(folder: str | Path) -> Result:
    """The result that a run folder holds so far; rows without a finished round are left out."""
    folder = Path(folder)
    scenario = scenario_of(folder)
    cells = [plan.read(folder) for plan in plans(scenario)]
    return Result(
        scenario=scenario,
        folder=folder,
        cells=tuple(cell for cell in cells if cell.measured),
    )


def new_folder(scenario: Scenario, parent: Path) -> Path:
    """A folder name that says what and when."""
    return parent / f"{scenario.name}-{datetime.now():%Y%m%d-%H%M%S}"


@dataclass(frozen=True)
class Plan:
    """One cell to run."""

    row: str
    seed: int
    scenario: Scenario

    def folder(self, run_folder: Path) -> Path:
        """Where the cell keeps what it makes."""
        return run_folder / self.row / f"seed-{self.seed}"

    def check(self) -> None:
        """Raises: FedkdError if data, partition, models or device do not go together."""
        device.resolve(self.scenario.device)
        train = self.scenario.world(self.seed).train
        channels, height, width = train.x.shape[1:]
        for name in self.scenario.model.names:
            shape = (channels, height, width)
            zoo.build(name, shape, train.n_classes, torch.Generator(), train.x.dtype)

    def read(self, run_folder: Path) -> Cell:
        """The cell as its event log tells it so far."""
        events = list(read(self.folder(run_folder) / "events.jsonl"))
        ledgers = spending.read(self.folder(run_folder) / "clients")
        own = self.folder(run_folder) / SERVER_LEDGER
        return Cell(
            row=self.row,
            seed=self.seed,
            events=events,
            ledgers=ledgers,
            server_ledger=ledger.look(own) if own.exists() else (),
        )


def plans(scenario: Scenario) -> list[Plan]:
    """The scenario's own row first, then its references; each with every seed."""
    rows = {scenario.method.name: scenario}
    rows |= {name: scenario.row(name) for name in scenario.references if name not in rows}
    return [Plan(row, seed, what) for row, what in rows.items() for seed in scenario.seeds]


def run_cell(plan: Plan, run_folder: Path | None, listener: Listener | None) -> Cell:
    """Run a cell, or go on with it; one that is done is only read.

    Args: run_folder: which this process, or its parent, has locked; None keeps nothing on disk.
    """

    def tell(event: Event) -> None:
        if run_folder is None:
            events.append(event)
        if listener is not None:
            listener(plan.row, plan.seed, event)

    events: list[Event] = []
    if run_folder is None:
        own = Ledger()
        ledgers = _carry(plan, None, tell, own)
        return Cell(
            row=plan.row,
            seed=plan.seed,
            events=events,
            ledgers=ledgers,
            server_ledger=own.entries(),
        )
    folder = plan.folder(run_folder)
    if not (folder / DONE).exists():
        _carry(plan, folder, tell, Ledger(folder / SERVER_LEDGER))
        (folder / DONE).touch()
    return plan.read(run_folder)


def _carry(plan: Plan, folder: Path | None, tell: Callable[[Event], None], own: Ledger) -> Ledgers:
    """Run a cell; returns what its clients have recorded, where no folder keeps it.

    Args: own: the server's ledger.
    """
    scenario, n_clients = plan.scenario, plan.scenario.world(plan.seed).n_clients
    settings = scenario.grid
    if settings.name in ("inline", "cohort"):
        store = MemoryStore()
        client_app = folder_client_app if folder else make_client_app(lambda config: store)
        server_app = make_server_app(scenario, plan.seed, folder, tell, own)
        inline.run(server_app, client_app, n_clients, scenario.at_once)
        return {} if folder else store.ledgers()
    with tempfile.TemporaryDirectory() as scratch:
        home = folder or Path(scratch)
        server_app = make_server_app(scenario, plan.seed, home, tell, own)
        if settings.name == "workers":
            workers.run(server_app, CLIENT_APP, n_clients, home, scenario)
        elif settings.name == "ray":
            actors.run(server_app, CLIENT_APP, n_clients, home, scenario)
        else:
            flower.run(server_app, folder_client_app, n_clients, settings)
        return {} if folder else spending.read(home / "clients")


def keep_scenario(folder: Path, scenario: Scenario) -> None:
    """Write a run folder's scenario. Raises: FedkdError if it holds a run of another one."""
    path = folder / "scenario.toml"
    text = config.dump(scenario)
    if path.exists() and config.load(path).on(scenario.grid) != scenario:
        raise FedkdError(
            "the folder holds a run of another scenario",
            value=str(folder),
            fix=f"fedkd resume {folder}, or choose another folder",
        )
    path.write_text(text, encoding="utf-8")

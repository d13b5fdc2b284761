"""A deployment's runs: one folder each, which says what is to be done and what became of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from fedkd import config
from fedkd.config import Scenario
from fedkd.data.partition import Own
from fedkd.errors import FedkdError
from scenarios.deploy.folder import runs, server_settings
from server.app import DONE, FAILED
from server.events import read


@dataclass(frozen=True)
class Run:
    """One run folder of a server."""

    folder: Path

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.name

    @cached_property
    def scenario(self) -> Scenario:
        """What it does."""
        return config.load(self.folder / "scenario.toml")

    @property
    def failed(self) -> Path:
        """The file that says why it stopped."""
        return self.folder / FAILED

    def cell(self, seed: int) -> Path:
        """The folder of one seed."""
        return self.folder / self.scenario.method.name / f"seed-{seed}"

    @property
    def is_done(self) -> bool:
        """Whether every seed is through."""
        return all((self.cell(seed) / DONE).exists() for seed in self.scenario.seeds)

    def rounds_done(self) -> int:
        """Over all seeds."""
        logs = [self.cell(seed) / "events.jsonl" for seed in self.scenario.seeds]
        return sum(event["event"] == "round" for log in logs for event in read(log))

    @property
    def state(self) -> str:
        """done, stopped (with the reason), or round R of all."""
        if self.is_done:
            return "done"
        if self.failed.exists():
            return f"stopped: {self.failed.read_text(encoding='utf-8')}"
        n_rounds = self.scenario.training.rounds * len(self.scenario.seeds)
        return f"{self.rounds_done()} of {n_rounds} rounds"


def all_runs(folder: Path) -> list[Run]:
    """The server's runs, the oldest first."""
    return [Run(path.parent) for path in sorted(runs(folder).glob("[!.]*/scenario.toml"))]


def queue(folder: Path) -> list[Run]:
    """Runs that are to be worked at, the oldest first."""
    return [run for run in all_runs(folder) if not run.failed.exists() and not run.is_done]


def submit(folder: Path, scenario: Scenario) -> Run:
    """Make the folder of a new run; the server sees it when it is whole.

    Raises: FedkdError for a scenario that cannot run in this deployment.
    """
    settings = server_settings(folder)
    n_clients = _n_clients(scenario)
    if n_clients != len(settings.clients):
        raise FedkdError(
            "the scenario and the deployment do not have the same number of clients",
            value=f"{n_clients}, and {len(settings.clients)}: {', '.join(settings.clients)}",
            fix=f"--set partition.clients={len(settings.clients)}; if only some of them come, "
            "--set attendance.quorum too",
        )
    # A reference row is a run of its own: it is submitted by itself.
    scenario = scenario.model_copy(update={"references": ()})
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{scenario.name}"
    part, final = runs(folder) / f".{name}-{os.getpid()}", runs(folder) / name
    if final.exists():
        raise FedkdError("a run of this name was submitted this second", value=name)
    part.mkdir(parents=True)
    (part / "scenario.toml").write_text(config.dump(scenario), encoding="utf-8")
    part.rename(final)
    return Run(final)


def again(folder: Path, name: str) -> Run:
    """Take up a run that stopped. Raises: FedkdError for one that is not there."""
    run = Run(runs(folder) / name)
    if not (run.folder / "scenario.toml").exists():
        known = ", ".join(run.name for run in all_runs(folder)) or "none"
        raise FedkdError("no such scenario file or run", value=name, allowed=f"runs: {known}")
    run.failed.unlink(missing_ok=True)
    return run


def _n_clients(scenario: Scenario) -> int:
    if isinstance(scenario.partition, Own):
        return scenario.partition.clients
    return scenario.world(scenario.seeds[0]).n_clients

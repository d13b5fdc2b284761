"""Carrying a comparison out: cells side by side in processes; what is done is not done again.

A cell is a method on a split with one seed. Each runs in a process of its own threads, so its bits
do not hang on how many run beside it. A cell that fails says why in its folder, and the others go
on; the next call tries it again.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

from fedkd import config
from fedkd.config import Scenario
from fedkd.files import locked
from fedkd.files import write as write_file
from scenarios.blocks import calibrated
from scenarios.compare.plan import Comparison, Run
from scenarios.grids.workers import import_path, process_variables
from scenarios.simulate import Plan, keep_scenario, scenario_of
from server.app import DONE, FAILED
from server.events import Event


@dataclass(frozen=True)
class Job:
    """One cell of a comparison."""

    run: Run
    plan: Plan
    home: Path

    @property
    def folder(self) -> Path:
        """Where the cell keeps what it makes."""
        return self.plan.folder(self.run.folder(self.home))

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return (self.folder / DONE).exists()

    @property
    def failed(self) -> str:
        """Why it stopped when it was last tried, or ""."""
        path = self.folder / FAILED
        return "" if self.done or not path.exists() else path.read_text(encoding="utf-8")

    def __str__(self) -> str:
        return f"{self.run.split}  {self.run.method}  seed {self.plan.seed}"


Told = Callable[[Job, Event | None], None]
"""Is told each round of a job, and None when it is over."""


def jobs(comparison: Comparison, home: Path) -> list[Job]:
    """All cells, seed by seed: whoever stops early has a whole table of the first seeds."""
    cells = [Job(run, plan, home) for run in comparison.runs for plan in run.cells]
    return sorted(cells, key=lambda job: comparison.seeds.index(job.plan.seed))


def carry_out(comparison: Comparison, home: Path, workers: int, told: Told) -> None:
    """Run every cell that is not done, `workers` at a time, below the folder `home`.

    Raises: FedkdError, before anything is run, where a folder holds a run of another scenario, or
        another process works there.
    """
    with ExitStack() as locks:
        locks.enter_context(locked(home))
        for run in comparison.runs:
            locks.enter_context(locked(run.folder(home)))
        runs = [run._replace(scenario=calibrated(run.scenario)) for run in comparison.runs]
        for run in runs:
            _keep(run.scenario, run.folder(home))
        comparison = replace(comparison, runs=tuple(runs))
        _share_out([job for job in jobs(comparison, home) if not job.done], workers, told)


def _keep(scenario: Scenario, folder: Path) -> None:
    """Write the run folder's scenario; it may get more seeds, and keeps those that it has."""
    path = folder / "scenario.toml"
    if path.exists():
        seeds = tuple(dict.fromkeys((*scenario_of(folder).seeds, *scenario.seeds)))
        before = scenario_of(folder).model_copy(update={"seeds": seeds})
        scenario = scenario.model_copy(update={"seeds": seeds})
        if before.on(scenario.grid) == scenario:
            write_file(path, config.dump(scenario).encode())
            return
    keep_scenario(folder, scenario)


class _Worker:
    """A process, the connection to it, and the job that it has."""

    def __init__(self, threads: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scenarios.compare.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **process_variables(threads), **import_path()},
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the parent alone, which ends its workers
            )
        self.connection = Connection(ours.detach())
        self.job: Job | None = None

    def take(self, job: Job) -> None:
        """Begin a job; the process may be dead, which is noticed when it is heard."""
        (job.folder / FAILED).unlink(missing_ok=True)
        self.job = job
        with suppress(ConnectionError):
            self.connection.send((job.plan, job.run.folder(job.home)))

    def hear(self) -> Event | str:
        """A round, or why the job failed; "" once it is over."""
        try:
            said: Event | str = self.connection.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return f"its process died ({how}); if memory was short, use fewer --workers"
        return said

    @property
    def alive(self) -> bool:
        """Whether the process can take a job."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process, dead or alive; a cell goes on from its last checkpoint."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def _share_out(waiting: Sequence[Job], n_workers: int, told: Told) -> None:
    left = list(reversed(waiting))
    busy: list[_Worker] = []
    try:
        while left or busy:
            while left and len(busy) < n_workers:
                busy.append(_Worker(left[-1].plan.scenario.threads))
                busy[-1].take(left.pop())
            heard = wait([worker.connection for worker in busy])
            for worker in [one for one in busy if one.connection in heard]:
                job, said = worker.job, worker.hear()
                assert job is not None
                if not isinstance(said, str):
                    told(job, said)
                    continue
                if said:
                    write_file(job.folder / FAILED, said.encode())
                told(job, None)
                if left and worker.alive:
                    worker.take(left.pop())
                else:
                    busy.remove(worker)
                    worker.end()
    finally:
        for worker in busy:
            worker.end()

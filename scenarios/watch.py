"""`fedkd watch`: a run as it goes on, whoever carries it out."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fedkd.errors import FedkdError
from fedkd.files import is_locked
from scenarios import simulate
from scenarios.deploy.folder import SERVER
from scenarios.deploy.runs import Run, all_runs, queue
from scenarios.follow import follow_all
from scenarios.progress import Progress
from server.app import DONE


def watch(path: Path, console: Console) -> None:
    """Tell what happens in a run until it is over; of a server, in the run that goes on.

    Raises: FedkdError for a folder that is neither.
    """
    if (path / SERVER).exists():
        runs = queue(path) or all_runs(path)[-1:]
        if not runs:
            raise FedkdError(
                "no run was submitted here yet",
                value=str(path),
                fix=f"fedkd deploy submit {path} SCENARIO",
            )
        watch_deployed(runs[0], console)
        return
    scenario = simulate.scenario_of(path)
    if len(path.resolve().parents) > 2 and (path.resolve().parents[2] / SERVER).exists():
        watch_deployed(Run(path.resolve()), console)
        return
    plans = {(plan.row, plan.seed): plan.folder(path) for plan in simulate.plans(scenario)}
    progress = Progress(console, scenario)

    def is_over(row: str, seed: int) -> bool:
        return (plans[row, seed] / DONE).exists() or not is_locked(path)

    logs = {cell: folder / "events.jsonl" for cell, folder in plans.items()}
    for row, seed, event in follow_all(logs, is_over):
        progress(row, seed, event)
    if not all((folder / DONE).exists() for folder in plans.values()):
        console.print(f"not running now; go on with: fedkd resume {path}", soft_wrap=True)


def watch_deployed(run: Run, console: Console) -> None:
    """The same for a run of a server, which waits, stops and goes on by itself.

    Raises: FedkdError with the reason where it stopped for good.
    """
    scenario = run.scenario
    row = scenario.method.name
    progress = Progress(console, scenario)
    logs = {(row, seed): run.cell(seed) / "events.jsonl" for seed in scenario.seeds}

    def is_over(row: str, seed: int) -> bool:
        return (run.cell(seed) / DONE).exists() or run.failed.exists()

    for row, seed, event in follow_all(logs, is_over):
        progress(row, seed, event)
    if run.failed.exists():
        raise FedkdError(
            f"the run stopped: {run.failed.read_text(encoding='utf-8')}",
            fix=f"then: fedkd deploy submit {run.folder.parents[2]} {run.name}",
        )

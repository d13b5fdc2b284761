"""The ServerApp. `flwr run` finds `app`, which reads its job from the run config."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkd.config import Scenario, load
from fedkd.errors import FedkdError
from privacy.ledger import Ledger
from server import rounds
from server.events import EventLog, Listener
from server.recorder import Recorder
from server.setup import Job

LEDGER = "server-ledger.jsonl"
"""In the folder of a run: what the server itself released, where clients trust it with their votes.

It is only ever added to: a resumed run cuts its events back, but what was told stays told.
"""


UPLOADS = "uploads"
"""In the folder of a run with `audit`: the recording of what the server heard and told."""


def make_app(
    scenario: Scenario,
    seed: int,
    folder: Path | None,
    listener: Listener | None = None,
    ledger: Ledger | None = None,
) -> ServerApp:
    """The ServerApp for one run of a scenario.

    Args: folder: where events, checkpoints and the simulated clients' state go, or None to keep
        nothing; listener: is told each event as it happens; ledger: of what the server itself
        tells; by default it is kept in the folder.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _run(grid, scenario, seed, folder, listener, ledger)

    return app


def _run(
    grid: Grid,
    scenario: Scenario,
    seed: int,
    folder: Path | None,
    listener: Listener | None,
    ledger: Ledger | None = None,
) -> None:
    check_folder(scenario, folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    job = Job(
        scenario=scenario,
        seed=seed,
        state_folder=str((folder / "clients").resolve()) if folder else "",
    )
    log = EventLog(folder / "events.jsonl" if folder else None, listener)
    ledger = ledger or Ledger(folder / LEDGER if folder else None)
    uploads = folder / UPLOADS if folder and scenario.audit else None
    with closing(Recorder(uploads, scenario.audit_mb * 10**6)) as recorder:
        rounds.run(grid, job, log, ledger, recorder, folder / "checkpoints" if folder else None)


def check_folder(scenario: Scenario, folder: Path | None) -> None:
    """Raises: FedkdError where a run is to be recorded and has no folder for it."""
    if scenario.audit and folder is None:
        raise FedkdError(
            "audit = true records what the server hears, and this run has no folder to keep it in",
            fix="give the run a folder, or set audit = false",
        )


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """`flwr run .`: the keys `scenario`, `set` and `folder` of the run config say what to do."""
    config = context.run_config
    home = Path(__file__).parent.parent
    scenario = load(home / str(config["scenario"]), str(config["set"]).split())
    folder = Path(str(config["folder"])).expanduser()
    for seed in scenario.seeds:
        _run(grid, scenario, seed, folder / f"{scenario.name}-seed{seed}", print_round)


def print_round(event: dict[str, object]) -> None:
    """One line a round, for Flower's own log."""
    if event["event"] == "round":
        shown = ("round", "accuracy", "accuracy_worst", "accepted", "consensus_accuracy")
        print({key: event[key] for key in shown if key in event}, flush=True)

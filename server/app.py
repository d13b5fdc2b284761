"""The ServerApp. `flwr run` finds `app`, which reads its job from the run config."""

from __future__ import annotations

import json
import secrets
import signal
from contextlib import closing
from pathlib import Path

import httpx
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkd.config import Scenario, load
from fedkd.errors import FedkdError
from fedkd.files import locked, write
from fedkd.processes import die_with_parent
from privacy.ledger import Ledger
from server import rounds
from server.events import EventLog, Listener
from server.job import Job, Seats
from server.recorder import Recorder
from server.transcript import TRANSCRIPT, Member, Witnessed, member

LEDGER = "server-ledger.jsonl"
"""In the folder of a run: what the server itself released, where clients trust it with their votes.

It is only ever added to: a resumed run cuts its events back, but what was told stays told.
"""


DONE = "done"
"""In the folder of a run: it is over."""

FAILED = "failed"
"""In the folder of a deployed run: why it stopped, until it is submitted again."""

NAME = "name"
"""The file that says what the run is called among all that a client takes part in."""
UPLOADS = "uploads"
"""In the folder of a run with `audit`: the recording of what the server heard and told."""


def make_app(
    scenario: Scenario,
    seed: int,
    folder: Path | None,
    listener: Listener | None = None,
    ledger: Ledger | None = None,
    seats: Seats | None = None,
) -> ServerApp:
    """The ServerApp for one run of a scenario.

    Args: folder: where events, checkpoints and the simulated clients' state go, or None to keep
        nothing; listener: is told each event as it happens; ledger: of what the server itself
        tells; by default it is kept in the folder; seats: of a deployment, see `Job`.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _run(grid, scenario, seed, folder, listener, ledger, seats)

    return app


def _run(
    grid: Grid,
    scenario: Scenario,
    seed: int,
    folder: Path | None,
    listener: Listener | None,
    ledger: Ledger | None = None,
    seats: Seats | None = None,
) -> None:
    check_folder(scenario, folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    job = Job(
        scenario=scenario,
        seed=seed,
        state_folder=str((folder / "clients").resolve()) if folder else "",
        name="" if seats is None or folder is None else _name_of(folder),
        seats=seats,
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
    """What the run config says: `flwr run .` gives it `scenario`, `set` and `folder`.

    A deployment gives `folder`, the run's own with its scenario.toml, and `nodes`: the JSON file
    that says which node may speak for which client. A run that was stopped goes on.
    """
    config = context.run_config
    folder = Path(str(config["folder"])).expanduser()
    if "nodes" in config:
        _deployed(grid, folder, Path(str(config["nodes"])))
        return
    home = Path(__file__).parent.parent
    scenario = load(home / str(config["scenario"]), str(config["set"]).split())
    for seed in scenario.seeds:
        _run(grid, scenario, seed, folder / f"{scenario.name}-seed{seed}", print_round)


def _deployed(grid: Grid, folder: Path, nodes: Path) -> None:
    """A run of a deployment. What stops it for good is said in its folder; after kill -9, or where
    the SuperLink went away, nothing is said, and who watches over it starts it again."""
    # Flower's own end of a task waits for a SuperLink that may be gone, and would keep the lock.
    die_with_parent(signal.SIGKILL)
    with locked(folder):
        try:
            scenario, members = load(folder / "scenario.toml"), members_of(nodes)
            seats = {node: one.seat for node, one in members.items()}
            for seed in scenario.seeds:
                cell = folder / scenario.method.name / f"seed-{seed}"
                if not (cell / DONE).exists():
                    cell.mkdir(parents=True, exist_ok=True)
                    witnessed = Witnessed(grid, cell / TRANSCRIPT, members)
                    _run(witnessed, scenario, seed, cell, print_round, seats=seats)
                    (cell / DONE).touch()
        except httpx.HTTPError:
            raise
        except Exception as error:
            (folder / FAILED).write_text(f"{error}", encoding="utf-8")
            raise


def members_of(path: Path) -> dict[int, Member]:
    """Node ids and who they are, of a JSON file {"node id": {"seat": client, "key": …}, …}.

    Raises: FedkdError where it cannot be read.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {int(node): member(int(one["seat"]), one["key"]) for node, one in table.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FedkdError(f"cannot read who may take part: {error}", value=str(path)) from None


def _name_of(folder: Path) -> str:
    """What the run is called among all that a client takes part in: made once, and kept."""
    path = folder / NAME
    if not path.exists():
        write(path, secrets.token_hex(16).encode())
    return path.read_text()


def print_round(event: dict[str, object]) -> None:
    """One line a round, for Flower's own log."""
    if event["event"] == "round":
        shown = ("round", "accuracy", "accuracy_worst", "accepted", "consensus_accuracy")
        print({key: event[key] for key in shown if key in event}, flush=True)

"""`fedkd track`: a run's rounds in TensorBoard or MLflow, while it goes on or after."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedkd.errors import FedkdError
from fedkd.files import is_locked, write
from scenarios import simulate
from scenarios.follow import follow
from scenarios.simulate import Plan
from server.app import DONE
from server.events import Event

TOLD = "told"
"""In TensorBoard's folder of a cell: the newest round that was written. MLflow is asked for it."""
FOLDER = "fedkd.folder"
MOST = 100
"""Parameters that MLflow takes at once."""


class Sink(NamedTuple):
    """Where a cell's rounds go: the newest that is there, and how to add one."""

    newest: int
    add: Callable[[int, Mapping[str, float]], None]


def track(run: Path, out: str, to: str = "tensorboard", *, wait: bool) -> int:
    """Write every number of every round that is new to `out`. Returns: how many rounds that were.

    Args: out: TensorBoard's folder, or MLflow's tracking URI; wait: whether to go on until the run
        is over. Raises: FedkdError for no run folder, or an unknown `to`.
    """
    if to not in SINKS:
        raise FedkdError("unknown tracker", value=to, allowed=", ".join(SINKS))
    n_rounds = 0
    for plan in simulate.plans(simulate.scenario_of(run)):
        cell = plan.folder(run)

        def is_over(cell: Path = cell) -> bool:
            return not wait or (cell / DONE).exists() or not is_locked(run)

        with SINKS[to](out, plan, cell) as sink:
            for event in follow(cell / "events.jsonl", is_over):
                if event["event"] == "round" and event["round"] > sink.newest:
                    sink.add(event["round"], _numbers(event))
                    n_rounds += 1
    return n_rounds


def _numbers(event: Event) -> dict[str, float]:
    kept = {key: value for key, value in event.items() if key not in ("round", "event")}
    return {key: value for key, value in kept.items() if isinstance(value, int | float)}


@contextmanager
def _tensorboard(out: str, plan: Plan, cell: Path) -> Iterator[Sink]:
    from torch.utils.tensorboard import SummaryWriter

    folder = plan.folder(Path(out))
    told = folder / TOLD
    with SummaryWriter(str(folder)) as writer:

        def add(round_: int, numbers: Mapping[str, float]) -> None:
            for key, value in numbers.items():
                writer.add_scalar(key, value, round_)
            writer.flush()
            write(told, str(round_).encode())

        yield Sink(int(told.read_text()) if told.exists() else 0, add)


@contextmanager
def _mlflow(out: str, plan: Plan, cell: Path) -> Iterator[Sink]:
    """A run of the experiment named after the scenario; found again by the cell's folder."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    name, where = plan.scenario.name, str(cell.resolve())
    try:
        client = MlflowClient(out)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        runs = client.search_runs([experiment], f"tags.`{FOLDER}` = '{where}'")
        title, tags = f"{plan.row}/seed-{plan.seed}", {FOLDER: where}
        run = runs[0] if runs else client.create_run(experiment, tags=tags, run_name=title)
    except MlflowException as error:
        raise FedkdError(
            f"MLflow cannot be used: {str(error).splitlines()[0]}",
            value=out,
            fix="--out sqlite:///mlflow.db, or the http address of a tracking server",
        ) from None
    run_id = run.info.run_id

    def add(round_: int, numbers: Mapping[str, float]) -> None:
        told = {**numbers, "round": round_}
        metrics = [Metric(key, float(value), round_, round_) for key, value in told.items()]
        client.log_batch(run_id, metrics=metrics)

    if not runs:
        table = {**plan.scenario.model_dump(mode="json"), "seeds": plan.seed}
        params = [Param(key, value) for key, value in _flat(table)]
        for start in range(0, len(params), MOST):
            client.log_batch(run_id, params=params[start : start + MOST])
    yield Sink(int(run.data.metrics.get("round", 0)), add)
    if (cell / DONE).exists():
        client.set_terminated(run_id)


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value)


SINKS: dict[str, Callable[[str, Plan, Path], AbstractContextManager[Sink]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}

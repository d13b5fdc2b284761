"""Metrics for Prometheus and rounds for TensorBoard, read back by their own packages."""

from __future__ import annotations

import threading
import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from deployments import free_port, until
from fedkd.errors import FedkdError
from scenarios import metrics
from scenarios.cli import app
from scenarios.results import Cell
from scenarios.simulate import simulate
from scenarios.track import track
from small_runs import small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cell]:
    folder = tmp_path_factory.mktemp("run")
    scenario = small(
        method={"name": "edgefd", "combine": {"name": "vouched"}}, references=["local-only"]
    )
    return folder, simulate(scenario, folder=folder).cells[0]


def _more(labels: dict[str, str]) -> list[str]:
    return [value for name, value in labels.items() if name not in metrics.LABELS]


def test_metrics_are_those_of_the_events(run: tuple[Path, Cell]) -> None:
    folder, cell = run
    found = {
        (sample.name, sample.labels["row"], *_more(sample.labels)): sample.value
        for family in text_string_to_metric_families(metrics.text(folder))
        for sample in family.samples
    }
    rounds = cell.of("round")
    assert found["fedkd_rounds", "edgefd"] == found["fedkd_rounds", "local-only"] == 2
    assert found["fedkd_done", "edgefd"] == 1
    assert found["fedkd_accuracy", "edgefd"] == cell.last["accuracy"]
    assert ("fedkd_consensus_accuracy", "local-only") not in found
    for way in ("up", "down", "pool"):
        n_bytes = sum(event[f"bytes_{way}"] for event in rounds)
        assert found["fedkd_bytes_total", "edgefd", way] == n_bytes
    assert found["fedkd_events_total", "edgefd", "client"] == 6
    assert found["fedkd_events_total", "edgefd", "refused"] == 0
    assert found["fedkd_trust", "edgefd", "1"] == rounds[-1]["trust"][1]


def test_metrics_are_served(run: tuple[Path, Cell]) -> None:
    folder, _ = run
    port = free_port()
    serving = threading.Thread(target=metrics.serve, args=(folder, "127.0.0.1", port), daemon=True)
    serving.start()
    said: list[str] = []

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                said.append(page.read().decode())
        except OSError:
            return False
        return True

    until(answers, 20, "nobody serves")
    assert 'fedkd_rounds{row="edgefd",run="small",seed="1"} 2.0' in said[0]
    with pytest.raises(FedkdError, match="cannot serve"):
        metrics.serve(folder, "127.0.0.1", port)


def test_rounds_are_written_once(run: tuple[Path, Cell], tmp_path: Path) -> None:
    folder, cell = run
    assert track(folder, str(tmp_path), wait=True) == 4
    assert track(folder, str(tmp_path), wait=False) == 0
    read = EventAccumulator(str(tmp_path / "edgefd/seed-1"))
    read.Reload()
    scalars = [(one.step, one.value) for one in read.Scalars("accuracy")]
    expected = [(event["round"], pytest.approx(event["accuracy"])) for event in cell.of("round")]
    assert scalars == expected


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # of MLflow's store
def test_mlflow_has_each_round_once(run: tuple[Path, Cell], tmp_path: Path) -> None:
    folder, cell = run
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track(folder, uri, "mlflow", wait=True) == 4
    assert track(folder, uri, "mlflow", wait=False) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("small")
    runs = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"edgefd/seed-1", "local-only/seed-1"}
    mine = runs["edgefd/seed-1"]
    assert mine.info.status == "FINISHED"
    assert mine.data.params["method.combine.name"] == "vouched"
    history = client.get_metric_history(mine.info.run_id, "accuracy")
    expected = [(event["round"], event["accuracy"]) for event in cell.of("round")]
    assert [(one.step, one.value) for one in history] == expected


def test_where_nothing_can_be_tracked_is_said_in_a_line(run: tuple[Path, Cell]) -> None:
    folder, _ = run
    with pytest.raises(FedkdError, match="unknown tracker; got 'wandb'; allowed: tensorboard, mlf"):
        track(folder, "x", "wandb", wait=False)
    with pytest.raises(FedkdError, match="MLflow cannot be used"):
        track(folder, "no-such-scheme://x", "mlflow", wait=False)


def test_what_is_no_run_is_said_in_a_line(tmp_path: Path) -> None:
    for command in ("metrics", "track"):
        done = CliRunner().invoke(app, [command, str(tmp_path)])
        assert isinstance(done.exception, FedkdError)
        assert "not a run folder" in str(done.exception)

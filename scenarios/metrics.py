"""`fedkd metrics`: a run's event logs in the text format of Prometheus, printed or served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedkd.errors import FedkdError
from scenarios import simulate
from server.app import DONE
from server.events import read

Logs = Mapping[tuple[str, int], Path]
LABELS = ("run", "row", "seed")
MEASURED = {
    "accuracy": "Mean over clients, on the test set, in the newest round that was measured.",
    "accuracy_worst": "The lowest of a client there.",
    "own_accuracy": "The same test set by each client's own mix of classes.",
    "consensus_accuracy": "Share of the answered proxy samples whose consensus is right.",
    "server_accuracy": "Of the server's own model, on the test set, where it has one.",
    "accepted": "Share of the proxy set that a client answers.",
}
COUNTED = ("client", "refused", "late", "left", "joined", "repeated")


def logs_of(folder: Path) -> Logs:
    """The event logs of a run by row and seed. Raises: FedkdError for another folder."""
    scenario = simulate.scenario_of(folder)
    return {
        (plan.row, plan.seed): plan.folder(folder) / "events.jsonl"
        for plan in simulate.plans(scenario)
    }


class RunCollector(Collector):
    """Reads the logs anew for each scrape: the run itself knows nothing of it."""

    def __init__(self, folder: Path) -> None:
        self._name, self._logs = simulate.scenario_of(folder).name, logs_of(folder)

    def collect(self) -> Iterator[Metric]:
        """Every figure of every cell."""
        rounds = GaugeMetricFamily("fedkd_rounds", "Rounds that are finished.", labels=LABELS)
        done = GaugeMetricFamily("fedkd_done", "1 once the last round is finished.", labels=LABELS)
        seconds = CounterMetricFamily("fedkd_round_seconds", "Of all rounds.", labels=LABELS)
        sent = CounterMetricFamily(
            "fedkd_bytes", "Payload of all rounds.", labels=(*LABELS, "direction")
        )
        counted = CounterMetricFamily(
            "fedkd_events",
            "How often a client took part, was refused, late, left or joined; rounds repeated.",
            labels=(*LABELS, "event"),
        )
        gauges = {
            key: GaugeMetricFamily(f"fedkd_{key}", line, labels=LABELS)
            for key, line in MEASURED.items()
        }
        trust = GaugeMetricFamily(
            "fedkd_trust", "How far a client is to be believed.", labels=(*LABELS, "client")
        )
        for (row, seed), log in self._logs.items():
            cell = [self._name, row, str(seed)]
            events = list(read(log))
            over = [event for event in events if event["event"] == "round"]
            rounds.add_metric(cell, len(over))
            done.add_metric(cell, float((log.parent / DONE).exists()))
            seconds.add_metric(cell, sum(event["seconds"] for event in over))
            for way in ("up", "down", "pool"):
                n_bytes = sum(event[f"bytes_{way}"] for event in over)
                sent.add_metric([*cell, way], n_bytes)
            kinds = Counter(event["event"] for event in events)
            for kind in COUNTED:
                counted.add_metric([*cell, kind], kinds[kind])
            for key, gauge in gauges.items():
                found = [event[key] for event in over if event.get(key) is not None]
                if found:
                    gauge.add_metric(cell, found[-1])
            for client, value in zip(
                *(over[-1].get(key, ()) for key in ("trusted", "trust")) if over else ((), ()),
                strict=True,
            ):
                trust.add_metric([*cell, str(client)], value)
        yield from (rounds, done, seconds, sent, counted, *gauges.values(), trust)


def text(folder: Path) -> str:
    """All metrics of a run, as Prometheus reads them."""
    return generate_latest(_registry(folder)).decode()


def serve(folder: Path, host: str, port: int) -> None:
    """Serve them until Ctrl-C. Raises: FedkdError where the port cannot be had."""
    try:
        server, thread = start_http_server(port, addr=host, registry=_registry(folder))
    except OSError as error:
        raise FedkdError(
            f"cannot serve there: {error.strerror}", value=f"{host}:{port}", fix="another --port"
        ) from None
    try:
        thread.join()
    finally:
        server.shutdown()
        server.server_close()


def _registry(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(RunCollector(folder))
    return registry

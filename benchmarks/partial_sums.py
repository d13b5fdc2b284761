"""When partial sums pay: CPU time of the server and of all workers, and bytes, a round.

Clients do nothing but encode an answer, and `share` of the proxy samples is answered by each; what
differs is who adds the answers up (`server.condense`). Medians over the rounds after the first.
Linux only. `python benchmarks/partial_sums.py --clients 200 --samples 25000 --share 1.0`
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from functools import lru_cache
from multiprocessing import connection
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd import config, payload, payload_answers
from scenarios.grids import workers
from scenarios.grids.workers import WorkersGrid
from server.app import make_app
from server.events import Event

N_CLASSES = 10
SHARE = "FEDKD_SHARE"

app = ClientApp()
app.query("pool")(lambda message, context: _reply(message))
app.evaluate()(lambda message, context: _reply(message))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answers to a run of the samples: each client's begins somewhere else."""
    said = message.content.config_records["config"]
    ids, values = _answer(str(said["scenario"]), int(context.node_config["partition-id"]))
    client = int(context.node_config["partition-id"])
    answer = payload_answers.Answer(client, int(str(said["round"])), ids, values)
    return _reply(message, payload_answers.encode_answer(answer))


@lru_cache(maxsize=1000)
def _ids(n_samples: int, client: int) -> np.ndarray:
    n = round(float(os.environ[SHARE]) * n_samples)
    start = int(np.random.default_rng(client).integers(n_samples))
    return np.sort((start + np.arange(n)) % n_samples).astype(np.int32)


@lru_cache(maxsize=1)
def _values(n_samples: int) -> np.ndarray:
    draws = np.random.default_rng(0).dirichlet(np.ones(N_CLASSES), n_samples)
    return draws.astype(np.float32)


def _answer(scenario: str, client: int) -> tuple[np.ndarray, np.ndarray]:
    n_samples = config.from_json(scenario).proxy.size
    ids = _ids(n_samples, client)
    return ids, _values(n_samples)[: len(ids)]


def _reply(message: Message, data: payload.Bytes | None = None) -> Message:
    content = RecordDict({"metrics": MetricRecord()})
    if data is not None:
        content["payload"] = ArrayRecord({"bytes": Array(data)})
    return Message(content, reply_to=message)


def scenario_of(folder: Path, n_samples: int, given: argparse.Namespace) -> config.Scenario:
    """Our server over a proxy set of samples of one pixel, which nobody looks at."""
    labels = np.arange(n_samples + N_CLASSES) % N_CLASSES
    pixels = np.zeros((len(labels), 1, 1, 1), dtype=np.uint8)
    path = folder / f"{n_samples}.npz"
    np.savez(path, x=pixels, y=labels, x_test=pixels[:N_CLASSES], y_test=labels[:N_CLASSES])
    return config.parse(
        {
            "validation": 0,
            "data": {"name": "npz", "path": str(path)},
            "partition": {"name": "virtual", "clients": given.clients, "samples": 2},
            "proxy": {"name": "public", "size": n_samples},
            "method": {"name": "no-filter"},
            "training": {"rounds": given.rounds},
            "grid": {"name": "workers", "workers": given.workers},
        }
    )


def workers_cpu_s() -> float:
    """CPU seconds of this process's children so far."""
    own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in own]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def measure(scenario: config.Scenario, *, condensed: bool) -> dict[str, float]:
    """One run."""
    cpu, theirs, seconds, came = [0.0], [0.0], [0.0], [0]
    received = connection.Connection._recv_bytes

    def counted(self: connection.Connection, maxsize: int | None = None) -> object:
        buffer = received(self, maxsize)
        came[-1] += buffer.tell()
        return buffer

    def note(event: Event) -> None:
        assert event["event"] != "refused", event
        if event["event"] == "round":
            cpu.append(time.process_time())
            theirs.append(workers_cpu_s())
            came.append(0)
            seconds.append(event["seconds"])

    connection.Connection._recv_bytes = counted
    WorkersGrid.condenses = condensed
    try:
        with tempfile.TemporaryDirectory() as folder:
            server = make_app(scenario, 1, None, note)
            n_clients = scenario.partition.clients
            workers.run(server, "partial_sums:app", n_clients, Path(folder), scenario)
    finally:
        connection.Connection._recv_bytes = received
    return {
        "server, CPU s": statistics.median(np.diff(cpu)[1:].tolist()),
        "workers, CPU s": statistics.median(np.diff(theirs)[1:].tolist()),
        "round, s": statistics.median(seconds[2:]),
        "MB": statistics.median(came[1:-1]) / 1e6,
    }


def main() -> None:
    """Print a table row for each setting: one by one -> in sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--samples", type=int, nargs="+", default=[25_000])
    parser.add_argument("--share", type=float, nargs="+", default=[1.0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print("| samples | share | server, CPU s | workers, CPU s | round, s | MB |")
    print("|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for n_samples, share in itertools.product(given.samples, given.share):
            os.environ[SHARE] = str(share)
            scenario = scenario_of(Path(folder), n_samples, given)
            one, other = (measure(scenario, condensed=condensed) for condensed in (False, True))
            cells = [f"{one[key]:.3f} -> {other[key]:.3f}" for key in one]
            print(f"| {n_samples} | {share} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

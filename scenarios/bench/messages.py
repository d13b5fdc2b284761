"""W0: what messages cost. Clients do nothing and answer 1 MB; there is no model and no training.

`raw` asks every node and reads every reply. `server` runs our server as it is: it asks with
`train`, decodes and checks each client's freshly encoded answer, adds it to the votes, measures
the client's filter, then sends the consensus with `evaluate`. So a round of the second has twice
as many messages; what is counted is clients.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedkd import config, payload, payload_answers
from fedkd.config_sections import Grid as GridSection
from scenarios.bench.clock import Clock
from scenarios.grids import flower, inline
from server.app import make_app
from server.calls import POLL_S, ask, record_of
from server.events import Event

PATHS = ("raw", "server")
N_SAMPLES, N_CLASSES = 25_000, 10
"""Soft labels of 1 MB as float32."""
IDS = np.arange(N_SAMPLES, dtype=np.int32)
VALUES = np.full((N_SAMPLES, N_CLASSES), 1 / N_CLASSES, dtype=np.float32)
TIMEOUT_S = 600.0

app = ClientApp()


@app.query("raw")
def raw(message: Message, context: Context) -> Message:
    """1 MB, encoded anew."""
    content = RecordDict({"payload": ArrayRecord({"values": Array(VALUES)})})
    return Message(content, reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who it is; only Flower's engine makes the server ask."""
    nothing = np.zeros((0, 1, 1, 1), dtype=np.uint8)
    client = int(context.node_config["partition-id"])
    greeting = payload.Hello(client, 2, N_CLASSES, nothing)
    return _reply(message, payload.encode_hello(greeting))


@app.query("pool")
def pool(message: Message, context: Context) -> Message:
    """Nothing."""
    return _reply(message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """An answer to every proxy sample, encoded and sent as a client of ours does."""
    client = int(context.node_config["partition-id"])
    round_ = int(str(message.content.config_records["config"]["round"]))
    answer = payload_answers.Answer(client, round_, IDS, VALUES)
    return _reply(message, payload_answers.encode_answer(answer))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Nothing."""
    return _reply(message)


def _reply(message: Message, data: payload.Bytes | None = None) -> Message:
    content = RecordDict({"metrics": MetricRecord()})
    if data is not None:
        content["payload"] = record_of(data)
    return Message(content, reply_to=message)


def carry(grid_name: str, path: str, n_clients: int, n_rounds: int) -> dict[str, Any]:
    """All rounds of a path on the grid `inline` or `flower`; see `scenarios.bench.runs`."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if path == "raw":
            server_app = _raw_server(n_clients, n_rounds, clock)
        else:
            server_app = _our_server(n_clients, n_rounds, clock, Path(folder) / "data.npz")
        if grid_name == "inline":
            inline.run(server_app, app, n_clients)
        else:
            flower.run(server_app, app, n_clients, GridSection(name="flower"))
    return clock.report(n_clients)


def _raw_server(n_clients: int, n_rounds: int, clock: Clock) -> ServerApp:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(ids := sorted(grid.get_node_ids())) < n_clients:
            time.sleep(POLL_S)
        clock.tick()
        for _ in range(n_rounds):
            nodes = dict(enumerate(ids))
            for reply in ask(grid, nodes, RecordDict(), "query.raw", TIMEOUT_S):
                assert reply.content is not None, reply.failure
                reply.content.array_records["payload"]["values"].numpy()
            clock.tick()

    return server_app


def _our_server(n_clients: int, n_rounds: int, clock: Clock, data: Path) -> ServerApp:
    """Our server over a proxy set of samples of one pixel, which nobody looks at."""
    labels = np.arange(N_SAMPLES + N_CLASSES) % N_CLASSES
    pixels = np.zeros((len(labels), 1, 1, 1), dtype=np.uint8)
    np.savez(data, x=pixels, y=labels, x_test=pixels[:N_CLASSES], y_test=labels[:N_CLASSES])
    scenario = config.parse(
        {
            "validation": 0,
            "data": {"name": "npz", "path": str(data)},
            "partition": {"name": "virtual", "clients": n_clients, "samples": 2},
            "proxy": {"name": "public", "size": N_SAMPLES},
            "method": {"name": "no-filter"},
            "training": {"rounds": n_rounds, "timeout_s": TIMEOUT_S},
        }
    )

    def note(event: Event) -> None:
        if event["event"] == "refused":
            raise RuntimeError(event["reason"])
        if event["event"] == "round":
            clock.took(event["seconds"])

    return make_app(scenario, 1, None, note)

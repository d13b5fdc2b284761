"""W0: what messages cost. Clients do nothing and answer 1 MB; there is no model and no data.

`raw` asks every node and reads every reply. `server` plays rounds of our server: it asks with
`train`, decodes and checks each client's freshly encoded answer, adds it to the votes, measures
its filter, then sends the consensus with `evaluate`. So a round of the second has twice as many
messages; what is counted is clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedkd import config, payload
from scenarios.grids import flower, inline
from scenarios.grids.nodes import FIRST_NODE_ID
from server.calls import POLL_S, ask
from server.events import EventLog
from server.exchanges import exchange_of
from server.rounds import play
from server.setup import Job, Roster

N_SAMPLES, N_CLASSES = 25_000, 10
"""Soft labels of 1 MB as float32."""
PATHS = ("raw", "server")

IDS = np.arange(N_SAMPLES, dtype=np.int32)
VALUES = np.full((N_SAMPLES, N_CLASSES), 1 / N_CLASSES, dtype=np.float32)

app = ClientApp()


@app.query("raw")
def raw(message: Message, context: Context) -> Message:
    """1 MB, encoded anew."""
    content = RecordDict({"payload": ArrayRecord({"values": Array(VALUES)})})
    return Message(content, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """An answer to every proxy sample, as a client encodes it."""
    client = int(context.node_config["partition-id"])
    round_ = int(str(message.content.config_records["config"]["round"]))
    data = payload.encode_answer(payload.Answer(client, round_, IDS, VALUES))
    content = {"payload": ArrayRecord({"bytes": Array(data)}), "metrics": MetricRecord()}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Nothing."""
    return Message(RecordDict({"metrics": MetricRecord()}), reply_to=message)


def carry(
    grid_name: str, path: str, n_clients: int, n_rounds: int, tick: Callable[[], None]
) -> None:
    """All rounds on the grid `inline` or `flower`; `tick` before the first and after each."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(ids := sorted(grid.get_node_ids())) < n_clients:
            time.sleep(POLL_S)
        nodes = dict(enumerate(ids))
        round_of = _raw_round if path == "raw" else _server_round(nodes)
        tick()
        for round_ in range(1, n_rounds + 1):
            round_of(grid, nodes, round_)
            tick()

    if grid_name == "inline":
        inline.run(server_app, app, n_clients)
    else:
        flower.run(server_app, app, n_clients, config.Grid(name="flower"))


def _raw_round(grid: Grid, nodes: dict[int, int], round_: int) -> None:
    for reply in ask(grid, nodes, RecordDict(), "query.raw", 600):
        assert reply.content is not None, reply.failure
        reply.content.array_records["payload"]["values"].numpy()


def _server_round(nodes: dict[int, int]) -> Callable[[Grid, dict[int, int], int], None]:
    """A round of the real server over a made-up proxy set."""
    scenario = config.parse({"method": {"name": "no-filter"}})
    job = Job(scenario=scenario, seed=1, state_folder="")
    roster = Roster(
        nodes=nodes,
        class_counts={client: np.ones(N_CLASSES, dtype=np.int64) for client in nodes},
        n_classes=N_CLASSES,
        shape=(1, 1, 1),
        pool=payload.Pool(
            np.zeros((N_SAMPLES, 1, 1, 1), dtype=np.uint8), np.full(N_SAMPLES, -1, dtype=np.int32)
        ),
        labels=np.arange(N_SAMPLES) % N_CLASSES,
        digest="",
    )
    log, exchange = EventLog(None), exchange_of(job, roster)
    return lambda grid, nodes, round_: play(grid, job, log, roster, exchange, round_)

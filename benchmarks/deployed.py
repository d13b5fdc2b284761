"""A round trip over TLS with node keys: fedkd's client and calls beside Flower's own.

    python benchmarks/deployed.py --rounds 12 --megabytes 1

One SuperLink on this machine, two clients, one app: it answers with the bytes that it got, in
reverse. First Flower's SuperNodes and `send_and_receive` carry it, then `clients.node` and
`server.calls`. Every round sends other bytes, since a SuperLink keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from flwr.app import Context, Message, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

from clients.fleet import HEARTBEAT_S, Fleet  # noqa: E402
from clients.node import Node, serve  # noqa: E402
from deployments import free_port, until  # noqa: E402
from scenarios.deploy import init  # noqa: E402
from scenarios.deploy.children import environment  # noqa: E402
from scenarios.deploy.folder import client_settings, nodes_file, server_settings  # noqa: E402
from scenarios.deploy.keys import read_node_key  # noqa: E402
from scenarios.deploy.server import PROJECT, Watch  # noqa: E402
from server.calls import record_of  # noqa: E402

NAMES = ["client-1", "client-2"]
PATIENCE_S = 400.0
APP = '''\
"""An app that only carries bytes, and the time that takes."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from server.calls import ask

server = ServerApp()
client = ClientApp()


def record(data):
    array = Array("uint8", (len(data),), "raw", data)
    return RecordDict({"payload": ArrayRecord({"bytes": array})})


@client.query()
def echo(message, context):
    data = message.content["payload"]["bytes"].data
    return Message(record(data[::-1]), reply_to=message)


@server.main()
def main(grid, context):
    config = context.run_config
    nodes = [int(node) for node in json.loads(Path(config["nodes"]).read_text())]
    while set(grid.get_node_ids()) < set(nodes):
        time.sleep(0.1)
    seconds = []
    for round_ in range(config["rounds"]):
        size = int(config["megabytes"] * 2**20)
        content = record(np.random.default_rng(round_).bytes(size))
        start = time.perf_counter()
        if config["ours"]:
            replies = ask(grid, dict(enumerate(nodes)), content, "query", 120)
        else:
            out = [Message(content, node, "query") for node in nodes]
            replies = grid.send_and_receive(out, timeout=120)
        found = [one.content for one in replies]
        seconds.append(time.perf_counter() - start)
        want = content["payload"]["bytes"].data[::-1]
        assert [one["payload"]["bytes"].data for one in found] == [want] * len(nodes)
    part = Path(config["out"] + ".part")
    part.write_text(json.dumps(seconds))
    part.rename(config["out"])
'''


def answer(folder: Path) -> None:
    """One client of ours with the echo app, until Ctrl-C."""
    settings, stop, app = client_settings(folder), threading.Event(), ClientApp()

    @app.query()
    def echo(message: Message, context: Context) -> Message:
        data = message.content["payload"]["bytes"].data
        return Message(RecordDict({"payload": record_of(data[::-1])}), reply_to=message)

    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ca, key = (folder / "ca.crt").read_bytes(), read_node_key(folder / "key")
    fleet = Fleet(settings.server, ca, key, HEARTBEAT_S)
    serve(Node(fleet, app, {}, folder / "state"), print, stop, HEARTBEAT_S)


def measure(folder: Path, ours: bool, rounds: int, megabytes: float) -> list[float]:
    """Seconds of each round trip."""
    server, clients = folder / "server", [folder / "clients" / name for name in NAMES]
    settings, env = server_settings(server), environment(server)
    processes = []
    for client in clients:
        (client / "state").mkdir(exist_ok=True)
        words = [sys.executable, __file__, "--client", str(client)]
        if not ours:
            words = ["flower-supernode", "--root-certificates", str(client / "ca.crt")]
            words += ["--superlink", settings.link_address, "--host", "127.0.0.1"]
            words += ["--port", str(free_port()), "--auth-supernode-private-key"]
            words += [str(client / "key")]
        log = (client / "bench.log").open("ab")
        processes.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))
    out = folder / ("ours.json" if ours else "stock.json")
    config = f'ours={str(ours).lower()} rounds={rounds} megabytes={megabytes:.6f} out="{out}" '
    config += f'nodes="{nodes_file(server)}"'
    run = ["flwr", "run", str(server / "state/app"), "here", "--run-config", config]
    try:
        done = subprocess.run(run, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        until(out.exists, PATIENCE_S, f"no result; see {folder}")
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)
    seconds: list[float] = json.loads(out.read_text())
    return seconds


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        return answer(args.client)
    with tempfile.TemporaryDirectory(prefix="fedkd-deployed-") as name:
        folder = Path(name)
        init.init(folder, ["localhost"], free_port(), NAMES)
        watch = Watch(folder / "server", server_settings(folder / "server"), print)
        try:
            watch.begin()
            app = folder / "server/state/app"
            (app / "fedkd_deployed.py").write_text(APP)
            extra = 'rounds = 1\nmegabytes = 1.0\nours = true\nout = ""\n'
            (app / "pyproject.toml").write_text(PROJECT + extra)
            print("| carried by | median s | least | most |\n|---|---:|---:|---:|")
            for ours, what in ((False, "Flower's SuperNode"), (True, "fedkd")):
                took = measure(folder, ours, args.rounds, args.megabytes)
                middle = statistics.median(took)
                print(f"| {what} | {middle:.2f} | {min(took):.2f} | {max(took):.2f} |", flush=True)
        finally:
            watch.end()
    return None


if __name__ == "__main__":
    main()

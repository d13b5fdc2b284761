"""Many clients of one server on this machine: does every reply come, and does memory stay flat?

    python benchmarks/load.py --clients 200 --rounds 20

One deployment, over TLS, with a key a client. Clients are what `fedkd deploy client` runs, with
folders of their own; a process carries many of them, one turn after another, since 200
interpreters do not fit. Server, SuperLink and ServerApp are the real processes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from sklearn.datasets import load_digits

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from clients.app import app  # noqa: E402
from clients.fleet import Fleet, NotAccepted, Unreachable  # noqa: E402
from clients.node import Node  # noqa: E402
from clients.signing import Signer  # noqa: E402
from deployments import Deployment, until  # noqa: E402
from fedkd import config  # noqa: E402
from fedkd.config import Scenario  # noqa: E402
from scenarios.deploy.client import config_of, source_of  # noqa: E402
from scenarios.deploy.folder import client_settings  # noqa: E402
from scenarios.deploy.keys import read_node_key  # noqa: E402
from server.events import Event, read  # noqa: E402

PARTS = {"superlink": "flower-superlink", "serverapp": "flwr-serverapp"}
MIB = 2**20
HEARTBEAT_S = 30
"""What `client.toml` should say for so many."""


def carry(folders: list[Path]) -> None:
    """Answer for many clients, in turns, until the process is ended."""
    nodes = []
    for folder in folders:
        settings = client_settings(folder)
        key, ca = read_node_key(folder / "key"), (folder / "ca.crt").read_bytes()
        state = folder / "state"
        state.mkdir(exist_ok=True)
        fleet = Fleet(settings.server, ca, key, HEARTBEAT_S)
        source = source_of(str(folder / "data.npz"))
        signer = Signer(key, settings.seat, state)
        nodes.append(Node(fleet, app, config_of(settings, source, state), state, signer))
    for node in nodes:
        node.join()
    print(f"{len(nodes)} joined", flush=True)
    threading.Thread(target=_beat, args=(nodes,), daemon=True).start()
    while True:
        start = time.monotonic()
        for node in nodes:
            with suppress(Unreachable, NotAccepted):
                node.turn()
        time.sleep(max(0.0, 0.5 - (time.monotonic() - start)))


def _beat(nodes: list[Node]) -> None:
    while True:
        start = time.monotonic()
        for node in nodes:
            with suppress(Unreachable, NotAccepted):
                node.fleet.beat()
        time.sleep(max(0.0, HEARTBEAT_S / 2 - (time.monotonic() - start)))


def give_data(folders: list[Path]) -> None:
    """Each client gets 60 digits of its own, drawn with its number as the seed, and a test set."""
    x, y = load_digits(return_X_y=True)
    x = (x * (255 / 16)).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    for i, folder in enumerate(folders):
        mine = np.random.default_rng(i).choice(1600, 60, replace=False)
        tests = {"x_test": x[1600:], "y_test": y[1600:]}
        np.savez(folder / "data.npz", x=x[mine], y=y[mine], **tests)


def scenario(clients: int, rounds: int) -> Scenario:
    """A pool of three digits of each client; everyone is needed in every step."""
    return config.parse(
        {
            "name": "load",
            "validation": 0,
            "partition": {"name": "own", "clients": clients, "classes": 10},
            "proxy": {"name": "contributed", "fraction": 0.05},
            "training": {"rounds": rounds, "timeout_s": 600},
            "attendance": {"gather_s": 600, "quorum": 1.0, "repeats": 0},
            "references": [],
        }
    )


def measured(real: Deployment, loaders: dict[str, psutil.Process]) -> dict[str, float]:
    """Resident MiB of the server's processes and of those that carry clients."""
    watched = dict(loaders)
    server = psutil.Process(real.processes["server"].pid)
    watched["server"] = server
    for process in server.children(recursive=True):
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            watched |= {name: process for name, word in PARTS.items() if word in words}
    found = {}
    for name, process in watched.items():
        with suppress(psutil.Error):
            found[name] = process.memory_info().rss / MIB
    return found


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--carriers", type=int, default=2, help="processes that carry clients")
    parser.add_argument("--carry", nargs="+", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.carry:
        carry(args.carry)
    folder = Path(tempfile.mkdtemp(prefix="fedkd-load-"))
    real = Deployment(folder / "real", args.clients)
    homes = [real.folder / "clients" / name for name in real.names]
    give_data(homes)
    carriers: list[subprocess.Popen[bytes]] = []
    logs = [folder / f"carrier-{i}.log" for i in range(args.carriers)]
    try:
        start = time.monotonic()
        real.start("server")
        real.wait_for("server", "serving", 300)
        print(f"{args.clients} keys registered after {time.monotonic() - start:.0f} s", flush=True)
        for i, log in enumerate(logs):
            words = [sys.executable, __file__, "--carry", *map(str, homes[i :: args.carriers])]
            with log.open("wb") as out:
                carriers.append(subprocess.Popen(words, stdout=out, stderr=out))
        until(lambda: all("joined" in log.read_text() for log in logs), 600, "not all joined")
        print(f"all joined after {time.monotonic() - start:.0f} s", flush=True)
        report(real, carriers, scenario(args.clients, args.rounds))
    finally:
        for process in carriers:
            process.kill()
        real.end()
    shutil.rmtree(folder)


def report(real: Deployment, carriers: list[subprocess.Popen[bytes]], wanted: Scenario) -> None:
    """Submit the run and print a line a round, then how memory grew.

    Raises: SystemExit if a reply was lost, or a process died.
    """
    loaders = {f"carrier {i}": psutil.Process(each.pid) for i, each in enumerate(carriers)}
    run = real.submit(wanted)
    log = run.cell(1) / "events.jsonl"
    rows: list[dict[str, float]] = []
    lost: list[Event] = []
    before = time.monotonic()
    while len(rows) < wanted.training.rounds:
        if run.failed.exists() or any(each.poll() is not None for each in carriers):
            why = run.failed.read_text() if run.failed.exists() else "a carrier died"
            raise SystemExit(f"{why}; kept: {real.folder}")
        time.sleep(0.5)
        events = list(read(log)) if log.exists() else []
        rounds = [event for event in events if event["event"] == "round"]
        lost = [e for e in events if e["event"] in ("missing", "refused", "repeated", "left")]
        if len(rounds) > len(rows):
            now = time.monotonic()
            rows.append(measured(real, loaders))
            sizes = ", ".join(f"{name} {size:.0f}" for name, size in sorted(rows[-1].items()))
            heard = rounds[-1]["n_clients"]
            print(f"round {len(rounds):2}  {now - before:5.1f} s  {heard} heard  MiB: {sizes}")
            sys.stdout.flush()
            before = now
    print(f"lost, refused or repeated: {len(lost)}")
    if (half := len(rows) // 2) > 1:
        for name in sorted(rows[-1]):
            late = [row[name] for row in rows[half:] if name in row]
            slope = statistics.linear_regression(range(len(late)), late).slope
            print(f"{name}: {late[-1]:.0f} MiB at the end, {slope:+.2f} MiB a round since {half}")
    if lost:
        print(*lost[:5], sep="\n")
        raise SystemExit(1)


if __name__ == "__main__":
    main()

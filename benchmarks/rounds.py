"""How many clients a second? The same work on every grid of ours, and on what others offer.

`python benchmarks/rounds.py --work W1 --repeats 3` runs the engines one after the other, again and
again (A B C A B C …), each in a process of its own, and prints the median of the clients a second
with the spread and the ratio to `inline`. A round: one local epoch of SGD in batches of 64 on each
client's images, then its answers to 6,000 proxy images; two batches of distillation. The first
round (imports, calibration, KMeans) and the last one (measured on the test set) are not counted.

W1: MLP 784-128-10; W2: the CNN of 5x5 convolutions. Fashion-MNIST, 100 clients x 540 images.
Engines that average weights instead (`plain-flower`, and `fedavg` for us) answer with the model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

MODELS = {"W1": "mlp", "W2": "cnn"}
GRIDS: dict[str, dict[str, Any]] = {
    "inline": {"name": "inline"},
    "cohort": {"name": "cohort", "block": 0},
    "workers": {"name": "workers"},
    "ray": {"name": "ray"},
    "flower": {"name": "flower"},
}
N_PROXY, BATCH, RATE = 6000, 64, 0.05


def scenario(work: str, clients: int, rounds: int, method: str, grid: dict[str, Any]) -> Any:
    from fedkd import config

    return config.parse(
        {
            "name": work,
            "validation": 0,
            "data": {"name": "idx"},
            "partition": {"name": "iid", "clients": clients},
            "proxy": {"name": "public", "size": N_PROXY},
            "model": {"names": [MODELS[work]]},
            "method": {"name": method},
            "grid": grid,
            "training": {
                "rounds": rounds,
                "evaluate_every": rounds,
                "local": {"optimizer": "sgd", "learning_rate": RATE, "batch_size": BATCH},
                "distill": {"epochs": 2 * BATCH / N_PROXY},
            },
        }
    )


def ours(work: str, engine: str, clients: int, rounds: int) -> list[float]:
    """Seconds of each counted round on one of our grids; `fedavg` is inline."""
    from scenarios.simulate import simulate

    method = "fedavg" if engine == "fedavg" else "no-filter"
    grid = GRIDS.get(engine, GRIDS["inline"])
    cell = simulate(scenario(work, clients, rounds, method, grid)).cells[0]
    return [event["seconds"] for event in cell.of("round")][1:-1]


def bare(work: str, clients: int, rounds: int) -> list[float]:
    """The arithmetic alone: one client after another, no messages, no state on disk."""
    import torch
    import torch.nn.functional as F

    from fedkd.data.dataset import as_input
    from fedkd.models import zoo

    world = scenario(work, clients, rounds, "no-filter", GRIDS["inline"]).world(1)
    pool = as_input(world.public_x).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(rounds - 1):
        start = time.perf_counter()
        for client in range(clients):
            x, y = world.client(client)
            x = as_input(x).contiguous(memory_format=torch.channels_last)
            model = zoo.build(MODELS[work], (1, 28, 28), 10, torch.Generator())
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            for ids in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[ids]), y[ids]).backward()
                optimizer.step()
            with torch.no_grad():
                for block in pool.split(512):
                    torch.softmax(model(block), dim=1)
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(model(pool[:BATCH]), y[:BATCH]).backward()
                optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def one(work: str, engine: str, clients: int, rounds: int) -> float:
    """Clients a second of one engine, in this process."""
    if engine == "bare":
        seconds = bare(work, clients, rounds)
    elif engine == "plain-flower":
        from rivals.plain_flower import rounds_of

        seconds = rounds_of(MODELS[work], clients, rounds)[1:]
    else:
        seconds = ours(work, engine, clients, rounds)
    return clients / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", choices=list(MODELS), default="W1")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--engines",
        nargs="+",
        default=["inline", "cohort", "workers", "ray", "flower", "bare", "fedavg", "plain-flower"],
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.work, given.one, given.clients, given.rounds)))
        return
    found: dict[str, list[float]] = {engine: [] for engine in given.engines}
    for repeat in range(given.repeats):
        for engine in given.engines:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", engine]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[1]),
            }
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                print(f"{engine} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            found[engine].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{repeat + 1} {engine}: {found[engine][-1]:.1f} clients/s", file=sys.stderr)
    print(
        f"{given.work}, {given.clients} clients, {date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n\n"
        "| engine | clients/s, median (least to most) | to inline |\n|---|---:|---:|"
    )
    base = statistics.median(found["inline"]) if found.get("inline") else float("nan")
    for engine, rates in found.items():
        if rates:
            middle = statistics.median(rates)
            print(
                f"| {engine} | {middle:.1f} ({min(rates):.1f} to {max(rates):.1f}) "
                f"| {middle / base:.2f} |"
            )


if __name__ == "__main__":
    main()

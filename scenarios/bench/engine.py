"""One engine in this process: does a work, then prints what it measured as one JSON object.

```
python -m scenarios.bench.engine work FOLDER NAME         a grid of ours, or the bare loop
python -m scenarios.bench.engine messages GRID PATH CLIENTS ROUNDS
python -m scenarios.bench.engine filter K SAMPLES ROUNDS
```
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from scenarios import quiet  # noqa: F401  # before anything that imports flwr

from fedkd import config  # isort: skip
from fedkd.config_sections import Grid
from fedkd.data.dataset import as_input
from fedkd.exchange.score import KMeans
from fedkd.rng import stream, torch_stream
from scenarios import memory
from scenarios.bench import loops, messages, work
from scenarios.bench.clock import Clock
from scenarios.bench.machine import resident_bytes
from scenarios.simulate import simulate
from server.events import Event


def grid_of(name: str) -> Grid:
    """The grid that an engine's name means.

    >>> grid_of("workers-2").workers
    2
    """
    kind, _, workers = name.partition("-")
    calibrated = {"block": 0} if kind == "cohort" else {}
    return Grid.model_validate({"name": kind, "workers": int(workers or 0), **calibrated})


def carry(folder: Path, name: str) -> dict[str, Any]:
    """A work on a grid of ours, such as `workers-2`, or in a loop, `bare` or `bare-2`."""
    if name.startswith("bare"):
        return loops.bare(folder, int(name.partition("-")[2] or 1))
    clock = Clock()
    rounds: list[Event] = []
    resident: list[int] = []

    def note(row: str, seed: int, event: Event) -> None:
        if event["event"] == "round":
            clock.took(event["seconds"])
            rounds.append(event)
            resident.append(resident_bytes())

    scenario = config.load(folder / "scenario.toml").on(grid_of(name))
    with tempfile.TemporaryDirectory() as run_folder:
        # With a million clients the clients' states must be on disk, as in a real run of that size.
        keeps = run_folder if scenario.training.participation < 1 else None
        simulate(scenario, folder=keeps, listener=note)
    return {**clock.report(rounds[0]["n_clients"]), "resident_bytes": resident}


def fit_filter(k: int, n: int, n_rounds: int) -> dict[str, Any]:
    """Fit KMeans on n samples and score n others; `seconds` are of both."""
    everything = work.images()
    order = stream(1, "bench", purpose="filter").permutation(len(everything))
    private, pool = (
        as_input(everything.rows(order[part])[0]).flatten(1) for part in (slice(n), slice(n, 2 * n))
    )
    score = KMeans(k=k)
    fits, scores = [], []
    began = time.time()
    for round_ in range(n_rounds):
        start = time.perf_counter()
        state = score.fit(
            private, torch.zeros(n, dtype=torch.int64), torch_stream(1, "bench", round_)
        )
        middle = time.perf_counter()
        score.score(state, pool)
        fits.append(middle - start)
        scores.append(time.perf_counter() - middle)
    seconds = [fit + score for fit, score in zip(fits, scores, strict=True)]
    return {"n": 1, "began": began, "seconds": seconds, "fit_s": fits[1:], "score_s": scores[1:]}


def main(arguments: list[str]) -> None:
    """Do what the arguments say, and print what was measured."""
    torch.set_num_threads(1)
    memory.keep()
    match arguments:
        case ["work", folder, name]:
            told = carry(Path(folder), name)
        case ["messages", grid, path, n_clients, n_rounds]:
            told = messages.carry(grid, path, int(n_clients), int(n_rounds))
        case ["filter", k, n, n_rounds]:
            told = fit_filter(int(k), int(n), int(n_rounds))
        case _:
            sys.exit(__doc__)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])

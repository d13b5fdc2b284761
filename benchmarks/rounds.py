"""How many clients a second? The same work on every grid of ours, and on what others offer.

`python benchmarks/rounds.py --work W1` runs the engines one after the other, again and again
(A B C A B C …), each in a process of its own with one thread a process, and prints a Markdown
table: the median over the repeats with the spread, the ratio to `inline`, what a newcomer waits
for before the first round, that round, and the peak memory of the process tree. A rate is of the
median counted round; the first round of each run warms up and is not counted.

| work      | what                                                                                |
|-----------|-------------------------------------------------------------------------------------|
| W0        | clients do nothing and answer 1 MB: what messages cost                              |
| W1        | MLP 784-128-10, 100 clients x 600 images, SGD; each answers 6,000 proxy samples     |
| W2        | the same with a CNN of 5x5 convolutions, 10 clients                                 |
| W1-fedavg | W1 without a proxy set: weights are averaged, as the rivals do                      |
| W2-fedavg | W2 without a proxy set, 20 clients                                                  |
| W3        | W1 with 100 clients a round out of 1,000 and of 1,000,000 virtual ones              |

Fashion-MNIST. `--quick` takes few clients and one repeat: it shows that all runs, no figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fedkd import config
from fedkd.errors import FedkdError
from scenarios.bench.machine import stamp
from scenarios.bench.messages import PATHS
from scenarios.bench.runs import Engine, Outcome, alternate, ours, spread, table
from scenarios.bench.work import Work, prepare
from scenarios.units import size

HERE = Path(__file__).parent
RIVALS = HERE.parent / ".rivals" / "bin" / "python"
GRIDS = ("inline", "cohort", "workers-1", "workers-2")
ANSWER = (*GRIDS, "ray-1", "ray-2", "flower", "bare", "bare-2", "plain-loop")
AVERAGE = (*GRIDS, "bare", "bare-2", "plain-loop", "plain-flower", "pfl", "pfl-2", "blazefl")
TWO_PROCESSES = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
QUICK_CLIENTS, TAKING_PART = 4, 100
NOT_HERE = {"blazefl": "its releases need Python 3.12 or newer, fedkd is measured on 3.11"}


class Table(NamedTuple):
    """A work, and the engines that can do it."""

    work: Work
    engines: tuple[str, ...]


def _work(model: str, clients: int, proxy: int, rounds: int) -> Work:
    return Work(model=model, clients=clients, samples=600, proxy=proxy, rounds=rounds)


TABLES = {
    "W1": Table(_work("mlp", 100, 6000, 3), ANSWER),
    "W2": Table(_work("cnn", 10, 6000, 2), ANSWER),
    "W1-fedavg": Table(_work("mlp", 100, 0, 6), AVERAGE),
    "W2-fedavg": Table(_work("cnn", 20, 0, 3), AVERAGE),
}


def command(engine: str, folder: Path, rivals: Path) -> tuple[str, ...]:
    """How to run an engine on a work's folder."""
    programs = {
        "plain-loop": (sys.executable, "plain_loop.py"),
        "plain-flower": (sys.executable, "plain_flower.py"),
        "pfl": (str(rivals), "pfl_fedavg.py"),
        "pfl-2": (str(rivals), *TWO_PROCESSES, "pfl_fedavg.py"),
    }
    if engine not in programs:
        return ours("engine", "work", folder, engine)
    *start, program = programs[engine]
    return (*start, str(HERE / "rivals" / program), str(folder))


def side_by_side(given: argparse.Namespace, tell: Callable[[str], None]) -> str:
    """W1, W2 and their FedAvg forms."""
    work, engines = TABLES[given.work]
    work = replace(work, clients=given.clients or work.clients)
    absent = dict(NOT_HERE)
    if not given.rivals.exists():
        absent |= dict.fromkeys(("pfl", "pfl-2"), f"no {given.rivals}: see benchmarks/README.md")
    wanted = given.engines or engines
    with tempfile.TemporaryDirectory() as folder:
        prepare(work, Path(folder))
        found = alternate(
            [Engine(e, command(e, Path(folder), given.rivals)) for e in wanted if e not in absent],
            given.repeats,
            tell,
        )
    found |= {e: Outcome(failure=absent[e]) for e in wanted if e in absent}
    what = "weights are averaged" if work.average else f"{work.proxy:,} proxy samples"
    return (
        f"{given.work}: {work.model}, {work.clients} clients x {work.samples} images, {what}, "
        f"{work.rounds - 1} counted rounds, {given.repeats} repeats\n\n{table(found)}"
    )


def overhead(given: argparse.Namespace, tell: Callable[[str], None]) -> str:
    """W0: few clients on both engines, since Flower's round is quadratic; then many on ours."""
    few = given.clients or 100
    many = 10 * few
    parts = []
    for n_clients, grids in ((few, ("inline", "flower")), (many, ("inline",))):
        engines = [
            Engine(f"{grid}, {path}", ours("engine", "messages", grid, path, n_clients, 4))
            for path in PATHS
            for grid in grids
        ]
        found = alternate(engines, given.repeats, tell)
        parts.append(
            f"W0: {n_clients:,} clients that do nothing and answer 1 MB, 3 counted rounds, "
            f"{given.repeats} repeats\n\n{table(found)}"
        )
    return "\n\n".join(parts)


def populations(given: argparse.Namespace, tell: Callable[[str], None]) -> str:
    """W3: what a round and the server's memory cost as the population grows."""
    taking_part = given.clients or TAKING_PART
    rounds = 4 if given.quick else 12
    engines = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {n: Path(scratch) / str(n) for n in (1_000, 1_000_000)}
        for population, folder in folders.items():
            _virtual(folder, population, taking_part, rounds)
        engines = [
            Engine(f"{population:,}, {grid}", ours("engine", "work", folder, grid))
            for grid in ("inline", "workers-1")
            for population, folder in folders.items()
        ]
        found = alternate(engines, given.repeats, tell)
    return (
        f"W3: mlp, {taking_part} virtual clients of 600 images take part in each of {rounds} "
        f"rounds, 6,000 proxy samples, {given.repeats} repeats; `inline` holds the clients in "
        f"the server's process, `workers-1` does not\n\n{_population_table(found)}"
    )


def _virtual(folder: Path, population: int, taking_part: int, rounds: int) -> None:
    """W1's data, dealt out to virtual clients instead."""
    work = replace(TABLES["W1"].work, clients=1, rounds=rounds)
    prepare(replace(work, samples=60_000), folder)
    path = folder / "scenario.toml"
    scenario = config.load(path).model_dump()
    scenario["partition"] = {"name": "virtual", "clients": population, "samples": work.samples}
    scenario["training"]["participation"] = taking_part / population
    path.write_text(config.dump(config.parse(scenario)), encoding="utf-8")


def _population_table(found: Mapping[str, Outcome]) -> str:
    lines = [
        "| population, grid | s a round: median (least to most) | start-up, s | "
        "server's memory after round 2, and after the last | peak memory of all |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, outcome in found.items():
        if not outcome.runs:
            lines.append(f"| {name} | not run: {outcome.failure} | | | |")
            continue
        seconds = [statistics.median(run.seconds) for run in outcome.runs]
        resident = outcome.runs[-1].more["resident_bytes"]
        cells = [
            name,
            spread(seconds, 2),
            f"{statistics.median(run.start_s for run in outcome.runs):.1f}",
            f"{size(resident[1])}, {size(resident[-1])}",
            size(max(run.peak_bytes for run in outcome.runs)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", choices=["W0", *TABLES, "W3"], default="W1")
    parser.add_argument("--clients", type=int, help="clients a round, instead of the work's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", help="of W1 and W2; the first is the base")
    parser.add_argument("--rivals", type=Path, default=RIVALS, help="Python that has pfl")
    parser.add_argument("--quick", action="store_true", help="few clients, one repeat")
    given = parser.parse_args()
    if given.quick:
        given.clients, given.repeats = given.clients or QUICK_CLIENTS, 1
    head = stamp(seed=1)
    kinds = {"W0": overhead, "W3": populations}
    try:
        body = kinds.get(given.work, side_by_side)(
            given, lambda line: print(line, file=sys.stderr, flush=True)
        )
    except FedkdError as error:
        parser.error(str(error))
    print(f"{body}\n\n{head}")


if __name__ == "__main__":
    main()

"""`fedkd bench`: a few minutes that say how fast this machine is, as one Markdown page."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scenarios.bench.machine import n_cores, stamp
from scenarios.bench.messages import PATHS
from scenarios.bench.runs import Engine, Outcome, Tell, alternate, ours, spread, table
from scenarios.bench.work import Work, fashion, prepare

CENTROIDS = (10, 100)
ABOUT = """\
Each engine runs in a process of its own, with one thread a process, in turn (A B A B …). Figures
are medians over {repeats}; the first round of each run warms up and is not counted. `bare` is the
arithmetic alone, without messages, checks or state."""


def suite(tell: Tell, *, quick: bool = False) -> str:
    """Run all of it; `quick` takes few clients and one repeat, enough to see orders of magnitude.

    Args: tell: is told a line of progress after each run.
    Raises: FedkdError if the images cannot be read.
    """
    repeats = 1 if quick else 3
    head = stamp(seed=1)
    workers = f"workers-{n_cores()}"
    sections = [f"# fedkd bench\n\n{head}", ABOUT.format(repeats=_times(repeats))]
    for title, work in works(quick).items():
        tell(title)
        with tempfile.TemporaryDirectory() as folder:
            prepare(work, Path(folder))
            engines = [
                Engine(name, ours("engine", "work", folder, name))
                for name in ("inline", "cohort", workers, "bare")
            ]
            sections.append(_section(title, table(alternate(engines, repeats, tell))))
    n_clients, n = (100, 800) if quick else (1_000, 6_000 if fashion() else 800)
    title = f"Messages: {n_clients:,} clients that do nothing and answer 1 MB"
    tell(title)
    engines = [
        Engine(path, ours("engine", "messages", "inline", path, n_clients, 4)) for path in PATHS
    ]
    sections.append(_section(title, table(alternate(engines, repeats, tell))))
    title = f"Filter: KMeans on {n:,} samples of one client, then {n:,} scored"
    tell(title)
    engines = [
        Engine(f"kmeans, k = {k}", ours("engine", "filter", k, n, 2 + repeats)) for k in CENTROIDS
    ]
    sections.append(_section(title, _filters(alternate(engines, repeats, tell))))
    return "\n\n".join(sections) + "\n"


def works(quick: bool) -> dict[str, Work]:
    """What the clients do, by title; smaller where there are only scikit-learn's digits."""
    if fashion():
        mlp = Work(model="mlp", clients=100, samples=600, proxy=6_000, rounds=3)
        cnn = replace(mlp, model="cnn", clients=10, rounds=2)
    else:
        mlp = Work(model="mlp", clients=10, samples=100, proxy=600, rounds=3)
        cnn = replace(mlp, model="cnn")
    if quick:
        mlp, cnn = (replace(w, clients=4, proxy=min(w.proxy, 1_000)) for w in (mlp, cnn))
    data = "Fashion-MNIST" if fashion() else "digits"
    return {
        f"{w.model.upper()}: {w.clients} clients x {w.samples} images of {data}, "
        f"{w.proxy:,} proxy samples, one epoch of SGD a round": w
        for w in (mlp, cnn)
    }


def _filters(found: Mapping[str, Outcome]) -> str:
    lines = ["| filter | fit, ms: median (least to most) | score, ms | start-up, s |"]
    lines.append("|---|---:|---:|---:|")
    for name, outcome in found.items():
        if not outcome.runs:
            lines.append(f"| {name} | not run: {outcome.failure} | | |")
            continue
        fit, score = (
            spread([1e3 * statistics.median(run.more[key]) for run in outcome.runs], 1)
            for key in ("fit_s", "score_s")
        )
        start = statistics.median(run.start_s for run in outcome.runs)
        lines.append(f"| {name} | {fit} | {score} | {start:.1f} |")
    return "\n".join(lines)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _times(repeats: int) -> str:
    return "one run" if repeats == 1 else f"{repeats} runs"

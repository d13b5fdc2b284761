"""Engines side by side: each run in a process of its own, again and again, in turn (A B A B …).

An engine is a command whose last line of output is a JSON object: `n`, what it did a round
(clients or messages); `began`, the Unix time at which its first round began; `seconds` of every
round, of which the first warms up; and whatever else it measured.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scenarios import quiet  # noqa: F401  # the engines inherit its switches
from scenarios.bench.machine import tree_bytes

SAMPLING_S = 0.2
"""Between two looks at the memory: a look takes some milliseconds of the core that it disturbs."""
TIMEOUT_S = 900.0

Tell = Callable[[str], None]
"""Is told one line of progress."""


class Engine(NamedTuple):
    """What carries a work out: a name for the table, and a command."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of an engine, as it was measured."""

    n: int
    """Clients or messages a round."""
    start_s: float
    """From the start of its process to its first round: imports, data, worker processes."""
    first_s: float
    """The first round, which is not counted."""
    seconds: list[float]
    """Of each counted round."""
    peak_bytes: int
    """The most that its process tree held; 0 where the system does not tell."""
    more: dict[str, Any] = field(default_factory=dict)
    """What else the engine measured."""

    @property
    def rate(self) -> float:
        """Clients or messages a second, in the median round."""
        return self.n / statistics.median(self.seconds)


@dataclass
class Outcome:
    """All runs of one engine, or why there are none."""

    runs: list[Run] = field(default_factory=list)
    failure: str = ""


class EngineFailed(Exception):
    """The engine did not get through; the text says why."""


def ours(module: str, *arguments: object) -> tuple[str, ...]:
    """The command of a module of this package."""
    return (sys.executable, "-m", f"scenarios.bench.{module}", *map(str, arguments))


def alternate(engines: Sequence[Engine], repeats: int, tell: Tell) -> dict[str, Outcome]:
    """Run the engines one after the other, `repeats` times; one that fails is not run again."""
    found = {engine.name: Outcome() for engine in engines}
    for repeat in range(1, repeats + 1):
        for engine in engines:
            outcome = found[engine.name]
            if outcome.failure:
                continue
            try:
                run = carry_out(engine)
            except EngineFailed as error:
                outcome.failure = str(error)
                tell(f"{repeat}/{repeats} {engine.name} failed: {error}")
            else:
                outcome.runs.append(run)
                tell(f"{repeat}/{repeats} {engine.name}: {run.rate:,.1f} a second")
    return found


def carry_out(engine: Engine, timeout_s: float = TIMEOUT_S) -> Run:
    """One run, with one thread a process. Raises: EngineFailed."""
    home = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": home}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        spawned = time.time()
        process = subprocess.Popen(
            engine.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,  # so that what it started can be ended with it
        )
        try:
            peak = _watch(process, spawned + timeout_s)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            complaint = errors.read().decode(errors="replace").strip().splitlines()
            raise EngineFailed(complaint[-1] if complaint else f"exit code {process.returncode}")
        told = json.loads(output.read().splitlines()[-1])
    first, *seconds = told.pop("seconds")
    return Run(
        n=told.pop("n"),
        start_s=told.pop("began") - spawned,
        first_s=first,
        seconds=seconds,
        peak_bytes=peak,
        more=told,
    )


def _watch(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Wait for a process; return the most memory that its tree was seen to hold."""
    peak = 0
    while True:
        peak = max(peak, tree_bytes(process.pid))
        try:
            process.wait(SAMPLING_S)
        except subprocess.TimeoutExpired:
            if time.time() > deadline:
                raise EngineFailed("took too long and was ended") from None
        else:
            return peak


def table(found: Mapping[str, Outcome], unit: str = "clients/s") -> str:
    """A Markdown table; ratios are medians over the repeats, each against the same repeat of the
    first engine that has runs. The spread is from the least to the most of the repeats."""
    base = next((outcome.runs for outcome in found.values() if outcome.runs), [])
    name = next((name for name, outcome in found.items() if outcome.runs), "")
    lines = [
        f"| engine | {unit}: median (least to most) | to {name} | start-up, s | first round, s | "
        "peak memory, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for engine, outcome in found.items():
        if not outcome.runs:
            lines.append(f"| {engine} | not run: {outcome.failure} | | | | |")
            continue
        ratio = statistics.median(
            mine.rate / other.rate for mine, other in zip(outcome.runs, base, strict=False)
        )
        rates = [run.rate for run in outcome.runs]
        cells = [
            engine,
            f"{spread(rates, 1)}{' (then failed)' if outcome.failure else ''}",
            f"{ratio:.2f}",
            f"{statistics.median(run.start_s for run in outcome.runs):.1f}",
            f"{statistics.median(run.first_s for run in outcome.runs):.2f}",
            _megabytes(max(run.peak_bytes for run in outcome.runs)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """The median, with the least and the most.

    >>> spread([3.0, 1.0, 2.0], 1)
    '2.0 (1.0 to 3.0)'
    """
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f}" if n_bytes else "-"

"""Kill -9 at random moments: does every run end with the right result and exact ledgers?

    python benchmarks/chaos.py --schedules 50 --seed 1

One deployment on this machine, over TLS. Each schedule submits a run and kills two to four of its
processes at times drawn from the seed: the SuperLink, the SuperExec, the ServerApp, a client (which
is SuperNode and ClientApp in one process here), or the server process that watches over the first
three. Clients and the server process are started again a second later, as systemd does it.
A schedule is right if its rounds, its last consensus and its clients' ledgers equal those of a run
that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deployments import (  # noqa: E402
    Deployment,
    consensus,
    deployment,
    facts,
    ledgers,
    rehearsal,
)

KINDS = ("superlink", "superexec", "serverapp", "client", "server")
ROUNDS = 15
SPREAD_S = 12.0
PATIENCE_S = 240.0


class Kill(NamedTuple):
    """One event of a schedule."""

    at_s: float
    kind: str
    client: int


def schedule(seed: int) -> list[Kill]:
    """Two to four kills, by time."""
    draws = random.Random(seed)
    kills = [
        Kill(draws.uniform(0.5, SPREAD_S), draws.choice(KINDS), draws.randrange(2))
        for _ in range(draws.randint(2, 4))
    ]
    return sorted(kills)


def victim(real: Deployment, kill: Kill) -> int | None:
    """The process id, if there is such a process now."""
    if kill.kind == "client":
        return real.processes[real.names[kill.client]].pid
    server = real.processes["server"].pid
    if kill.kind == "server":
        return server
    part = {"superlink": "flower-superlink", "superexec": "flower-superexec"}.get(
        kill.kind, "flwr-serverapp"
    )
    with suppress(psutil.Error):  # it may be gone by now, or its parent
        for process in psutil.Process(server).children(recursive=True):
            with suppress(psutil.Error):
                if any(part in word for word in process.cmdline()):
                    return process.pid
    return None


def play(real: Deployment, kills: list[Kill]) -> tuple[Path, Counter[str], float]:
    """One run under a schedule. Returns: its cell, what was killed, and the seconds it took."""
    done: Counter[str] = Counter()
    start = time.monotonic()
    run = real.submit(rehearsal(ROUNDS))
    waiting = list(kills)
    restart: list[tuple[float, str]] = []
    while not run.is_done:
        now = time.monotonic() - start
        if now > PATIENCE_S or run.failed.exists():
            raise TimeoutError(run.state)
        while waiting and waiting[0].at_s <= now:
            kill = waiting.pop(0)
            pid = victim(real, kill)
            with suppress(ProcessLookupError):  # it may end in between
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    done[kill.kind] += 1
        for name, process in list(real.processes.items()):
            if process.poll() is not None and all(name != other for _, other in restart):
                restart.append((now + 1, name))
        for at, name in list(restart):
            if now >= at:
                restart.remove((at, name))
                real.start(name)
        time.sleep(0.05)
    return run.cell(1), done, time.monotonic() - start


def main() -> None:
    """Play the schedules and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the schedule to begin with")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fedkd-chaos-"))
    killed: Counter[str] = Counter()
    wrong: list[str] = []
    seconds: list[float] = []
    with deployment(folder / "real") as real:
        real.start_all()
        states = [real.folder / "clients" / name / "state" for name in real.names]

        def clear() -> None:
            for state in states:
                shutil.rmtree(state / "runs", ignore_errors=True)

        def outcome(cell: Path) -> tuple[object, ...]:
            said = ledgers([state / "runs" for state in states])
            clear()
            return facts(cell / "events.jsonl"), consensus(cell), said

        cell, _, undisturbed_s = play(real, [])
        right = outcome(cell)
        for i in range(args.first, args.schedules):
            kills = schedule(1000 * args.seed + i)
            try:
                cell, done, took = play(real, kills)
            except TimeoutError as error:
                wrong.append(f"{i}: {error}")
                print(f"{i:3} STUCK {error} {kills}", flush=True)
                clear()
                continue
            killed += done
            seconds.append(took)
            found = outcome(cell)
            parts = zip(("rounds", "consensus", "ledgers"), found, right, strict=True)
            bad = [name for name, one, other in parts if one != other]
            if bad:
                wrong.append(f"{i}: {', '.join(bad)}")
            note = "WRONG " + ", ".join(bad) if bad else "ok"
            print(f"{i:3} {note}  {took:5.1f} s  {dict(done)}", flush=True)
    print(f"\nundisturbed: {undisturbed_s:.1f} s; killed: {dict(killed)}")
    n = args.schedules - args.first
    print(f"{n - len(wrong)} of {n} schedules ended right")
    if seconds:
        print(f"median {sorted(seconds)[len(seconds) // 2]:.1f} s, longest {max(seconds):.1f} s")
    for line in wrong:
        print(line)
    if wrong:
        print(f"kept: {folder}")
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Real deployments for tests and benchmarks: processes on this machine, over TLS."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.config import Scenario
from privacy.ledger import look
from scenarios.deploy import init, runs
from scenarios.deploy.runs import Run
from server.events import read

UP_S = 120.0
Facts = dict[str, Any]


def free_port() -> int:
    """A port of the loopback address that nobody has now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def until(what: Callable[[], bool], seconds: float, why: str) -> None:
    """Wait. Raises: TimeoutError, with why."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(why)
        time.sleep(0.1)


class Deployment:
    """A deployment in a folder and its processes, which are this test's children.

    Args: within: of "server" or a client, the words before its command.
    """

    def __init__(
        self,
        folder: Path,
        clients: int = 2,
        host: str = "localhost",
        within: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.folder, self.port, self._within = folder, free_port(), within or {}
        names = [f"client-{i + 1}" for i in range(clients)]
        init.init(folder, [host], self.port, names)
        self.names = names
        self.server = folder / "server"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """Start "server" or a client."""
        target = self.server if name == "server" else self.folder / "clients" / name
        command = "server" if name == "server" else "client"
        words = [sys.executable, "-m", "scenarios.cli", "deploy", command, str(target), *more]
        words = [*self._within.get(name, ()), *words]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(words, stdout=log, stderr=log, env=env)
        return self.processes[name]

    def start_all(self) -> None:
        """Server and clients; returns when the server serves."""
        for name in ("server", *self.names):
            self.start(name)
        self.wait_for("server", "serving")

    def log(self, name: str) -> Path:
        """What a process said."""
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        """The same, as text."""
        path = self.log(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, name: str, text: str, seconds: float = UP_S) -> None:
        """Until a process says something."""
        why = f"{name} does not say {text!r}"
        until(lambda: text in self.said(name), seconds, f"{why}: {self.said(name)[-500:]}")

    def stop(self, name: str) -> int:
        """As Ctrl-C does. Returns: the exit code."""
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def submit(self, scenario: Scenario) -> Run:
        """A run, and no wait for it."""
        return runs.submit(self.server, scenario)

    def wait(self, run: Run, seconds: float = 120.0) -> None:
        """Until a run is done; raises with the reason if it stops."""

        def over() -> bool:
            return run.is_done or run.failed.exists()

        until(over, seconds, f"{run.state}; server: {self.said('server')[-800:]}")
        if run.failed.exists():
            raise AssertionError(run.failed.read_text())

    def end(self) -> None:
        """Stop everything."""
        for name in list(self.processes)[::-1]:
            self.stop(name)


@contextmanager
def deployment(folder: Path, clients: int = 2) -> Iterator[Deployment]:
    """A deployment that is stopped at the end, whatever happens."""
    made = Deployment(folder, clients)
    try:
        yield made
    finally:
        made.end()


def rehearsal(rounds: int = 3, clients: int = 2, **changes: Any) -> Scenario:
    """Digits, half of the classes to each of two clients; every client is needed in every round."""
    table = {
        "name": "rehearsal",
        "data": {"name": "digits"},
        "partition": {"name": "shards", "clients": clients, "shards_per_client": 2},
        "proxy": {"name": "contributed", "fraction": 0.1},
        "training": {"rounds": rounds, "timeout_s": 60},
        "attendance": {"gather_s": 90, "quorum": 1.0, "repeats": 20},
        "references": [],
    }
    return config.parse({**table, **changes})


def facts(events: Path) -> list[Facts]:
    """The rounds and clients of an event log, without what depends on the machine."""
    kept = [event for event in read(events) if event["event"] in ("round", "client")]
    gone = ("seconds", "bytes_pool", "bytes_down", "bytes_up")
    return [
        {key: value for key, value in event.items() if key not in gone and key[-2:] != "_s"}
        for event in kept
    ]


def ledgers(state: Sequence[Path]) -> list[list[str]]:
    """The entries of the ledgers below these folders, in order, as JSON."""
    found = []
    for folder in state:
        paths = sorted(folder.rglob("ledger.jsonl"))
        found.append([entry.model_dump_json() for path in paths for entry in look(path)])
    return found


def consensus(cell: Path) -> bytes:
    """The arrays of the newest checkpoint."""
    newest = max((cell / "checkpoints").glob("round-*"))
    return (newest / "arrays.safetensors").read_bytes()

"""A real Ray cluster on this machine: each node is a tree of processes that a test owns."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HIDE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")
                    and "editable" not in getattr(f, "__name__", "")]
sys.path[:] = [p for p in sys.path if not p.endswith("fedkd")]
"""
"""For `sitecustomize`: a node imports our code only from what is shipped to it."""


def descendants(pid: int) -> list[int]:
    """A process and all that it started, by the kernel's table."""
    parents: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(process.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


class Node:
    """One `ray start`, of one CPU, with no code of ours on its path."""

    def __init__(self, home: Path, *options: str, ray_version: str = "") -> None:
        hide = home / "hide"
        hide.mkdir(exist_ok=True)
        (hide / "sitecustomize.py").write_text(HIDE)
        lie = f"import ray; ray.__version__ = {ray_version!r}; " if ray_version else ""
        command = [
            *(sys.executable, "-c", f"{lie}from ray.scripts.scripts import main; main()", "start"),
            *("--block", "--num-cpus=1", "--disable-usage-stats"),
            *("--object-store-memory=100000000", *options),  # the last of two counts
        ]
        with (home / "node.log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(hide), "RAY_USAGE_STATS_ENABLED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> list[int]:
        """All its processes."""
        return descendants(self._process.pid)

    def kill(self) -> None:
        """As if its machine lost power."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()


class Cluster:
    """A head node, and as many others as are added."""

    def __init__(self, home: Path, *head_options: str, ray_version: str) -> None:
        self._home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.nodes = [
            Node(
                home,
                *("--head", f"--port={port}", "--node-ip-address=127.0.0.1"),
                *("--include-dashboard=false", f"--temp-dir={home}", *head_options),
                ray_version=ray_version,
            )
        ]

    def add(self) -> Node:
        """One more node, with an address of its own."""
        ip = f"--node-ip-address=127.0.0.{len(self.nodes) + 1}"
        self.nodes.append(Node(self._home, f"--address={self.address}", ip))
        return self.nodes[-1]

    def wait(self) -> None:
        """Until every node has its raylet and the head answers."""
        deadline = time.monotonic() + 120
        while True:
            n_raylets = sum(
                b"/raylet/raylet" in command_line(pid)
                for node in self.nodes
                for pid in node.processes()
            )
            host, _, port = self.address.partition(":")
            with socket.socket() as probe:
                up = probe.connect_ex((host, int(port))) == 0
            if up and n_raylets == len(self.nodes):
                return
            assert time.monotonic() < deadline, (self._home / "node.log").read_text()
            time.sleep(0.2)


def command_line(pid: int) -> bytes:
    """What a process was started as, or calls itself; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def cluster(n_nodes: int, *head_options: str, ray_version: str = "") -> Iterator[Cluster]:
    """A cluster for the block; its head says that it is Ray of `ray_version` if that is given."""
    home = Path(tempfile.mkdtemp(prefix="ray"))  # short, since it is part of sockets' paths
    made = Cluster(home, *head_options, ray_version=ray_version)
    try:
        made.wait()
        for _ in range(n_nodes - 1):
            made.add()
        made.wait()
        yield made
    finally:
        for node in made.nodes:
            node.kill()
        shutil.rmtree(home, ignore_errors=True)

"""Processes that a server keeps up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fedkd.processes import die_with_parent
from scenarios import quiet  # noqa: F401  # sets Flower's switches, which children inherit


def environment(folder: Path) -> dict[str, str]:
    """For every Flower process of a server's folder: its own home, our programs, short polls."""
    programs = str(Path(sys.executable).parent)
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "FLWR_HOME": str(folder / "state/flwr"),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
    }


@dataclass
class Child:
    """A process that is kept up; its output goes to a file."""

    name: str
    command: list[str]
    log: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    def start(self) -> None:
        """Start it; it ends with this process, however that ends."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.env,
                preexec_fn=die_with_parent,
            )
        self.started = time.monotonic()

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """End it, first kindly."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

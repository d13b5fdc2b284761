"""What a figure must be read with: the machine, the versions, and how busy it was."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fedkd
from scenarios.units import size

PACKAGES = ("torch", "numpy", "flwr", "ray")
PAGE = os.sysconf("SC_PAGE_SIZE")


def stamp(seed: int) -> str:
    """Date, processor, cores, memory, GPU, versions, load of the last minute, and the seed."""
    memory = PAGE * os.sysconf("SC_PHYS_PAGES")
    packages = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    return ", ".join(
        [
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            _processor(),
            f"{n_cores()} cores",
            f"{size(memory)} memory",
            _gpus(),
            f"{platform.system()} {platform.release()}",
            f"Python {platform.python_version()}",
            f"fedkd {fedkd.__version__}",
            *packages,
            f"load {os.getloadavg()[0]:.1f}",
            f"seed {seed}",
        ]
    )


def n_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of one process; 0 if it is gone, or the system has no /proc."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def tree_bytes(root: int) -> int:
    """Resident memory of a process and all that it started, shared pages counted each time."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything; after it come state and parent.
            parent = entry.read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue  # it ended meanwhile
        children[int(parent)].append(int(entry.parent.name))
    tree = [root]
    for pid in tree:
        tree += children[pid]
    return sum(map(resident_bytes, tree))


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _gpus() -> str:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "no GPU"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

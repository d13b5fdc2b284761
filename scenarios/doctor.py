"""`fedkd doctor`: what this machine has, and what each missing thing would need."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple, get_args

import torch

from fedkd.config_sections import Grid
from fedkd.data.idx import Idx

PACKAGES = ("fedkd", "torch", "flwr", "numpy", "pydantic", "ray", "datasets")


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    found: str
    ok: bool
    fix: str = ""
    code: str = ""
    """Of a deployment's fault: its section in docs/errors.md."""


def examine() -> list[Finding]:
    """Versions, processors, Ray, data; only what is not optional can be not ok."""
    recent = sys.version_info >= (3, 11)
    fix = "" if recent else "install 3.11 or newer"
    python = Finding("python", platform.python_version(), recent, fix)
    return [python, *map(_package, PACKAGES), _cpu(), _gpu(), _grid(), _fashion()]


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), True)
    except importlib.metadata.PackageNotFoundError:
        optional = name in ("ray", "datasets")
        extra = {"ray": "ray", "datasets": "huggingface"}.get(name)
        fix = f'pip install "fedkd[{extra}]"' if extra else f"pip install {name}"
        return Finding(name, "not installed", optional, fix)


def _cpu() -> Finding:
    return Finding("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}", True)


def _gpu() -> Finding:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("gpu", ", ".join(names) or "none: everything runs on the cpu", True)


def _grid() -> Finding:
    ready = importlib.util.find_spec("ray") is not None
    names = get_args(Grid.model_fields["name"].annotation)
    usable = [name for name in names if ready or name not in ("ray", "flower")]
    return Finding("grids", ", ".join(usable), True)


def _fashion() -> Finding:
    path = Path(Idx().path)
    found = path.is_dir()
    return Finding(
        "Fashion-MNIST",
        str(path) if found else "not found",
        True,
        "" if found else "apt-get install dataset-fashion-mnist, or set data.path",
    )

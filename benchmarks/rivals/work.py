"""What a rival's program reads: the arrays and the settings that `scenarios.bench.work` wrote.

NumPy and torch only, and nothing of ours, so that it runs in a rival's own environment.
"""

from __future__ import annotations

import json
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn


@cache
def settings(folder: str) -> SimpleNamespace:
    """`model`, `clients`, `samples`, `rounds`, `batch`, `rate`, `average` and `seed`."""
    return SimpleNamespace(**json.loads((Path(folder) / "work.json").read_text()))


@cache
def parts(folder: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images float32 [clients, n, c, h, w] in [0, 1], labels [clients, n], pool [p, c, h, w]."""
    with np.load(Path(folder) / "parts.npz") as arrays:
        x, y, pool = (torch.from_numpy(arrays[key]) for key in ("x", "y", "pool"))
    return x.float() / 255, y, pool.float() / 255


def network(name: str, shape: tuple[int, int, int]) -> nn.Module:
    """The models `mlp` and `cnn` of `fedkd.models.zoo`, written out as anyone would."""
    channels, height, width = shape
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, 128),
            nn.LeakyReLU(0.1),
            nn.Linear(128, 10),
        )
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.MaxPool2d(2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.LeakyReLU(0.1),
        nn.Linear(128, 10),
    )


class Clock:
    """What an engine reports: see `scenarios.bench.runs`."""

    def __init__(self) -> None:
        self._began = 0.0
        self._ticks: list[float] = []

    def tick(self) -> None:
        """Before the first round and after each."""
        self._began = self._began or time.time()
        self._ticks.append(time.perf_counter())

    def report(self, n: int) -> str:
        """The line to print; `n` clients took part in each round."""
        seconds = [after - before for before, after in pairwise(self._ticks)]
        return json.dumps({"n": n, "began": self._began, "seconds": seconds})

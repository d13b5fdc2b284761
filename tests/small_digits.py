"""Digits as the tests of private summaries use them: records of a client, and a proxy set."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for each draw."""
    return torch.Generator().manual_seed(seed)


def _digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)


X, Y = _digits()
PROXY, PROXY_Y = X[1000:], Y[1000:]

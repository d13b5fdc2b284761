"""Which device computes: named by the scenario, checked once."""

from __future__ import annotations

import os

import torch

from fedkd.errors import FedkdError


def resolve(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises: FedkdError if the scenario asks for a GPU that is not there.
    """
    n_gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if n_gpus else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise FedkdError(
            "the scenario's device is not there",
            value=name,
            allowed="cpu" + "".join(f", cuda:{i}" for i in range(n_gpus)),
            fix='set device = "auto"',
        )
    return device


def budget_bytes(device: torch.device) -> int:
    """What one block of clients may take up: half of a GPU's free memory, a quarter of a host's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4

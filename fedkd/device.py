"""Which device computes: named by the scenario, checked once."""

from __future__ import annotations

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

"""Randomness by address: every draw comes from `stream(seed, role, round, client, purpose)`.

No global generator is read anywhere in the house, so what is drawn does not depend on which
process, in which order, asked for it. That makes runs equal across grids and across a resume.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def _entropy(seed: int, role: str, round_: int, client: int, purpose: str) -> int:
    address = f"{seed}|{role}|{round_}|{client}|{purpose}".encode()
    return int.from_bytes(hashlib.sha256(address).digest()[:16], "big")


def stream(
    seed: int, role: str, round_: int = 0, client: int = -1, purpose: str = ""
) -> np.random.Generator:
    """The NumPy generator at one address; the same address gives the same draws for ever.

    `client` is a partition id, or -1 where no client is meant. `round_` counts from 1; 0 is set-up.

    >>> int(stream(1, "server", 2, purpose="sample").integers(100)) == int(
    ...     stream(1, "server", 2, purpose="sample").integers(100))
    True
    """
    return np.random.default_rng(_entropy(seed, role, round_, client, purpose))


def torch_stream(
    seed: int, role: str, round_: int = 0, client: int = -1, purpose: str = ""
) -> torch.Generator:
    """As `stream`, for torch. Always a CPU generator, so that devices agree on what is drawn."""
    generator = torch.Generator()
    generator.manual_seed(_entropy(seed, role, round_, client, purpose) >> 65)  # 63 bits
    return generator

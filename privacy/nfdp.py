"""FedMD-NFDP: "noise-free" privacy by training on a sample of the records. A baseline that protects
few.

Source: Sun, Lyu (IJCAI 2021, arXiv 2009.05537); the pair of formulas from a second-hand note, and
held against brute force in the tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd.errors import FedkdError


class Claim(NamedTuple):
    """What the paper claims for adding or removing one record of the client."""

    epsilon: float
    delta: float


def subsample(n: int, k: int, generator: torch.Generator, *, replacement: bool = False) -> Tensor:
    """The rows int64 [k] of n records that a client trains on, drawn once, before the first round.

    Raises: FedkdError if k is not from 1 to n.
    """
    _check(n, k)
    if replacement:
        return torch.randint(n, (k,), generator=generator)
    return torch.randperm(n, generator=generator)[:k]


def claimed(n: int, k: int, *, replacement: bool = False) -> Claim:
    """The (epsilon, delta) that the paper states for k of n records.

    True, and not a meaningful guarantee: delta = k/n is the probability that a record is in the
    sample, and then all of it may leak. Publishing the k raw records satisfies the same statement,
    and no larger epsilon lowers delta. So no ledger charges this as protection; what a release
    reveals of such a client is an empirical question, and canaries answer it.
    """
    _check(n, k)
    if replacement:
        return Claim(k * math.log((n + 1) / n), 1 - ((n - 1) / n) ** k)
    return Claim(math.log((n + 1) / (n + 1 - k)), k / n)


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise FedkdError("a client cannot train on this many records", value=k, allowed=f"1 to {n}")

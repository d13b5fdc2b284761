"""Canary clients: made-up clients that upload a random direction, looked for in the consensus.

A canary client trains on nothing. What it would upload is known from a seed, so an audit can join
some of them to the recorded answers of a round (`joined`), let others be controls, and compare the
cosines of both with the consensus. The clients' own answers stay those that were recorded: what a
canary client would have taught them until the next round is left out.

Source: Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar 2023, arXiv:2302.03098, where the direction
is one of model updates. Deviation: ours is one of logits or probabilities on the proxy set, and the
cosine is with the consensus. An estimate from one round, no bound.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedkd.exchange.combine import Mean
from fedkd.exchange.consensus import Consensus
from fedkd.rng import stream
from privacy.audit.recording import Rows

Matrix = NDArray[np.float64]


def direction(n_samples: int, n_classes: int, seed: int, number: int) -> Matrix:
    """The direction of one canary client: float64 [samples, classes], of L2 norm 1 as a whole.

    Uniform among the matrices whose rows sum to 0, since a softmax does not see what is added to a
    whole row. So it lies on the sphere of samples * (classes - 1) dimensions.
    """
    rng = stream(seed, "canary", client=number, purpose="direction")
    return _unit(rng.standard_normal((n_samples, n_classes)))


def as_logits(direction: Matrix, bound: float) -> NDArray[np.float32]:
    """What a canary client gives for logits whose L2 norm is clipped at `bound`, all rows together:
    float32 [samples, classes]."""
    return (bound * direction).astype(np.float32)


def as_probabilities(direction: Matrix) -> NDArray[np.float32]:
    """What it gives where answers are distributions: float32 [samples, classes].

    Uniform rows, moved along the direction as far as no probability of any row becomes negative.
    """
    n_classes = direction.shape[1]
    furthest = 1 / (n_classes * -direction.min())
    rows: Matrix = np.maximum(1 / n_classes + furthest * direction, 0)
    return rows.astype(np.float32)


def joined(
    answers: Iterable[Rows], canaries: Iterable[NDArray[np.float32]], n_samples: int, n_classes: int
) -> Consensus:
    """The mean of a round's answers as it would be if canary clients had answered every sample too.

    Args: answers: (ids int32 [m], values float32 [m, classes]) of each client; canaries: float32
        [samples, classes] each, as a mechanism would let them out.
    """
    rule = Mean()
    votes = rule.start(n_samples, n_classes)
    for ids, values in answers:
        rule.add(votes, ids, values)
    every = np.arange(n_samples, dtype=np.int32)
    for values in canaries:
        rule.add(votes, every, values)
    return rule.finish(votes)


def cosine(direction: Matrix, consensus: Consensus) -> float:
    """The cosine between a direction and what is told about the m samples of the consensus.

    Both with rows that sum to 0. For a consensus that knows nothing of the direction, it is that of
    a random direction in m * (classes - 1) dimensions. 0 for a consensus without samples, or one
    that is uniform everywhere.
    """
    told = _centred(consensus.values.astype(np.float64))
    length = float(np.linalg.norm(told))
    if length < 1e-12:  # rounding
        return 0.0
    return float((_unit(direction[consensus.ids]) * told).sum() / length)


def _centred(values: Matrix) -> Matrix:
    middle: Matrix = values.mean(1, keepdims=True)
    return values - middle


def _unit(values: Matrix) -> Matrix:
    centred = _centred(values)
    length = float(np.linalg.norm(centred))
    return centred / length

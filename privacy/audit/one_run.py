"""A lower bound of epsilon from one run with many canaries, each in or out by a fair coin.

The auditor guesses some of the coins and abstains from the others. Under (epsilon, 0)-DP each guess
is right with probability at most 1 / (1 + e^-epsilon), whatever the other coins are, so no
independence of the canaries is needed. Delta adds a term of its own.

How many guesses are made is part of the claim: fixed before looking, or paid for by Bonferroni.

Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, in the form of its authors' program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from fedkd.errors import FedkdError
from privacy.audit.epsilon import Claim, LowerBound
from privacy.audit.roc import check_scores

PRECISION = 1e-6
"""Of the epsilon that bisection finds; always on the safe side."""
ASSUMES = "that each canary was in or out by a fair coin of its own"


def one_run(
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    counts: Sequence[tuple[int, int]],
    claim: Claim,
    rng: np.random.Generator,
) -> LowerBound:
    """The best bound over `counts`, pairs of how many are guessed in and how many out.

    One pair is a number of guesses fixed in advance; of several, each is tested at alpha divided by
    how many they are.

    Shapes: `scores` [m], higher means more likely in; `inside` [m], the coins.
    Guarantee: at the claimed confidence, for one run.
    Raises: FedkdError for no counts, more guesses than canaries, or a delta too large for so many.
    """
    if not counts:
        raise FedkdError("no number of guesses to test")
    alpha = claim.alpha / len(counts)
    bounds = []
    for n_in, n_out in counts:
        n_guesses, n_correct = _marked(guess(scores, n_in, n_out, rng), inside)
        epsilon = epsilon_of(len(scores), n_guesses, n_correct, claim.delta, alpha)
        bounds.append((epsilon, n_guesses))
    epsilon, n_guesses = max(bounds)
    paid = f", best of {len(counts)} by Bonferroni" if len(counts) > 1 else ""
    return _bound(epsilon, claim, n_guesses, paid)


def from_guesses(guesses: NDArray[np.int8], inside: NDArray[np.bool_], claim: Claim) -> LowerBound:
    """As `one_run`, for an attack that guesses by itself: 1 in, -1 out, 0 abstains; [m].

    How many guesses it makes must not depend on what it would have scored with more or fewer.
    """
    n_guesses, n_correct = _marked(guesses, inside)
    epsilon = epsilon_of(len(guesses), n_guesses, n_correct, claim.delta, claim.alpha)
    return _bound(epsilon, claim, n_guesses)


def guess(
    scores: NDArray[np.float64], n_in: int, n_out: int, rng: np.random.Generator
) -> NDArray[np.int8]:
    """1 for the `n_in` highest scores, -1 for the `n_out` lowest, else 0: [m] -> [m].

    Equal scores come in an order that `rng` draws, never in that of the canaries, which may tell.
    """
    check_scores(scores)
    if min(n_in, n_out) < 0 or n_in + n_out > len(scores):
        raise FedkdError(
            "as many guesses cannot be made",
            value=(n_in, n_out),
            allowed=f"0 or more, together at most {len(scores)}",
        )
    order = np.lexsort([rng.random(len(scores)), scores])
    guesses = np.zeros(len(scores), dtype=np.int8)
    guesses[order[:n_out]] = -1
    guesses[order[len(order) - n_in :]] = 1
    return guesses


def _marked(guesses: NDArray[np.int8], inside: NDArray[np.bool_]) -> tuple[int, int]:
    """How many guesses there are and how many are right."""
    return int((guesses != 0).sum()), int((guesses == np.where(inside, 1, -1)).sum())


def _bound(epsilon: float, claim: Claim, n_guesses: int, paid: str = "") -> LowerBound:
    method = f"one run, {n_guesses} guesses{paid}"
    return LowerBound(epsilon=epsilon, claim=claim, method=method, at=n_guesses, assumes=ASSUMES)


def epsilon_of(
    n_canaries: int, n_guesses: int, n_correct: int, delta: float, alpha: float
) -> float:
    """The largest epsilon that this many correct guesses reject, at a p-value below `alpha`.

    Raises: FedkdError where 2 n_canaries delta exceeds 1: then nothing could be told.

    >>> round(epsilon_of(1000, 100, 100, 1e-5, 0.05), 2)
    3.47
    """
    if not 0 <= n_correct <= n_guesses <= n_canaries:
        raise FedkdError(
            "counts of guesses that cannot be", value=(n_canaries, n_guesses, n_correct)
        )
    if 2 * n_canaries * delta > 1:
        # Below that, the p-value grows with epsilon, which bisection relies on.
        raise FedkdError(
            "delta is too large for an audit in one run",
            value=delta,
            allowed=f"at most {1 / (2 * n_canaries):g} for {n_canaries} canaries",
        )

    def rejected(epsilon: float) -> bool:
        return p_value(n_canaries, n_guesses, n_correct, delta, epsilon) < alpha

    if not rejected(0):
        return 0.0
    low, high = 0.0, 1.0
    while rejected(high):
        low, high = high, 2 * high
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def p_value(n_canaries: int, n_guesses: int, n_correct: int, delta: float, epsilon: float) -> float:
    """At most how likely this many correct guesses are under (epsilon, delta)-DP.

    beta + 2 m delta max_i P[v > B >= v - i] / i, with B binomial and beta = P[B >= v]. Tails are
    sums of logarithms, so a chance to be wrong of e^-epsilon is kept for any epsilon.
    """
    right = np.arange(n_guesses + 1)
    log_q = -np.logaddexp(0, -epsilon)  # of a guess that is right; one that is wrong: log_q - eps
    logs = (
        (gammaln(n_guesses + 1) - gammaln(right + 1) - gammaln(n_guesses - right + 1))
        + n_guesses * log_q
        - (n_guesses - right) * epsilon
    )
    beta = math.exp(min(0.0, np.logaddexp.reduce(logs[n_correct:])))
    below = np.logaddexp.accumulate(logs[:n_correct][::-1])
    worst = math.exp(np.max(below - np.log(right[1 : n_correct + 1]))) if n_correct else 0.0
    return min(1.0, beta + 2 * n_canaries * delta * worst)

"""Lower bounds of epsilon from what an attack achieved, and what happens when one is too high.

A bound is a statement about the mechanism that was run: with the confidence given it is not
(epsilon', delta)-DP for any epsilon' below the bound. A low bound rules nothing out. A bound always
names its delta, whom it is about, its confidence and what it takes for granted.

`privacy.audit.one_run` and `privacy.audit.cosine` have two more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from fedkd.errors import FedkdError
from privacy.audit.intervals import above
from privacy.audit.roc import check_scores, roc
from privacy.events import Protects
from privacy.totals import Total


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a bound is to be about. There is no usual delta: with 0, it is about pure epsilon."""

    protects: Protects
    """By which change members and non-members differ."""
    delta: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1:
            raise FedkdError("delta is no probability", value=self.delta, allowed="0 <= delta < 1")
        if not 0 < self.confidence < 1:
            raise FedkdError(
                "confidence is no probability", value=self.confidence, allowed="above 0, below 1"
            )

    @property
    def alpha(self) -> float:
        """The probability to be wrong."""
        return 1 - self.confidence


@dataclass(frozen=True, kw_only=True)
class LowerBound:
    """With the confidence claimed, the mechanism's epsilon at this delta is at least `epsilon`."""

    epsilon: float
    claim: Claim
    method: str
    at: float
    """What the attack decided by: a threshold of scores, a number of guesses, or a rank."""
    assumes: str

    def __str__(self) -> str:
        return (
            f"epsilon at least {self.epsilon:.4g} at delta {self.claim.delta:g} "
            f"for {self.claim.protects}, with confidence {self.claim.confidence:.4g} "
            f"({self.method}; assumes {self.assumes})"
        )


def contradiction(lower: LowerBound, accounted: Total) -> None:
    """Fail loudly if an audit found more than the ledger allows: one of the two is wrong.

    At a confidence of 95 % an audit of a correct mechanism may fail so once in 20 times.
    Canaries that were given away in the clear are not covered by the ledger; audit others.
    Raises: FedkdError if the lower bound exceeds the accounted epsilon, or if the two cannot be
        compared: of another unit or relation, or the bound's delta is the smaller one.
    """
    claim, spent = lower.claim, accounted.spent
    if claim.protects != spent.protects or claim.delta < spent.delta:
        raise FedkdError(
            "the audit and the ledger speak of different guarantees",
            value=str(lower),
            allowed=f"{spent.protects}, at a delta of at least {spent.delta:g}",
        )
    if lower.epsilon > accounted.epsilon:
        raise FedkdError(
            "the audit found more than the ledger allows, so one of them is wrong",
            value=f"{lower}",
            allowed=f"{accounted}",
            fix="look for noise, clipping or an event that is not as recorded; then for canaries "
            "that the ledger does not cover",
        )


def from_scores(
    members: NDArray[np.float64],
    nonmembers: NDArray[np.float64],
    claim: Claim,
    rng: np.random.Generator,
) -> LowerBound:
    """From scores of many runs: half of them choose the threshold, the others give the bound.

    Shapes: `members` [m], `nonmembers` [n], each at least 2; higher means more likely a member.
    Guarantee: at the claimed confidence, for independent scores. Both of the half's error rates lie
    below their limits together (alpha / 2 each), and then both bounds of `from_rates` hold.
    Raises: FedkdError for scores that are too few or no numbers.
    Source: Jagielski, Ullman, Oprea 2020, arXiv:2006.07709; with delta as in Nasr et al. 2021,
        arXiv:2101.04535. Deviation: the threshold is fixed on a split,
        since the best of many thresholds on the same scores is no bound.
    """
    if min(len(members), len(nonmembers)) < 2:
        raise FedkdError(
            "too few scores to split", value=min(len(members), len(nonmembers)), allowed="2 or more"
        )
    choosing_in, testing_in = halves(members, rng)
    choosing_out, testing_out = halves(nonmembers, rng)
    curve = roc(choosing_in, choosing_out)
    found = _from_counts(
        np.round((1 - curve.tpr) * curve.n_members),
        np.round(curve.fpr * curve.n_nonmembers),
        curve.n_members,
        curve.n_nonmembers,
        # As if all were tested: else the extreme ones, which a few scores decide, look best.
        claim.alpha / len(curve.thresholds),
        claim.delta,
    )
    threshold = curve.thresholds[int(np.argmax(found))]
    missed, wrong = (testing_in < threshold).sum(), (testing_out >= threshold).sum()
    counts = (missed, wrong, len(testing_in), len(testing_out))
    epsilon = float(_from_counts(*counts, claim.alpha, claim.delta))
    return LowerBound(
        epsilon=max(0.0, epsilon),
        claim=claim,
        method="Clopper-Pearson, threshold fixed on a split",
        at=float(threshold),
        assumes="independent scores, as of one canary a run",
    )


def halves(
    scores: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The scores in two halves at random: one to choose a threshold by, the other to test it."""
    check_scores(scores)
    mixed = rng.permutation(scores)
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]


def from_rates(log_fpr: ArrayLike, fnr: ArrayLike, delta: float) -> NDArray[np.float64]:
    """The least epsilon at which these error rates can be, element by element; may be negative.

    Both ways: ln((1 - delta - FNR) / FPR) and ln((1 - delta - FPR) / FNR). FPR comes as a logarithm
    because it may be far below what a float holds.
    Source: Kairouz, Oh, Viswanath 2015, arXiv:1311.0776.
    """
    log_fpr, fnr = np.asarray(log_fpr), np.asarray(fnr)
    with np.errstate(divide="ignore"):
        by_few_wrong = np.log(np.maximum(1 - delta - fnr, 0)) - log_fpr
        by_few_missed = np.log(np.maximum(1 - delta - np.exp(log_fpr), 0)) - np.log(fnr)
    least: NDArray[np.float64] = np.maximum(by_few_wrong, by_few_missed)
    return least


def _from_counts(
    missed: ArrayLike,
    wrong: ArrayLike,
    n_members: int,
    n_nonmembers: int,
    alpha: float,
    delta: float,
) -> NDArray[np.float64]:
    fnr = above(missed, n_members, alpha / 2)
    fpr = above(wrong, n_nonmembers, alpha / 2)
    return from_rates(np.log(fpr), fnr, delta)


def from_rank(rank: int, size: int, claim: Claim, copies: int = 1) -> LowerBound:
    """From the rank of one canary, named before the run, among `size` places (1 = likeliest).

    A canary drawn uniformly from `size` equal candidates and not inserted has a rank of at most r
    with probability r / size at most; so with it, at most e^epsilon r / size + delta. For a rank
    among n sampled references `size` is n + 1. With `copies` of it, by group privacy.
    About 0.69 epsilon for each bit of exposure, less 3 (at 95 %).

    Raises: FedkdError for a rank that is not from 1 to `size`, or no copy.
    Source: the definition of exposure, Carlini et al. 2019, arXiv:1802.08232, and of DP; group
        privacy, Vadhan 2017, Lemma 2.2.
    """
    if not 1 <= rank <= size or copies < 1:
        raise FedkdError(
            "no rank of a canary",
            value=f"rank {rank}, {copies} copies",
            allowed=f"a rank from 1 to {size}, 1 copy or more",
        )
    share, alpha, delta = rank / size, claim.alpha, claim.delta

    def excess(epsilon: float) -> float:
        """How far the probability of a rank this good may lie above alpha."""
        deltas = delta * sum(math.exp(i * epsilon) for i in range(copies))
        return math.exp(copies * epsilon) * share + deltas - alpha

    most = math.log(alpha / share) / copies  # what it would be at delta = 0
    if excess(0) >= 0:
        epsilon = 0.0
    elif delta == 0:
        epsilon = most
    else:
        epsilon = brentq(excess, 0, most, xtol=1e-12)
    return LowerBound(
        epsilon=epsilon,
        claim=claim,
        method=f"exposure of one canary in {copies} {'copy' if copies == 1 else 'copies'}",
        at=rank,
        assumes="a canary drawn uniformly, not chosen by its rank",
    )

"""Private thresholds: what a gate may know of a client's held-out scores, under pure epsilon-DP.

A gate (`fedkd.exchange.gate`) turns the scores of held-out private samples into a threshold, and a
threshold tells of them. Either one quantile is drawn by the exponential mechanism, or a noisy
histogram of the scores is turned back into scores, on which any gate may then run, `share` too, for
that is post-processing.

Held-out records must be apart from those that the summary was fitted on, and picked by a coin each
(`held_out`): then adding a record changes no other one's part, and summary and gate
together are as private as the weaker of the two, not as their sum (parallel composition; each
record pays for the part it is in).

Source: the quantile is Smith, STOC 2011; the histogram is Dwork, McSherry, Nissim, Smith, TCC 2006;
that it is made monotone, Hay et al., VLDB 2010. Using them for a gate is ours.
"""

from __future__ import annotations

import math

import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.summaries import check_epsilon, laplace


def held_out(n: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Which of n records to hold out: bool [n], each with probability `fraction` by its own coin.

    Raises: FedkdError unless 0 < fraction < 1.
    """
    if not 0 < fraction < 1:
        raise FedkdError("a fraction to hold out", value=fraction, allowed="0 < fraction < 1")
    return torch.rand(n, generator=generator, dtype=torch.float64) < fraction


def private_quantile(
    scores: Tensor, q: float, low: float, high: float, epsilon: float, generator: torch.Generator
) -> float:
    """A value in [low, high] that about a part q of the scores [m] lies below; m may be 0.

    By the exponential mechanism: a value t is drawn with density proportional to
    exp(-epsilon |#{scores < t} - q m| / (2 max(q, 1 - q))). One record moves the count by 1 and
    q m by q, hence that sensitivity. Scores outside the range count as its ends, which must be
    public: those of the proxy set's scores, say. Without noise (infinite epsilon), uniform among
    the best values.

    Guarantee: pure epsilon-DP, add/remove one of the scores. The event is `pure_event(epsilon)`.
    Raises: FedkdError for NaN, an empty range, or q outside [0, 1].
    """
    check_epsilon(epsilon)
    if not 0 <= q <= 1:
        raise FedkdError("a quantile out of range", value=q, allowed="0 <= q <= 1")
    if not -math.inf < low < high < math.inf:
        raise FedkdError("a range of scores is empty", value=(low, high), allowed="low < high")
    at = torch.cat([torch.tensor([low, high]).double(), _clean(scores).clamp(low, high)])
    at = at.sort().values
    lengths = at.diff()
    misses = (torch.arange(len(lengths)) - q * len(scores)).abs()
    misses[lengths == 0] = math.inf
    if epsilon == math.inf:
        weights = torch.where(misses == misses.min(), lengths.log(), -math.inf)
    else:
        weights = lengths.log() - epsilon * misses / (2 * max(q, 1 - q))
    gumbel = -torch.empty_like(weights).exponential_(generator=generator).log()
    chosen = int((weights + gumbel).argmax())
    inside = float(torch.rand((), generator=generator, dtype=torch.float64))
    return float(at[chosen] + inside * lengths[chosen])


def private_scores(
    scores: Tensor, edges: Tensor, epsilon: float, generator: torch.Generator
) -> Tensor:
    """As good as the scores [m] for a gate: about m scores, of the bins between public `edges`.

    Each of the bins between the sorted edges [b + 1] holds its noisy count of scores, made monotone
    and whole, at its upper edge, so that a share of them is never overstated. Scores outside
    count in the first or last bin. Quantiles of the proxy set's scores make good edges.

    Guarantee: pure epsilon-DP, add/remove one of the scores: it moves one count by 1. The event is
    `pure_event(epsilon)`.
    Raises: FedkdError for NaN, or edges that do not rise or are under two.
    """
    check_epsilon(epsilon)
    ends = _clean(edges)
    if len(ends) < 2 or bool((ends.diff() <= 0).any()):
        raise FedkdError("bins need rising edges", value=len(ends), allowed="2 or more, rising")
    n_bins = len(ends) - 1
    bins = torch.bucketize(_clean(scores), ends[1:-1])
    counts = torch.bincount(bins, minlength=n_bins).double()
    below = (counts + laplace(counts.shape, 1 / epsilon, generator)).cumsum(0)
    monotone = torch.from_numpy(isotonic_regression(below.numpy(), y_min=0))
    whole = monotone.round().diff(prepend=monotone.new_zeros(1)).long()
    return ends[1:].repeat_interleave(whole)


def _clean(scores: Tensor) -> Tensor:
    """The scores as float64 [m].

    Raises: FedkdError for NaN, infinity or another shape.
    """
    if scores.ndim != 1 or not bool(scores.isfinite().all()):
        raise FedkdError("scores must be finite, of shape [m]", value=tuple(scores.shape))
    return scores.double()

"""Divergences between the consensus p and the student's distribution q, over all classes alike.

All are in nats, at least 0, and 0 where q = p, but for cross-entropy, whose least value is p's
entropy.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from fedkd.exchange.objectives.base import Divergence, entropy, forward_kl, reverse_kl, safe_log


class KL(Divergence):
    """KL(consensus || student) at a temperature, times its square (Hinton et al. 2015)."""

    name: Literal["kl"] = "kl"

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """KL(p || q) [n]."""
        return forward_kl(log_q, p)


class CrossEntropy(Divergence):
    """Cross-entropy on soft labels: KL's gradient, plus the consensus' own entropy (DS-FL).

    Source: Itahara et al., arXiv 2008.06180.
    """

    name: Literal["ce"] = "ce"

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """Minus the sum of p log q [n]."""
        return -(p * log_q).sum(dim=1)


class ReverseKL(Divergence):
    """KL(student || consensus): seeks a mode, spends nothing on the tail (MiniLLM).

    Source: Gu et al., ICLR 2024, arXiv 2306.08543, there of whole sequences under the student's
    own samples; here of one position, exactly. p below `FLOOR` counts as `FLOOR`, so the value
    may be negative by at most that much a class.
    """

    name: Literal["reverse-kl"] = "reverse-kl"

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """KL(q || p) [n]."""
        return reverse_kl(log_q, p)


class JensenShannon(Divergence):
    """Weighted Jensen-Shannon divergence: bounded, between both KLs (GKD).

    beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q. Divided by beta it tends
    to KL(p || q) as beta -> 0, and by 1 - beta to KL(q || p) as beta -> 1.
    Source: Agarwal et al., ICLR 2024, arXiv 2306.13649.
    """

    name: Literal["js"] = "js"
    beta: float = Field(0.5, gt=0, lt=1)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The divergence [n], at most the entropy of (beta, 1 - beta)."""
        q = log_q.exp()
        log_m = safe_log(self.beta * p + (1 - self.beta) * q)
        to_p = (p * (safe_log(p) - log_m)).sum(dim=1)
        to_q = (q * (log_q - log_m)).sum(dim=1)
        return self.beta * to_p + (1 - self.beta) * to_q


class SkewKL(Divergence):
    """KL(consensus || mixture of both): finite whatever the student says (DistiLLM).

    Source: Ko et al., ICML 2024, arXiv 2402.03898: KL(p || skew p + (1 - skew) q).
    """

    name: Literal["skew-kl"] = "skew-kl"
    skew: float = Field(0.1, gt=0, lt=1)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The divergence [n], at most -log(skew)."""
        log_m = safe_log(self.skew * p + (1 - self.skew) * log_q.exp())
        return (p * (safe_log(p) - log_m)).sum(dim=1)


class SkewReverseKL(Divergence):
    """KL(student || mixture of both): reverse KL, finite under a target's zeros (DistiLLM).

    Source: as `SkewKL`, with p and q exchanged: KL(q || skew q + (1 - skew) p).
    """

    name: Literal["skew-reverse-kl"] = "skew-reverse-kl"
    skew: float = Field(0.1, gt=0, lt=1)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The divergence [n], at most -log(skew)."""
        q = log_q.exp()
        log_m = safe_log(self.skew * q + (1 - self.skew) * p)
        return (q * (log_q - log_m)).sum(dim=1)


class AdaptiveKL(Divergence):
    """Both KLs, each weighed by the gap |p - q| where it learns first: head or tail (AKL).

    The head is the fewest most probable classes of p that hold a share `head` of its mass. KL is
    weighed by the head's part of the gap, reverse KL by the tail's. No gradient through weights.
    Source: Wu et al., COLING 2025, arXiv 2404.02657; head 0.5 as there.
    """

    name: Literal["akl"] = "akl"
    head: float = Field(0.5, gt=0, lt=1)

    def weight(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The weight [n] of KL in [0, 1]; a half where there is no gap."""
        ranked, order = p.sort(dim=1, descending=True, stable=True)
        gap = (p - log_q.detach().exp()).abs().gather(1, order)
        in_head = ranked.cumsum(dim=1) - ranked < self.head
        whole = gap.sum(dim=1)
        part = (gap * in_head).sum(dim=1) / whole.clamp_min(1e-30)
        return part.where(whole > 0, 0.5)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The weighted mean of both KLs [n]."""
        weight = self.weight(log_q, p)
        return weight * forward_kl(log_q, p) + (1 - weight) * reverse_kl(log_q, p)


class BalancedKL(Divergence):
    """Sum of both KLs, the one that is called for counting more: by the entropies (BD-KD).

    A student that is surer than the consensus needs KL, which spreads it out; one that is less sure
    needs reverse KL. That one counts `balance` times, the other once.
    Source: Amara et al., arXiv 2212.12965. The paper could not be read; this is the rule as its
    abstract and second-hand accounts have it, so weights and default are ours.
    """

    name: Literal["bd-kd"] = "bd-kd"
    balance: float = Field(2.0, ge=1)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The weighted sum of both KLs [n]; no gradient through weights."""
        surer = entropy(log_q.detach().exp()) < entropy(p)
        forward = forward_kl(log_q, p) * (1 + (self.balance - 1) * surer)
        return forward + reverse_kl(log_q, p) * (1 + (self.balance - 1) * ~surer)


class Alpha(Divergence):
    """Amari's alpha-divergence: KL at alpha -> 1, reverse KL at 0, Hellinger's at 1/2.

    (1 - sum of p^alpha q^(1 - alpha)) / (alpha (1 - alpha)): an f-divergence that zeros on either
    side leave finite. Total variation, another one, is classes / 2 times `l1` on probabilities.
    Source: Amari 1985; Cichocki and Amari, Entropy 2010.
    """

    name: Literal["alpha"] = "alpha"
    alpha: float = Field(0.5, gt=0, lt=1)

    def divergence(self, log_q: Tensor, p: Tensor) -> Tensor:
        """The divergence [n], at most 1 / (alpha (1 - alpha))."""
        shared = (p**self.alpha * ((1 - self.alpha) * log_q).exp()).sum(dim=1)
        return (1 - shared) / (self.alpha * (1 - self.alpha))

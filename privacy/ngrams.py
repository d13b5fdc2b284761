"""How rare a token is after its predecessors, in a public corpus: counts of n-grams, smoothed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import FedkdError


class NGrams:
    """Probabilities of tokens in context.

    Order by order, the shorter context is the prior of the longer one, and the uniform distribution
    over the vocabulary that of no context: p(w|h) = (n(hw) + s p(w|h')) / (n(h) + s).
    Source: MacKay, Peto 1995 (hierarchical Dirichlet), with one strength s for all orders.
    """

    def __init__(
        self,
        corpus: Iterable[Sequence[int]],
        *,
        vocabulary: int,
        order: int = 3,
        strength: float = 1.0,
    ) -> None:
        """Count the texts of a public corpus, each a sequence of token ids below `vocabulary`."""
        if order < 1 or vocabulary < 2 or strength <= 0:
            raise FedkdError(
                "n-grams cannot be counted",
                value={"order": order, "vocabulary": vocabulary, "strength": strength},
                allowed="order >= 1, vocabulary >= 2, strength > 0",
            )
        self.vocabulary = vocabulary
        self._order, self._strength = order, strength
        self._grams: Counter[tuple[int, ...]] = Counter()
        self._contexts: Counter[tuple[int, ...]] = Counter()
        for text in corpus:
            for at, token in enumerate(text):
                for length in range(min(order - 1, at) + 1):
                    context = tuple(text[at - length : at])
                    self._grams[(*context, token)] += 1
                    self._contexts[context] += 1

    def probability(self, context: Sequence[int], token: int) -> float:
        """p(token | context); only the last `order - 1` tokens of the context count."""
        if not 0 <= token < self.vocabulary:
            raise FedkdError("no such token", value=token, allowed=f"0 to {self.vocabulary - 1}")
        p = 1 / self.vocabulary
        for length in range(min(self._order - 1, len(context)) + 1):
            seen = tuple(context[len(context) - length :])
            p = (self._grams[(*seen, token)] + self._strength * p) / (
                self._contexts[seen] + self._strength
            )
        return p

    def surprisals(self, text: Sequence[int]) -> NDArray[np.float64]:
        """-ln p of each token [m] of a text after those before it, in nats."""
        start = [max(0, at - self._order + 1) for at in range(len(text))]
        return np.array(
            [
                -math.log(self.probability(text[start[at] : at], token))
                for at, token in enumerate(text)
            ]
        )

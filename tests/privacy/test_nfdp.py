"""FedMD-NFDP's claim is true, by enumeration of all samples, and worth little."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy import stats

from fedkd.errors import FedkdError
from privacy.nfdp import claimed, subsample

Law = dict[tuple[int, ...], float]
REPLACEMENT = pytest.mark.parametrize("replacement", [False, True])
SIZES = [(n, k) for n in range(2, 6) for k in range(1, n + 1)]


def law(records: int, k: int, replacement: bool) -> Law:
    """The probability of every sample of k of the records 0, 1, …"""
    if replacement:
        samples = list(itertools.product(range(records), repeat=k))
    else:
        samples = list(itertools.combinations(range(records), k))
    return dict.fromkeys(samples, 1 / len(samples))


def delta(p: Law, q: Law, epsilon: float) -> float:
    factor = math.exp(epsilon)
    return sum(max(0.0, mass - factor * q.get(sample, 0.0)) for sample, mass in p.items())


@REPLACEMENT
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_the_claim_is_true_of_publishing_the_sample_itself(
    n: int, k: int, replacement: bool
) -> None:
    """In both directions, for a record added to the n and for one removed from them."""
    claim = claimed(n, k, replacement=replacement)
    mine = law(n, k, replacement)
    for other in [n + 1] + [n - 1] * (k < n or (replacement and n > 1)):
        theirs = law(other, k, replacement)
        assert delta(mine, theirs, claim.epsilon) <= claim.delta + 1e-9
        assert delta(theirs, mine, claim.epsilon) <= claim.delta + 1e-9


@REPLACEMENT
@pytest.mark.parametrize(("n", "k"), [(4, 2), (5, 3), (5, 1)])
def test_no_epsilon_buys_a_smaller_delta(n: int, k: int, replacement: bool) -> None:
    """delta is the probability that the record is in the sample: epsilon = 600 leaves it as is."""
    claim = claimed(n, k, replacement=replacement)
    found = delta(law(n, k, replacement), law(n - 1, k, replacement), 600)
    assert found == pytest.approx(claim.delta, abs=1e-12)


def test_a_typical_claim_has_a_delta_that_protects_nobody() -> None:
    claim = claimed(1000, 500)
    assert claim.epsilon == pytest.approx(math.log(1001 / 501))
    assert claim.delta == 0.5


@REPLACEMENT
def test_every_record_is_drawn_equally_often(replacement: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    counts: Counter[int] = Counter()
    for _ in range(3_000):
        rows = subsample(8, 3, generator, replacement=replacement).tolist()
        assert len(rows) == 3
        assert replacement or len(set(rows)) == 3
        counts.update(rows)
    assert stats.chisquare([counts[row] for row in range(8)]).pvalue > 1e-3


def test_the_generator_decides() -> None:
    def draw(seed: int) -> list[int]:
        rows: list[int] = subsample(100, 10, torch.Generator().manual_seed(seed)).tolist()
        return rows

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_a_sample_has_at_least_one_record_and_at_most_all(k: int) -> None:
    with pytest.raises(FedkdError, match=f"got {k}; allowed: 1 to 10"):
        claimed(10, k)
    with pytest.raises(FedkdError, match=f"got {k}; allowed: 1 to 10"):
        subsample(10, k, torch.Generator())

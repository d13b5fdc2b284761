"""What hostile clients answer, against definitions written row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from fedkd.config_sections import Hostile
from fedkd.exchange.attacks import ATTACKS, Cpa, Fdla, Lma, OneClass, Pcfdla, Rows, SecondBest
from fedkd.rng import stream

QUICK = settings(deadline=None, max_examples=30)
SEEDS = st.integers(0, 2**31)


def answers(seed: int, m: int = 7, c: int = 4) -> Rows:
    logits = stream(seed, "test").normal(size=(m, c), scale=2)
    rows: Rows = softmax(logits, axis=1).astype(np.float32)
    return rows


@pytest.mark.parametrize("name", ATTACKS)
@given(SEEDS, st.integers(0, 5), st.integers(1, 5))
@QUICK
def test_an_attack_sends_distributions_and_the_same_each_time(
    name: str, seed: int, m: int, c: int
) -> None:
    rows, attack = answers(seed, m, c), ATTACKS[name]()
    before = rows.copy()
    one, other = (attack.spoil(rows, stream(seed, "attack")) for _ in range(2))
    np.testing.assert_array_equal(one, other, strict=True)
    np.testing.assert_array_equal(rows, before)
    assert (one.dtype, one.shape) == (np.float32, rows.shape)
    assert (one >= 0).all()
    np.testing.assert_allclose(one.sum(axis=1), 1, atol=1e-5)


@given(SEEDS)
@QUICK
def test_the_attacks_of_one_row(seed: int) -> None:
    rows, draws = answers(seed), stream(seed, "attack")
    for row, lma, second, fdla, peak in zip(
        rows.tolist(),
        Lma().spoil(rows, draws),
        SecondBest().spoil(rows, draws),
        Fdla().spoil(rows, draws),
        Pcfdla(peak=0.7).spoil(rows, draws),
        strict=True,
    ):
        order = sorted(range(4), key=row.__getitem__)
        assert lma.tolist() == [float(c == order[0]) for c in range(4)]
        assert second.tolist() == [float(c == order[-2]) for c in range(4)]
        assert fdla.tolist() == [row[order[-1 - order.index(c)]] for c in range(4)]
        np.testing.assert_allclose(peak, [0.7 if c == order[-2] else 0.1 for c in range(4)])


@given(SEEDS)
@QUICK
def test_cpa_takes_the_class_least_like_the_likeliest(seed: int) -> None:
    rows = answers(seed, 20)
    for row, sent in zip(rows, Cpa().spoil(rows, stream(seed, "attack")), strict=True):
        alike = [other for other in rows if other.argmax() == row.argmax()]
        assert sent.argmax() == np.mean(alike, axis=0).argmin()


def test_one_class_is_that_class() -> None:
    sent = OneClass(target=2).spoil(answers(1), stream(1, "attack"))
    assert sent[:, 2].tolist() == [1.0] * 7


@given(SEEDS, st.integers(1, 30), st.floats(0, 1))
@QUICK
def test_so_many_lie_and_always_the_same(seed: int, n: int, share: float) -> None:
    liars = Hostile(share=share).clients(n, seed)
    assert liars == Hostile(share=share).clients(n, seed)
    assert liars <= set(range(n))
    assert len(liars) <= share * n + 1e-6 < len(liars) + 1 + 1e-5

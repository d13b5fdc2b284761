"""What leaves a client: soft labels as SciPy takes them, or raw logits, fit for the wire."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import softmax

from fedkd import payload_answers
from fedkd.exchange.combine import Mean
from fedkd.exchange.release import RELEASES, Logits, Probabilities, Sampled, TopK
from fedkd.payload_answers import Answer
from fedkd.sparse import Draws, Largest

T = pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
WILD = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-(2.0**40), 2.0**40, width=32),
)


@T
@given(WILD)
@settings(deadline=None, max_examples=60)
def test_probabilities_are_scipy_s_softmax(temperature: float, logits: NDArray[np.float32]) -> None:
    row = Probabilities(temperature=temperature)
    got = row.release(torch.from_numpy(logits))
    scaled = (torch.from_numpy(logits) / temperature).double().numpy()  # rounded as float32
    np.testing.assert_allclose(got, softmax(scaled, axis=1), rtol=1e-5, atol=1e-7)
    assert torch.equal(row.target(got), got)


@T
@given(WILD)
@settings(deadline=None, max_examples=60)
def test_logits_leave_as_they_are_and_are_softened_once_they_are_consensus(
    temperature: float, logits: NDArray[np.float32]
) -> None:
    row = Logits(temperature=temperature)
    raw = torch.from_numpy(logits)
    assert torch.equal(row.release(raw), raw)
    assert torch.equal(row.target(raw), Probabilities(temperature=temperature).release(raw))


@pytest.mark.parametrize("name", RELEASES)
@T
@given(WILD)
@settings(deadline=None, max_examples=40)
def test_every_release_passes_the_checks_of_the_wire(
    name: str, temperature: float, logits: NDArray[np.float32]
) -> None:
    row: Probabilities | Logits = RELEASES[name](temperature=temperature)  # type: ignore[assignment,call-arg]
    values = row.release(torch.from_numpy(logits)).numpy()
    n, c = values.shape
    answer = Answer(0, 1, np.arange(n, dtype=np.int32), values)
    got = payload_answers.decode_answer(
        payload_answers.encode_answer(answer),
        client=0,
        round_=1,
        n_samples=n,
        n_classes=c,
        simplex=name != "logits",
    )
    np.testing.assert_array_equal(got.values, values)
    assert row.simplex == (name != "logits")


@pytest.mark.parametrize(
    ("row", "coding"),
    [
        (Probabilities(), None),
        (Logits(), None),
        (TopK(k=3), Largest(3)),
        (Sampled(draws=7), Draws(7)),
    ],
)
def test_a_release_says_how_it_travels(row: Logits | TopK, coding: Largest | None) -> None:
    assert row.coding == coding


@T
@given(WILD, st.integers(1, 8), st.integers(1, 300))
@settings(deadline=None, max_examples=40)
def test_sparse_releases_pass_the_checks_of_the_wire(
    temperature: float, logits: NDArray[np.float32], k: int, n: int
) -> None:
    m, c = logits.shape
    for row in (TopK(temperature=temperature, k=k), Sampled(temperature=temperature, draws=n)):
        values = row.release(torch.from_numpy(logits)).numpy()
        np.testing.assert_array_equal(
            values, Probabilities(temperature=temperature).release(torch.from_numpy(logits))
        )
        answer = Answer(0, 1, np.arange(m, dtype=np.int32), values)
        got = payload_answers.decode_coded_answer(
            payload_answers.encode_coded_answer(answer, row.coding, np.random.default_rng(0)),
            client=0,
            round_=1,
            n_samples=m,
            n_classes=c,
            coding=row.coding,
        )
        rows = np.concatenate([block.values for block in got.blocks()])
        assert rows.shape == (m, c)
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("name", RELEASES)
@T
def test_what_a_student_learns_is_a_distribution(name: str, temperature: float) -> None:
    row: Probabilities | Logits = RELEASES[name](temperature=temperature)  # type: ignore[assignment,call-arg]
    rule, draws = Mean(), torch.Generator().manual_seed(0)
    votes = rule.start(20, 5)
    for _ in range(3):
        logits = 4 * torch.randn(20, 5, generator=draws)
        rule.add(votes, np.arange(20, dtype=np.int32), row.release(logits).numpy())
    target = row.target(torch.from_numpy(rule.finish(votes).values))
    torch.testing.assert_close(target.sum(dim=1), torch.ones(20))
    assert (target >= 0).all()


def test_heat_flattens_and_cold_sharpens() -> None:
    logits = torch.tensor([[2.0, -1.0, -3.0]])
    tops = [float(Probabilities(temperature=t).release(logits).max()) for t in (0.01, 1, 100, 1e6)]
    assert tops == sorted(tops, reverse=True)
    assert tops[0] == 1
    assert tops[-1] == pytest.approx(1 / 3, abs=1e-5)

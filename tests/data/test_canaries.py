"""Canaries: uniform, distinct, enumerable, and where they should be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from fedkd.data.canaries import FORMATS, Canaries, Canary, Format, insert, sentences
from fedkd.data.text import records
from fedkd.data.tokens import decode, encode
from fedkd.errors import FedkdError

BLANKS = st.lists(st.sampled_from(["ab", "0123", "xyz", "q"]), min_size=1, max_size=5)


@given(BLANKS)
def test_numbers_and_candidates_are_one_order(blanks: list[str]) -> None:
    chosen = Format("", tuple(blanks))
    every = list(chosen.candidates())
    assert len(set(every)) == len(every) == chosen.size
    assert every == sorted(every)
    assert [chosen.secret(i) for i in range(chosen.size)] == every
    assert [chosen.index(secret) for secret in every] == list(range(chosen.size))


def test_the_spaces_are_as_large_as_they_say() -> None:
    sizes = {name: chosen.size for name, chosen in FORMATS.items()}
    assert sizes == {
        "pin": 10**4,
        "number-plate": 676_000,
        "access-code": 10**6,
        "rendered": 10**4,
    }
    assert FORMATS["number-plate"].secret(0) == "AA000"
    assert FORMATS["access-code"].index("012345") == 12345


def test_every_client_gets_every_repetition() -> None:
    row = Canaries(repetitions=(0, 1, 16), each=2)
    drawn = row.draw([5, 3], seed=1)
    assert [(c.client, c.repetitions) for c in drawn] == [
        (client, n) for client in (5, 3) for n in (0, 0, 1, 1, 16, 16)
    ]
    assert len({c.secret for c in drawn}) == len({c.prefix for c in drawn}) == 12
    for canary in drawn:
        assert canary.prefix.startswith("The card PIN of ")
        assert canary.sentence == f"{canary.prefix}{canary.secret}."
        assert FORMATS["pin"].secret(canary.index) == canary.secret
    assert row.draw([5, 3], seed=1) == drawn
    assert not {c.secret for c in drawn} <= {c.secret for c in row.draw([5, 3], seed=2)}


def test_secrets_are_uniform_even_where_many_collide() -> None:
    """A generator that sorts and cuts after collisions would leave the low end only."""
    drawn = Canaries(repetitions=(1,), each=5000).draw([0], seed=3)
    numbers = np.array([canary.index for canary in drawn])
    assert len(set(numbers.tolist())) == 5000
    tenths = np.bincount(numbers // 1000, minlength=10)
    # Without replacement, so the counts vary less than multinomial ones: the test is mild.
    assert stats.chisquare(tenths).pvalue > 0.01
    assert abs(stats.spearmanr(np.arange(5000), numbers).statistic) < 4 / np.sqrt(5000)
    with pytest.raises(FedkdError, match="got 5001; allowed: up to 5000"):
        Canaries(repetitions=(1,), each=5001).draw([0], seed=3)


def test_negative_repetitions_are_refused() -> None:
    with pytest.raises(ValidationError, match="less than 0 times"):
        Canaries(repetitions=(1, -1))


def planted(
    x: torch.Tensor, y: torch.Tensor, canaries: list[Canary], seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The records with each canary's copies among them."""
    copies = [canary for canary in canaries for _ in range(canary.repetitions)]
    more = sentences(copies, "characters", x.shape[3]) if copies else (x[:0], y[:0])
    return insert(x, y, *more, np.random.default_rng(seed))


def texts(x: torch.Tensor) -> list[str]:
    return [decode(row.numpy(), "characters").rstrip("\N{REPLACEMENT CHARACTER}") for row in x]


@settings(deadline=None)
@given(st.integers(0, 20), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 99))
def test_records_stay_and_sentences_come(n: int, repetitions: list[int], seed: int) -> None:
    x, y = records(np.arange(n * 48 + 1, dtype=np.int16) % 90 + 2, 48)
    canaries = [
        Canary(0, k, "pin", f"The card PIN of Ann {'ABC'[i]} is ", f"000{i}")
        for i, k in enumerate(repetitions)
    ]
    all_x, all_y = planted(x, y, canaries, seed)
    assert (all_x.dtype, all_y.dtype) == (torch.int16, torch.int64)
    assert len(all_x) == len(all_y) == n + sum(repetitions)
    counted = Counter(texts(all_x.flatten(1)))
    for canary in canaries:  # the last character is a label only
        assert counted[canary.sentence[:-1]] == canary.repetitions
    mine = torch.tensor(["PIN" not in text for text in texts(all_x.flatten(1))], dtype=torch.bool)
    assert torch.equal(all_x[mine], x)
    assert torch.equal(all_y[mine], y)
    for row_x, row_y in zip(all_x[~mine].flatten(1), all_y[~mine], strict=True):
        k = int((row_y != -100).sum())
        whole = np.append(row_x[:k].numpy(), np.int16(row_y[k - 1]))
        assert decode(whole, "characters") in {canary.sentence for canary in canaries}


def test_places_are_drawn_from_the_generator() -> None:
    x, y = records(np.arange(48 * 50 + 1, dtype=np.int16) % 90 + 2, 48)
    canary = Canary(0, 1, "pin", "The card PIN of Ann A is ", "0007")

    def place(seed: int) -> int:
        found = planted(x, y, [canary], seed)[0]
        wanted = torch.from_numpy(encode("The card", "characters"))
        return int((found[:, 0, 0, :8] == wanted).all(1).nonzero())

    assert place(1) == place(1)
    assert len({place(seed) for seed in range(20)}) > 5


def test_a_sentence_must_fit_into_a_record() -> None:
    canary = Canary(0, 1, "pin", "The card PIN of Ann A is ", "0007")  # 30 characters
    for length, fits in ((29, True), (28, False)):
        if fits:
            assert len(sentences([canary], "characters", length)[0]) == 1
            continue
        with pytest.raises(FedkdError, match=r"got '30 characters in 28 \+ 1 tokens'"):
            sentences([canary], "characters", length)

"""Who carries which canary how often: coins that are fair and redrawn alone, and n_u holders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedkd.data.canaries import Canaries, Canary
from fedkd.data.federation import build
from fedkd.data.partition import Iid
from fedkd.data.proxy import Public
from fedkd.data.sources import Digits
from fedkd.errors import FedkdError

COINS = Canaries(format="noise", assign="coin", repetitions=(0, 1), each=10)


def test_coins_are_fair_and_independent() -> None:
    row = COINS.model_copy(update={"each": 1000})
    heads = np.array([c.repetitions for c in row.draw(range(4), seed=1)])
    assert stats.binomtest(int(heads.sum()), 4000).pvalue > 0.01
    assert abs(stats.pearsonr(heads[1:], heads[:-1]).statistic) < 4 / np.sqrt(4000)
    three = row.model_copy(update={"repetitions": (0, 4, 16)}).draw(range(4), seed=1)
    counted = np.bincount([c.repetitions for c in three])[[0, 4, 16]]
    assert stats.chisquare(counted).pvalue > 0.01


def test_another_assignment_redraws_the_coins_alone() -> None:
    row = COINS.model_copy(update={"format": "pin", "holders": 2, "each": 50})
    first, second = (
        row.model_copy(update={"assignment": number}).draw(range(4), seed=1) for number in (0, 1)
    )

    def but_coins(canary: Canary) -> tuple[object, ...]:
        return canary.client, canary.others, canary.sentence

    assert list(map(but_coins, first)) == list(map(but_coins, second))
    coins = [[c.repetitions for c in drawn] for drawn in (first, second)]
    assert abs(stats.pearsonr(*coins).statistic) < 4 / np.sqrt(200)
    assert [c.sentence for c in row.draw(range(4), seed=2)] != [c.sentence for c in first]


def test_a_shadow_federation_has_the_same_data_and_canaries() -> None:
    row = COINS.model_copy(update={"format": "mislabelled", "in_proxy": True})
    shadow = row.model_copy(update={"assignment": 3})
    one, other = (
        build(Digits(), Iid(clients=3), Public(size=60), 0.1, 1, each) for each in (row, shadow)
    )
    assert all(map(np.array_equal, one.private, other.private))
    assert all(map(torch.equal, one.canary_records(), other.canary_records()))
    assert one.public_x is not None
    assert other.public_x is not None
    assert torch.equal(one.public_x, other.public_x)
    assert not np.array_equal(one.canary_copies(), other.canary_copies())


def test_an_assignment_without_coins_is_a_mistake() -> None:
    with pytest.raises(FedkdError, match=r"there are none; got 1; fix: canaries.assign = .coin"):
        Canaries(assignment=1)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_each_canary_is_on_as_many_clients_as_asked(n: int, holders: int, seed: int) -> None:
    row = COINS.model_copy(update={"holders": holders})
    drawn = row.draw(range(n), seed)
    assert [c.client for c in drawn] == [client for client in range(n) for _ in range(10)]
    for canary in drawn:
        carriers = {canary.client, *canary.others}
        assert len(carriers) == 1 + len(canary.others) == min(holders, n)
        assert carriers <= set(range(n))
        assert list(canary.others) == sorted(canary.others)
        for client in range(n):
            times = canary.repetitions if client in carriers else 0
            assert canary.copies(client) == times


def test_the_other_holders_are_drawn_uniformly() -> None:
    row = COINS.model_copy(update={"holders": 3, "each": 500})
    drawn = [c for c in row.draw(range(6), seed=1) if c.client == 2]
    others = np.bincount([other for c in drawn for other in c.others], minlength=6)
    assert others.sum() == 1000
    assert others[2] == 0
    assert stats.chisquare(np.delete(others, 2)).pvalue > 0.01


@pytest.mark.parametrize("holders", [1, 2])
def test_clients_hold_what_the_copies_say(holders: int) -> None:
    row = Canaries(format="noise", repetitions=(0, 1, 3), each=2, holders=holders)
    fed = build(Digits(), Iid(clients=4), None, 0.1, 1, row)
    plain = build(Digits(), Iid(clients=4), None, 0.1, 1)
    copies = fed.canary_copies()
    assert copies.shape == (24, 4)
    assert (copies > 0).sum() == 16 * holders
    wanted_x, wanted_y = fed.canary_records()
    for client in range(4):
        x, y = fed.client(client)
        same = (x[:, None] == wanted_x[None]).flatten(2).all(2)
        assert same.sum(0).tolist() == copies[:, client].tolist()
        assert torch.equal(y[same.any(1)], wanted_y[same.nonzero()[:, 1]])
        own = plain.client(client)
        assert torch.equal(x[~same.any(1)], own[0])
        assert torch.equal(y[~same.any(1)], own[1])

"""The federation: nothing is lost, nothing is shared that should not be, and the seed rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedkd.data.federation import build
from fedkd.data.idx import Idx
from fedkd.data.npz import Npz
from fedkd.data.partition import Iid, Natural, Shards, Strong
from fedkd.data.proxy import PROXIES, Contributed, Foreign, Proxy, Public
from fedkd.data.sources import Digits
from fedkd.errors import FedkdError

N = 1438  # training samples of Digits


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([None, Contributed(), Contributed(fraction=0.99), Public(size=100)]),
    st.sampled_from([Iid(clients=7), Shards(clients=20), Strong(clients=10)]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(0, 2**31),
)
def test_every_sample_has_one_place(
    proxy: Any, partition: Any, validation: float, seed: int
) -> None:
    fed = build(Digits(), partition, proxy, validation, seed)
    ids = np.concatenate([fed.validation_ids, *fed.private, *fed.contributed])
    n_public = 0 if fed.public_x is None else len(fed.public_x)
    assert len(np.unique(ids)) == len(ids) == N - n_public
    assert len(fed.validation_ids) == round(validation * N)
    assert fed.n_clients == partition.clients == len(fed.contributed)
    assert min(len(part) for part in fed.private) >= 1
    assert sum(fed.counts(i).sum() for i in range(fed.n_clients)) == len(ids) - len(
        fed.validation_ids
    )
    for kept, given_away in zip(fed.private, fed.contributed, strict=True):
        assert (len(given_away) > 0) == isinstance(proxy, Contributed)
        assert kept.dtype == given_away.dtype == np.int64


def test_clients_see_their_own_rows() -> None:
    fed = build(Digits(), Iid(clients=5), Contributed(fraction=0.25), 0.1, 3)
    for i in range(fed.n_clients):
        for (x, y), ids in (
            (fed.client(i), fed.private[i]),
            (fed.contribution(i), fed.contributed[i]),
        ):
            assert torch.equal(x, fed.train.x[torch.from_numpy(ids)])
            assert torch.equal(y, fed.train.y[torch.from_numpy(ids)])
        both = torch.cat([fed.client(i)[1], fed.contribution(i)[1]])
        assert torch.bincount(both, minlength=10).tolist() == fed.counts(i).tolist()
        assert len(fed.contributed[i]) == round(0.25 * len(both))


def test_the_same_arguments_give_the_same_federation_afresh() -> None:
    arguments = (Digits(), Iid(clients=5), Contributed(), 0.2)
    first = build(*arguments, 1)
    assert build(*arguments, 1) is first
    build.cache_clear()
    again, other = build(*arguments, 1), build(*arguments, 2)
    assert again is not first
    for name in ("private", "contributed"):
        for a, b, c in zip(*(getattr(fed, name) for fed in (first, again, other)), strict=True):
            assert np.array_equal(a, b)
            assert not np.array_equal(a, c)
    assert np.array_equal(first.validation_ids, again.validation_ids)
    assert not np.array_equal(first.validation_ids, other.validation_ids)
    assert other.train is first.train  # one copy of the data serves all federations
    assert other.test is first.test


def test_the_validation_set_does_not_hang_on_proxy_or_partition() -> None:
    a = build(Digits(), Iid(clients=5), None, 0.1, 1)
    b = build(Digits(), Strong(), Public(size=50), 0.1, 1)
    assert np.array_equal(a.validation_ids, b.validation_ids)


def test_public_rows_are_no_clients_rows() -> None:
    fed = build(Digits(), Iid(clients=5), Public(size=200), 0, 1)
    assert fed.public_x is not None
    assert fed.public_y is not None
    held = np.setdiff1d(np.arange(N), np.concatenate(fed.private))
    assert torch.equal(fed.public_x, fed.train.x[torch.from_numpy(held)])
    assert torch.equal(fed.public_y, fed.train.y[torch.from_numpy(held)])
    assert torch.bincount(fed.public_y).min() >= 18  # stratified
    with pytest.raises(FedkdError, match="allowed: 1 to 1437"):
        build(Digits(), Iid(), Public(size=N), 0, 1)


def test_a_strong_client_contributes_only_its_class() -> None:
    fed = build(Digits(), Strong(), Contributed(), 0.1, 0)
    for i in range(10):
        assert set(fed.client(i)[1].tolist()) == {i}
        assert set(fed.contribution(i)[1].tolist()) == {i}


def test_foreign_images_take_the_private_shape() -> None:
    fed = build(Digits(), Iid(), Foreign(source=Idx(), size=64), 0, 1)
    assert fed.public_x is not None
    assert fed.public_y is None
    assert fed.public_x.shape == (64, 1, 8, 8)
    assert fed.public_x.dtype == torch.uint8
    assert 40 < float(fed.public_x.float().mean()) < 110  # as bright as Fashion-MNIST, about 73
    other = build(Digits(), Iid(), Foreign(source=Idx(), size=64), 0, 2)
    assert other.public_x is not None
    assert not torch.equal(fed.public_x, other.public_x)


def npz(path: Path, x: Any, **more: Any) -> Npz:
    np.savez(path, x=x, y=np.arange(len(x)) % 2, x_test=x[:2], y_test=[0, 1], **more)
    return Npz(path=str(path))


def test_foreign_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = npz(tmp_path / "grey.npz", rng.random((6, 1, 4, 4)))
    colour = npz(tmp_path / "colour.npz", rng.random((6, 3, 4, 4)))
    averaged = Foreign(source=colour).images((1, 4, 4), 0)
    assert torch.equal(averaged, colour.load().train.x.mean(1, keepdim=True))
    repeated = Foreign(source=grey).images((3, 4, 4), 0)
    assert torch.equal(repeated, grey.load().train.x.repeat(1, 3, 1, 1))
    constant = npz(tmp_path / "constant.npz", np.full((6, 3, 5, 7), 99, np.uint8))
    assert set(Foreign(source=constant).images((1, 8, 9), 0).flatten().tolist()) == {99}


def test_foreign_images_that_cannot_serve(tmp_path: Path) -> None:
    flat = npz(tmp_path / "flat.npz", np.zeros((6, 64)))
    deep = npz(tmp_path / "deep.npz", np.zeros((6, 2, 8, 8)))
    for source, shape in ((flat, (1, 8, 8)), (Digits(), (1, 1, 64)), (deep, (3, 8, 8))):
        with pytest.raises(FedkdError, match="cannot be made to fit"):
            Foreign(source=source).images(shape, 0)
    with pytest.raises(FedkdError, match="got 7; allowed: 1 to 6"):
        Foreign(source=flat, size=7).images((1, 1, 64), 0)
    with pytest.raises(FedkdError, match="the private data itself"):
        build(Digits(), Iid(), Foreign(source=Digits()), 0, 0)


def test_natural_clients_keep_their_own_samples(tmp_path: Path) -> None:
    owners = np.repeat([3, 5, 8], [10, 20, 30])
    x = np.arange(60, dtype=np.uint8)[:, None]
    source = npz(tmp_path / "a.npz", x, client=owners)
    fed = build(source, Natural(), Contributed(), 0.1, 0)
    assert fed.n_clients == 3
    for i, owner in enumerate((3, 5, 8)):
        mine = torch.cat([fed.client(i)[0], fed.contribution(i)[0]]).flatten()
        assert set(owners[mine.numpy()]) == {owner}


def test_smallest_clients_can_contribute() -> None:
    kept, given_away = Contributed(fraction=0.01).divide(
        [np.array([0, 2]), np.array([1, 3])], np.array([0, 1, 1, 0]), 0
    )
    assert [len(ids) for ids in (*kept, *given_away)] == [1, 1, 1, 1]


@pytest.mark.parametrize("validation", [-0.1, 1.0])
def test_a_wrong_validation_fraction_is_refused(validation: float) -> None:
    with pytest.raises(FedkdError, match="allowed: 0 <= fraction < 1"):
        build(Digits(), Iid(), None, validation, 0)


def test_a_proxy_of_nothing_is_explained() -> None:
    with pytest.raises(ValidationError, match="every client must give some"):
        Contributed(fraction=0)
    assert list(PROXIES) == ["contributed", "public", "foreign"]
    nested = {"name": "foreign", "source": {"name": "digits"}}
    proxy: Any = TypeAdapter(Proxy).validate_python(nested)
    assert proxy == Foreign(source=Digits())

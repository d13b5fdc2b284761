"""Canaries among images: each kind is what it says, nobody else holds it, and it has its place."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fedkd.data.canaries import IMAGES, Canaries
from fedkd.data.canary_images import hold_out
from fedkd.data.dataset import NO_LABEL
from fedkd.data.federation import Federation, build
from fedkd.data.idx import Idx
from fedkd.data.npz import Npz
from fedkd.data.partition import Iid, Natural
from fedkd.data.proxy import Public
from fedkd.data.sources import Digits, load
from fedkd.errors import FedkdError


def world(name: str, each: int = 40, **more: object) -> Federation:
    settings = {"format": name, "assign": "coin", "repetitions": (0, 1), "each": each, **more}
    row = Canaries.model_validate(settings)
    return build(Digits(), Iid(clients=5), Public(size=100), 0.1, 1, row)


def arrays(fed: Federation) -> tuple[np.ndarray, np.ndarray]:
    x, y = fed.canary_records()
    return x.numpy(), y.numpy()


def uniform(labels: np.ndarray) -> bool:
    return bool(stats.chisquare(np.bincount(labels, minlength=10)).pvalue > 0.01)


@pytest.mark.parametrize("name", IMAGES)
def test_records_are_like_the_data_s_and_all_different(name: str) -> None:
    fed = world(name)
    x, y = arrays(fed)
    assert x.shape == (200, 1, 8, 8)
    assert x.dtype == np.uint8
    assert y.dtype == np.int64
    assert uniform(y)
    assert len(np.unique(x.reshape(200, -1), axis=0)) == 200
    again = world(name)
    build.cache_clear()
    assert all(map(torch.equal, world(name).canary_records(), again.canary_records()))
    assert fed.canary_records()[0] is not world(name, each=41).canary_records()[0]


@pytest.mark.parametrize("name", ["mislabelled", "ood"])
def test_images_that_canaries_are_made_of_belong_to_nobody(name: str) -> None:
    fed, plain = world(name), build(Digits(), Iid(clients=5), Public(size=100), 0.1, 1)
    train = fed.train.x.numpy().reshape(-1, 64)
    held = np.concatenate([*fed.private, fed.validation_ids])
    rest = np.setdiff1d(np.arange(len(train)), held)  # the proxy's too
    sorted_rest = {tuple(sorted(image)) for image in train[rest]}
    x, y = arrays(fed)
    assert len(held) == len(plain.validation_ids) + sum(map(len, plain.private)) - 200
    assert np.array_equal(fed.validation_ids, plain.validation_ids)
    for image, label in zip(x.reshape(-1, 64), y, strict=True):
        assert tuple(sorted(image)) in sorted_rest
        found = np.flatnonzero((train == image).all(1))
        if name == "mislabelled":
            assert len(found) == 1
            assert found[0] in rest
            assert fed.train.y[found[0]] != label


def test_wrong_labels_are_uniform_over_the_others() -> None:
    fed = world("mislabelled", each=100)
    x, y = arrays(fed)
    train = fed.train.x.numpy().reshape(-1, 64)
    true = [int(fed.train.y[(train == image).all(1)][0]) for image in x.reshape(-1, 64)]
    shift = np.bincount((y - np.array(true)) % 10, minlength=10)
    assert shift[0] == 0
    assert stats.chisquare(shift[1:]).pvalue > 0.01


def test_canaries_do_not_hang_on_the_proxy() -> None:
    """Every row of a comparison has the same ones, with a proxy set or without."""
    row = Canaries(format="mislabelled")
    records = [
        build(Digits(), Iid(clients=5), proxy, 0.1, 1, row).canary_records()
        for proxy in (None, Public(size=50), Public(size=100))
    ]
    assert all(torch.equal(records[0][0], x) for x, _ in records)


def test_shuffled_images_keep_their_tiles() -> None:
    fed = world("ood")
    images = np.concatenate([arrays(fed)[0], fed.train.x.numpy()])[:, 0]
    corners = [(i, j) for i in range(0, 8, 2) for j in range(0, 8, 2)]
    tiles = [sorted(x[i : i + 2, j : j + 2].tobytes() for i, j in corners) for x in images]
    shuffled, originals = tiles[:200], {tuple(image): i for i, image in enumerate(tiles[200:])}
    moved = 0
    for x, mine in zip(arrays(fed)[0], shuffled, strict=True):
        original = fed.train.x.numpy()[originals[tuple(mine)]]
        moved += not np.array_equal(x, original)
    assert moved == 200


def test_blank_images_have_one_level_and_no_two_the_same() -> None:
    x, _ = arrays(world("blank", each=51))
    assert (x == x[:, :, :1, :1]).all()
    assert len(np.unique(x[:, 0, 0, 0])) == 255
    with pytest.raises(FedkdError, match="too many blank canaries; got 260; allowed: up to 256"):
        world("blank", each=52)


def test_noise_is_uniform() -> None:
    x, _ = arrays(world("noise"))
    assert stats.chisquare(np.bincount(x.ravel(), minlength=256)).pvalue > 0.01


def test_a_rendered_sentence_can_be_read_back() -> None:
    """Of Fashion-MNIST's size: each image is nearest to the rendering of its own secret."""
    row = Canaries(format="rendered", repetitions=(1,), each=60)
    fed = build(Idx(), Iid(clients=2), None, 0.05, 1, row)
    x = fed.canary_records()[0].double().flatten(1)
    assert {c.sentence[:-5] for c in fed.canaries} == {"My PIN is "}
    assert len({c.secret for c in fed.canaries}) == 120
    assert all(0 <= c.index < 10**4 for c in fed.canaries)
    distance = torch.cdist(x, x) + torch.eye(120) * 1e9
    assert float(distance.min()) > 100  # one digit changed moves some pixels a lot
    assert 10 < float(x.mean()) < 128


def npz(folder: Path, x: np.ndarray, **more: np.ndarray) -> Npz:
    path = folder / "data.npz"
    np.savez(path, x=x, y=np.arange(len(x)) % 4, x_test=x[:4], y_test=np.arange(4), **more)
    return Npz(path=str(path))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(3, 9, 10), (1, 1, 30), (1, 3, 5)])
def test_any_shape_of_floats(tmp_path: Path, name: str, shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(80, *shape)).astype(np.float32)
    x[:, 0] += 50
    source = npz(tmp_path, x)
    row = Canaries.model_validate({"format": name, "repetitions": (0, 1), "each": 3})
    fed = build(source, Iid(clients=4), None, 0, 1, row)
    made = arrays(fed)[0]
    assert made.shape == (24, *shape)
    assert made.dtype == np.float32
    axes = (0, 2, 3)
    assert (made.min(axes) >= load(source).train.x.numpy().min(axes)).all()
    assert (made.max(axes) <= load(source).train.x.numpy().max(axes)).all()
    assert len(np.unique(made.reshape(24, -1), axis=0)) == 24


def test_in_the_proxy_they_come_last_and_teach_no_label() -> None:
    fed = world("noise", in_proxy=True)
    assert fed.public_x is not None
    assert fed.public_y is not None
    assert fed.public_strata is not None
    ids = fed.canary_proxy_ids()
    assert ids is not None
    assert ids.tolist() == [[100 + k] for k in range(200)]
    x, y = fed.canary_records()
    assert torch.equal(fed.public_x[ids[:, 0]], x)
    assert (fed.public_y[ids[:, 0]] == NO_LABEL).all()
    assert fed.public_strata[ids[:, 0]].tolist() == y.tolist()
    assert world("noise").canary_proxy_ids() is None


def test_too_many_for_the_data_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(FedkdError, match=r"more than half of the training images; got 1000"):
        world("mislabelled", each=200)
    owners = np.repeat([0, 1, 2], [2, 40, 40])
    x = np.random.default_rng(0).random((82, 1, 4, 4))
    source = npz(tmp_path, x, client=owners)
    row = Canaries(format="mislabelled", repetitions=(1,), each=13)
    both = next(s for s in range(99) if {0, 1} <= set(hold_out(np.arange(82), 39, s).tolist()))
    with pytest.raises(FedkdError, match="took all that an owner has; got '2 owners left'"):
        build(source, Natural(), None, 0, both, row)


def test_a_thousand_on_ten_clients_are_cheap_and_need_no_faker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "faker", None)  # importing it would raise
    build(Idx(), Iid(), Public(size=1000), 0.05, 1)  # the data are loaded
    for name in set(IMAGES) - {"blank"}:
        row = Canaries.model_validate({"format": name, "assign": "coin", "each": 100})
        start = time.perf_counter()
        fed = build(Idx(), Iid(), Public(size=1000), 0.05, 1, row)
        assert len(fed.canaries) == 1000
        assert time.perf_counter() - start < 10  # 0.1 s, and 1.5 s where sentences are rendered

"""Draws hang on their address alone, and nothing reads or moves a global generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedkd import training
from fedkd.config_sections import Phase
from fedkd.data import federation
from fedkd.data.canaries import IMAGES, Canaries, insert, sentences
from fedkd.data.dataset import split_test, stratified
from fedkd.data.partition import PARTITIONS, Iid
from fedkd.data.proxy import Contributed, Foreign, Public
from fedkd.data.sources import Digits, Pydoc
from fedkd.exchange.score import KMeans
from fedkd.models.zoo import IMAGE_MODELS, TEXT_MODELS, build
from fedkd.rng import stream, torch_stream

Address = tuple[int, str, int, int, str]
WORDS = st.text("abcdefghijklmnopqrstuvwxyz-", max_size=8)
PARTS = (st.integers(), WORDS, st.integers(0), st.integers(-1), WORDS)
ADDRESSES = st.tuples(*PARTS)


def numpy_draws(address: Address) -> list[int]:
    return stream(*address).integers(2**62, size=4).tolist()


def torch_draws(address: Address) -> list[int]:
    return torch.randint(2**62, (4,), generator=torch_stream(*address)).tolist()


BOTH = pytest.mark.parametrize("draws", [numpy_draws, torch_draws])


@BOTH
@given(ADDRESSES)
@settings(deadline=None, max_examples=50)
def test_the_same_address_gives_the_same_draws(
    draws: Callable[[Address], list[int]], address: Address
) -> None:
    assert draws(address) == draws(address)


@BOTH
@given(ADDRESSES, st.sampled_from(range(5)), st.data())
@settings(deadline=None, max_examples=200)
def test_any_changed_part_of_the_address_changes_the_draws(
    draws: Callable[[Address], list[int]], address: Address, part: int, data: st.DataObject
) -> None:
    value = data.draw(PARTS[part].filter(lambda value: value != address[part]))
    other = (*address[:part], value, *address[part + 1 :])
    assert draws(address) != draws(other)


def test_the_draws_are_those_of_every_other_version_of_this_house() -> None:
    """Fixed for ever: a change here would change every result that was ever published."""
    address = (1, "client", 2, 3, "train")
    assert stream(*address).bit_generator.random_raw(2).tolist() == [
        2575363537066619939,
        3777934935303648204,
    ]
    assert torch_stream(*address).initial_seed() == 4729917651563137781


def test_neighbouring_addresses_are_independent() -> None:
    first = [
        stream(seed, "client", round_, client, "train").random()
        for seed in range(10)
        for round_ in range(10)
        for client in range(20)
    ]
    assert stats.kstest(first, "uniform").pvalue > 0.01
    assert abs(stats.pearsonr(first[:-1], first[1:]).statistic) < 3 / np.sqrt(len(first))


def test_torch_draws_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert torch_stream(1, "client").device.type == "cpu"


# --- nothing reads or moves a global generator ---


def states() -> list[object]:
    version, numpy_state, *rest = np.random.get_state()  # noqa: NPY002  # the one we watch
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [
        random.getstate(),
        [version, np.asarray(numpy_state).tolist(), *rest],
        torch.get_rng_state().tolist(),
        [state.tolist() for state in cuda],
    ]


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """All global generators at `seed`; afterwards they are where they were."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])  # noqa: NPY002
    torch.set_rng_state(kept[2])


def leaves_globals_alone(act: Callable[[], list[torch.Tensor]]) -> bool:
    """Whether `act` gives the same bits under two global seeds and moves no global state."""
    act()  # a library that is imported for it may draw once
    results = []
    for seed in (1, 2):
        federation.build.cache_clear()
        with global_seed(seed):
            before = states()
            results.append(act())
            if states() != before:
                return False
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def train(model: str) -> list[torch.Tensor]:
    net = build(model, (1, 8, 8), 4, torch_stream(1, "test"))
    x, y = torch.arange(40 * 64).reshape(40, 1, 8, 8) % 7 / 7, torch.arange(40) % 4
    phase = Phase(epochs=2, batch_size=16)
    training.fit(net, x, y, training.cross_entropy, phase, stream(1, "test"))
    training.grades(net, x, y)
    return list(net.state_dict().values())


def write(model: str) -> list[torch.Tensor]:
    net = build(model, (1, 1, 8), 5, torch_stream(1, "test"), torch.int16)
    return [*net.state_dict().values(), net(torch.arange(16).view(2, 1, 1, 8) % 5)]


def fit_score(per_class: bool) -> list[torch.Tensor]:
    x = torch.arange(300.0).sin().reshape(100, 3)
    score = KMeans(k=4, per_class=per_class)
    state = score.fit(x, torch.arange(100) % 3, torch_stream(1, "test"))
    return [state, score.score(state, x)]


def split(partition: str) -> list[torch.Tensor]:
    labels, owners = np.arange(400) % 10, np.arange(400) % 6
    parts = PARTITIONS[partition]().split(labels, owners, seed=1)  # type: ignore[attr-defined]
    return [torch.from_numpy(part) for part in parts]


def federate(proxy: Contributed | Public | Foreign) -> list[torch.Tensor]:
    world = federation.build(Digits(), Iid(clients=3), proxy, 0.1, 1)
    return [torch.from_numpy(ids) for ids in (*world.private, *world.contributed)]


def hold_out() -> list[torch.Tensor]:
    whole = Digits().load().train
    chosen = stratified(whole.y.numpy(), 50, stream(1, "test"))
    text = Pydoc(length=99).load().test.x
    return [torch.from_numpy(chosen), split_test(whole, 0.3).test.x, text]


def plant() -> list[torch.Tensor]:
    drawn = Canaries(each=3).draw([4, 2], seed=1)
    x, y = Pydoc().load().test.rows(np.arange(20))
    return list(insert(x, y, *sentences(drawn, "characters", 64), stream(1, "test")))


def plant_images(name: str) -> list[torch.Tensor]:
    canaries = Canaries.model_validate({"format": name, "assign": "coin", "holders": 2})
    world = federation.build(Digits(), Iid(clients=3), Public(size=100), 0.1, 1, canaries)
    return [*world.canary_records(), *world.client(1)]


FOREIGN = Foreign(source=Digits(test_fraction=0.5), size=50)


@pytest.mark.parametrize(
    "act",
    [
        *(pytest.param(lambda name=name: train(name), id=name) for name in IMAGE_MODELS),
        *(pytest.param(lambda name=name: write(name), id=name) for name in TEXT_MODELS),
        *(
            pytest.param(lambda name=name: split(name), id=name)
            for name in sorted(PARTITIONS.keys() - {"virtual", "own"})
        ),
        *(
            pytest.param(lambda proxy=proxy: federate(proxy), id=proxy.name)
            for proxy in (Contributed(), Public(size=100), FOREIGN)
        ),
        pytest.param(lambda: fit_score(per_class=False), id="kmeans"),
        pytest.param(lambda: fit_score(per_class=True), id="kmeans per class"),
        pytest.param(hold_out, id="test set"),
        pytest.param(plant, id="canaries"),
        *(pytest.param(lambda name=name: plant_images(name), id=name) for name in IMAGES),
    ],
)
def test_no_global_generator_is_read_or_moved(act: Callable[[], list[torch.Tensor]]) -> None:
    assert leaves_globals_alone(act)


@pytest.mark.parametrize(
    "act",
    [
        lambda: [torch.rand(1)],
        lambda: [torch.zeros(1).fill_(random.random())],
        lambda: [torch.zeros(1).fill_(np.random.rand())],  # noqa: NPY002
        lambda: [torch.zeros(1)] if torch.manual_seed(0) else [],
        lambda: [torch.get_rng_state()],
    ],
)
def test_the_check_sees_a_global_generator(act: Callable[[], list[torch.Tensor]]) -> None:
    assert not leaves_globals_alone(act)

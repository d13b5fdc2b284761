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

from fedkd.data.canaries import Canaries
from fedkd.data.dataset import NO_LABEL
from fedkd.data.federation import Federation, build, held, joined
from fedkd.data.idx import Idx
from fedkd.data.npz import Npz
from fedkd.data.partition import Iid, Natural, Own, Shards, Strong
from fedkd.data.proxy import PROXIES, Contributed, Foreign, Proxy, Public
from fedkd.data.sources import Digits
from fedkd.data.text import Pydoc, TextFolder
from fedkd.data.tokens import decode
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


# --- text ---

TEXT = Pydoc(owners=4)
MOST = Canaries(repetitions=(0, 1, 3))


def said(x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """Each record as a text: its first token, and all those that follow."""
    return [
        decode(np.r_[start, rest[rest != NO_LABEL]].astype(np.int16), "characters")
        for start, rest in zip(x[:, 0, 0, 0].numpy(), y.numpy(), strict=True)
    ]


def test_a_text_is_dealt_by_topics_and_counted_by_them() -> None:
    fed = build(TEXT, Natural(), Contributed(fraction=0.2), 0.1, 1)
    assert fed.tokens == "characters"
    assert fed.train.n_strata == 79 != fed.train.n_classes == 97
    topics_of = []
    for i in range(fed.n_clients):
        held = np.concatenate([fed.private[i], fed.contributed[i]])
        topics = fed.train.strata[held]
        assert fed.counts(i).tolist() == np.bincount(topics, minlength=79).tolist()
        topics_of.append(set(topics.tolist()))
        x, y = fed.client(i)
        assert x.shape == (len(fed.private[i]), 1, 1, 64)
        assert y.shape == (len(x), 64)
    assert sum(map(len, topics_of)) == len(set.union(*topics_of)) == 79  # each has one owner


def test_what_text_clients_contribute_is_the_proxy_s_truth() -> None:
    fed = build(TEXT, Natural(), Contributed(fraction=0.2), 0.1, 1)
    truth = fed.proxy_truth
    assert truth is not None
    labels, strata = truth
    given = [fed.contribution(i) for i in range(fed.n_clients)]
    assert np.array_equal(labels, torch.cat([y for _, y in given]).numpy())
    assert np.array_equal(strata, fed.train.strata[np.concatenate(list(fed.contributed))])
    for i, (x, _) in enumerate(given):
        share = len(x) / (len(x) + len(fed.private[i]))
        assert share == pytest.approx(0.2, abs=0.01)


def planted(proxy: Any, canaries: Canaries, validation: float = 0.1) -> Federation:
    return build(TEXT, Natural(), proxy, validation, 1, canaries)


@pytest.mark.parametrize(
    ("proxy", "in_proxy"),
    [(None, True), (Public(size=300), False), (Public(size=300), True), (Contributed(), False)],
)
def test_a_canary_is_in_its_client_s_private_records_only(proxy: Any, in_proxy: bool) -> None:
    fed = planted(proxy, MOST.model_copy(update={"in_proxy": in_proxy}))
    assert len(fed.canaries) == 4 * 3
    shared = []
    if fed.public_x is not None and fed.public_y is not None:
        shared = said(fed.public_x, fed.public_y)
    others = said(fed.test.x, fed.test.y) + said(*fed.train.rows(fed.validation_ids))
    for i in range(4):
        mine = said(*fed.client(i))
        others += said(*fed.contribution(i))
        for canary in fed.canaries:
            times = canary.repetitions if canary.client == i else 0
            assert mine.count(canary.sentence) == times
        copies = sum(c.repetitions for c in fed.canaries if c.client == i)
        assert len(mine) == len(fed.private[i]) + copies
    for canary in fed.canaries:
        assert canary.sentence not in others
        assert shared.count(canary.sentence) == (in_proxy and isinstance(proxy, Public))


def test_canaries_change_nothing_else() -> None:
    plain, fed = build(TEXT, Natural(), Public(size=300), 0.1, 1), planted(Public(size=300), MOST)
    for i in range(4):
        assert np.array_equal(plain.private[i], fed.private[i])
        secrets = {c.sentence for c in fed.canaries}
        assert [t for t in said(*fed.client(i)) if t not in secrets] == said(*plain.client(i))
        assert torch.equal(fed.client(i)[0], fed.client(i)[0])  # the same places each time
    assert plain.public_x is not None
    assert fed.public_x is not None
    assert torch.equal(plain.public_x, fed.public_x)


def test_canaries_in_the_proxy_come_after_it_with_a_topic_of_their_client() -> None:
    fed = planted(Public(size=300), MOST.model_copy(update={"in_proxy": True}))
    assert fed.public_x is not None
    assert fed.public_y is not None
    assert fed.public_strata is not None
    assert len(fed.public_x) == len(fed.public_y) == len(fed.public_strata) == 300 + 12
    last = said(fed.public_x[300:], fed.public_y[300:])
    assert last == [canary.sentence for canary in fed.canaries]
    for canary, topic in zip(fed.canaries, fed.public_strata[300:], strict=True):
        assert fed.counts(canary.client)[topic] > 0
    truth = fed.proxy_truth
    assert truth is not None
    assert truth[0].shape == (312, 64)


def test_canaries_are_refused_in_other_data_and_in_other_proxies() -> None:
    with pytest.raises(FedkdError, match=r"the data digits cannot hold.*allowed: mislabelled, "):
        build(Digits(), Iid(), Public(size=50), 0.1, 1, Canaries())
    with pytest.raises(FedkdError, match=r"the data pydoc cannot hold.*allowed: pin, "):
        planted(None, Canaries(format="noise"))
    foreign = Foreign(source=Pydoc(owners=3))
    for proxy in (Contributed(), foreign):
        with pytest.raises(FedkdError, match="only a public proxy set can hold the canaries"):
            planted(proxy, Canaries(in_proxy=True))


def test_a_client_with_its_own_data_knows_them_and_nothing_of_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 256, (30, 1, 4, 4), dtype=np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "own.npz", x=x, y=y, x_test=x[:6], y_test=y[:6])
    source = Npz(path=str(tmp_path / "own.npz"))
    world = held(source, 1, Own(clients=3, classes=10), Contributed(fraction=0.2), 1)
    assert [len(part) for part in world.private] == [0, 24, 0]
    assert [len(part) for part in world.contributed] == [0, 6, 0]
    assert not set(world.private[1]) & set(world.contributed[1])
    assert torch.equal(world.test.x, torch.from_numpy(x[:6]))
    assert world.train.n_classes == 10
    assert len(held(source, 1, Own(clients=3), None, 1).private[1]) == 30
    for seat, classes, reason in ((3, 10, "no such seat"), (0, 2, "other classes")):
        with pytest.raises(FedkdError, match=reason):
            held(source, seat, Own(clients=3, classes=classes), None, 1)


def test_what_some_owners_know_together_is_what_each_knows(tmp_path: Path) -> None:
    """Images and texts: each client's records, contributions and topics are as its own say."""
    rng = np.random.default_rng(1)
    for seat in (0, 2):
        x = rng.integers(0, 256, (20 + seat, 1, 4, 4), dtype=np.uint8)
        y = rng.integers(0, 3, len(x))
        np.savez(tmp_path / f"{seat}.npz", x=x, y=y, x_test=x[:5], y_test=y[:5])
        (tmp_path / f"{seat}").mkdir()
        for topic in range(1 + seat):
            (tmp_path / f"{seat}/{topic}.txt").write_text("abcdef" * (30 + seat))
    images = [Npz(path=str(tmp_path / f"{seat}.npz")) for seat in (0, 2)]
    texts = [TextFolder(path=str(tmp_path / f"{seat}"), length=8) for seat in (0, 2)]
    for sources, n_classes in ((images, 3), (texts, 97)):
        own = Own(clients=3, classes=n_classes)
        given = Contributed(fraction=0.3)
        parts = {
            seat: held(source, seat, own, given, 1)
            for seat, source in zip((0, 2), sources, strict=True)
        }
        whole = joined(dict(reversed(parts.items())), 3, None, 1)
        assert whole.n_clients == 3
        assert len(whole.private[1]) == len(whole.contributed[1]) == 0
        for seat, part in parts.items():
            for one, other in (
                (whole.client(seat), part.client(seat)),
                (whole.contribution(seat), part.contribution(seat)),
            ):
                assert torch.equal(one[0], other[0])
                assert torch.equal(one[1], other[1])
            counts = whole.counts(seat)
            assert counts[: part.train.n_strata].tolist() == part.counts(seat).tolist()
            assert not counts[part.train.n_strata :].any()
        assert len(whole.test) == sum(len(part.test) for part in parts.values())
    with pytest.raises(FedkdError, match="not of one kind"):
        joined({0: held(images[0], 0, Own(clients=3, classes=3), None, 1), 1: parts[0]}, 3, None, 1)
    with pytest.raises(FedkdError, match="there are none"):
        joined({}, 3, None, 1)

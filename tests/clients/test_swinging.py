"""Clients under Swing: how private each position is, and what teachers and students do there."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax
from torch import Tensor

from clients import degrees, guard, steps
from clients.client import Client, ProxySet
from fedkd import config, protection
from fedkd.data.tokens import encode
from fedkd.exchange.consensus import Consensus
from fedkd.payload import Pool
from privacy import asked
from privacy.asked import CLIENT
from privacy.dp_events import from_dp_event
from protected_runs import (
    CPU,
    OPEN,
    PUBLIC,
    cell,
    client_of,
    entries,
    proxy_of,
)
from scenarios.simulate import simulate
from small_runs import facts, small

SENTENCE = "card 4111 1111 1111 1111 of pin 12345!"
LENGTH = len(SENTENCE)
COMMON = "nothing to be seen here, move along".ljust(LENGTH)


def tiny(
    *texts: str, training: dict[str, Any] | None = None, **release: Any
) -> tuple[Client, ProxySet]:
    """A proxy set of records: unless told, a sentence with numbers in it, and one without."""
    scenario = config.parse(
        {
            "data": {"name": "pydoc", "length": LENGTH},
            "partition": {"name": "natural"},
            "model": {"names": ["gru"]},
            "method": {"name": "no-filter"},
            "training": training or {},
            "privacy": {"release": {"name": "swing", **release}},
        }
    )
    x = np.stack([encode(text, "characters") for text in texts or (SENTENCE, COMMON)])
    pool = Pool(x.astype(np.int16)[:, None, None, :], np.full(len(x), -1, np.int32))
    return client_of(scenario), ProxySet.of(pool, CPU)


def public_degrees(client: Client, proxy: ProxySet) -> Tensor:
    row = client.scenario.privacy.release
    assert isinstance(row, protection.Swing)
    found = degrees.public(proxy, row, "characters")
    assert found is not None
    return found


def temperatures_by_hand() -> list[float]:
    """Of T = 1 to 16: a card number has degree 1, five digits 0.8; a position predicts the next."""
    degree = [0.0] * LENGTH
    for at in range(5, 24):
        degree[at] = 1.0
    for at in range(32, 37):
        degree[at] = 0.8
    assert SENTENCE[5:24] == "4111 1111 1111 1111"
    assert SENTENCE[32:37] == "12345"
    following = [*degree[1:], degree[-1]]
    return [16.0**d for d in following] + [1.0] * LENGTH


def test_positions_of_numbers_are_the_hottest() -> None:
    client, proxy = tiny(t_max=16.0)
    row = client.scenario.privacy.release
    assert isinstance(row, protection.Swing)
    hot = asked.swing_of(row, "public").temperatures(public_degrees(client, proxy))
    assert hot.tolist() == pytest.approx(temperatures_by_hand())


def test_what_swing_tells_is_the_softmax_at_each_position_s_temperature() -> None:
    client, proxy = tiny(t_max=16.0)
    model = client.model(None).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    records = torch.tensor([0, 1])
    logits = steps.training.predict(model, proxy.x).flatten(0, -2)
    values, claim = guard.told(client, proxy, records, logits)
    z = logits.double()
    z = (z - (z.max(1).values + z.min(1).values)[:, None] / 2).clip(-5, 5)
    t = torch.tensor(temperatures_by_hand(), dtype=torch.float64)
    torch.testing.assert_close(values, torch.softmax(z / t[:, None], 1).float())
    assert claim.guarantee == "empirical"
    only_second, _ = guard.told(client, proxy, records[1:], logits[LENGTH:])
    assert torch.equal(only_second, values[LENGTH:])


@pytest.mark.parametrize("noise", ["none", "gaussian"])
def test_students_learn_at_the_teachers_temperatures(noise: str) -> None:
    client, proxy = tiny(t_max=16.0, noise=noise)
    ids = torch.arange(2 * LENGTH)
    target = torch.full((2 * LENGTH, 97), 1 / 97)
    lesson = guard.lesson(client, proxy, ids, target)
    wanted = torch.tensor(temperatures_by_hand())
    torch.testing.assert_close(lesson[:, :-2], target)
    torch.testing.assert_close(lesson[:, -2], wanted)
    weight = torch.ones_like(wanted) if noise == "none" else wanted**-2
    torch.testing.assert_close(lesson[:, -1], weight)


def test_students_are_told_no_temperature_that_only_the_teacher_knows() -> None:
    degree = {"degree": "classes", "private_classes": [1]}
    scenario = small(**OPEN, **PUBLIC, privacy={"release": {"name": "swing", "t_min": 2, **degree}})
    client = client_of(scenario)
    lesson = guard.lesson(client, proxy_of(client), torch.arange(5), torch.full((5, 10), 0.1))
    assert lesson[:, -2].tolist() == [2.0] * 5


def test_a_part_of_a_record_can_be_learnt_under_swing() -> None:
    """A consensus may hold some positions of a record: those without one must not count."""
    client, proxy = tiny()
    model = client.model(None)
    ids = np.array([3, 4, 40], dtype=np.int32)
    values = np.full((3, 97), 1 / 97, dtype=np.float32)
    steps.learn_consensus([client], [model], proxy, Consensus(ids, values))
    assert client.metrics["distill_loss"] > 0
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_what_is_said_once_is_hotter_than_what_others_say_too() -> None:
    """Even a record that repeats itself: it is read by n-grams of other records."""
    client, proxy = tiny(SENTENCE, COMMON, COMMON, COMMON, degree="rarity")
    found = public_degrees(client, proxy).view(4, LENGTH)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    numbers = torch.tensor([SENTENCE[t + 1].isdigit() for t in range(LENGTH - 1)])
    assert float(found[0, :-1][numbers].min()) > 2 * float(found[2].max())
    # No other record has a digit, so by hand one is as likely as 1 of 97 in 2 * LENGTH + 1 tokens.
    assert float(found[0, 32]) == 1.0
    assert found[2, -1] == found[2, -2]


# --- degrees by a public model ---


def private_degrees(client: Client, proxy: ProxySet, logits: Tensor, *records: int) -> Tensor:
    row = client.scenario.privacy.release
    assert isinstance(row, protection.Swing)
    return degrees.private(client, proxy, row, torch.tensor(records), logits).view(-1, LENGTH)


def test_the_public_model_of_a_text_never_saw_it() -> None:
    """Another text in one half of the proxy set changes what is known of the other half alone."""
    client, proxy = tiny(SENTENCE, COMMON, SENTENCE, COMMON, degree="divergence")
    _, other = tiny(SENTENCE[::-1], COMMON, SENTENCE, COMMON, degree="divergence")
    zeros = torch.zeros(4 * LENGTH, 97)
    before, after = (private_degrees(client, pool, zeros, 0, 1, 2, 3) for pool in (proxy, other))
    assert torch.equal(before[2], after[2])
    assert not torch.allclose(before[1::2], after[1::2])
    some = private_degrees(client, proxy, zeros[: 2 * LENGTH], 1, 2)
    torch.testing.assert_close(some, before[1:3], rtol=1e-5, atol=0)  # other sizes, other kernels


def test_a_client_that_knows_no_more_than_the_public_has_little_to_hide() -> None:
    """By hand, of KL = 0; and where it is sure of one token, by SciPy."""
    client, proxy = tiny(COMMON, COMMON, COMMON, SENTENCE, degree="divergence")
    theirs = degrees._public_logits(client, proxy)
    alike = private_degrees(client, proxy, theirs[[0]].flatten(0, 1), 0)
    np.testing.assert_allclose(alike, 1 / (1 + math.exp(1.0 / 0.25)), rtol=1e-5)
    sure = theirs[[0]].clone()
    sure[0, 5, 7] += 20.0
    found = private_degrees(client, proxy, sure.flatten(0, 1), 0)[0]
    p, q = (softmax(values[0, 5].double().numpy()) for values in (sure, theirs))
    assert float(found[5]) == pytest.approx(expit((rel_entr(p, q).sum() - 1.0) / 0.25))
    assert float(found[5]) > 0.99
    assert torch.equal(found[:5], alike[0, :5])


def test_the_public_model_has_learnt_what_the_texts_say() -> None:
    client, proxy = tiny(
        *[COMMON] * 20,
        degree="divergence",
        training={"local": {"batch_size": 2, "learning_rate": 0.01}},
    )
    said = degrees._public_logits(client, proxy)[0, :-1].argmax(1).numpy()
    assert (said == encode(COMMON, "characters")[1:]).mean() > 0.9


def test_texts_that_compress_well_are_taken_to_be_memorised() -> None:
    """By default zlib's length alone counts; each position of a text has the text's degree."""
    again = "again and again and again and again".ljust(LENGTH)
    texts = (SENTENCE, COMMON, again)
    client, proxy = tiny(*texts, degree="memorization")
    found = private_degrees(client, proxy, torch.zeros(3 * LENGTH, 97), 0, 1, 2)
    assert torch.equal(found, found[:, :1].expand(-1, LENGTH))
    bits = np.array([8.0 * len(zlib.compress(text.encode())) for text in texts])
    by_hand = expit(-4.5 * (bits - bits.mean()) / bits.std())
    np.testing.assert_allclose(found[:, 0], by_hand)
    assert by_hand[2] > 0.99


def test_memorization_weighs_how_easy_a_text_is_to_the_client() -> None:
    client, proxy = tiny(COMMON, COMMON, degree="memorization", coefficients=(0, 0, -4.5, 0))
    logits = torch.zeros(2, LENGTH, 97)
    logits[1, range(LENGTH - 1), encode(COMMON, "characters")[1:]] = 10.0
    found = private_degrees(client, proxy, logits.flatten(0, 1), 0, 1)
    np.testing.assert_allclose(found[:, 0], expit([-4.5, 4.5]))


@pytest.mark.parametrize("degree", ["divergence", "memorization"])
def test_a_run_with_a_degree_by_a_public_model(tmp_path: Path, degree: str) -> None:
    """The ledger says that the degree is private, and charges the lowest temperature for it."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(f"{COMMON} {SENTENCE} of {name}. " * 16)
    release = {"name": "swing", "degree": degree, "noise": "gaussian", "scale": 1.0, "t_min": 2.0}
    scenario = config.parse(
        {
            "data": {"name": "text", "path": str(folder), "length": 16},
            "partition": {"name": "natural"},
            "proxy": {"name": "public", "size": 10},
            "model": {"names": ["gru"]},
            "training": {"rounds": 2},
            "method": {"name": "no-filter"},
            "privacy": {"release": release, "training": {"name": "dp-sgd"}},
        }
    )
    result = simulate(scenario, folder=tmp_path / "run")
    assert not result.cells[0].of("refused")
    assert facts(result) == facts(simulate(scenario))
    answers = [e for e in entries(cell(tmp_path / "run", scenario), 0) if e.what == "soft labels"]
    row = scenario.privacy.release
    assert isinstance(row, protection.Swing)
    worst = asked.swing_of(row, "private").cost(torch.zeros(10 * 16), 97)
    for entry in answers:
        assert entry.reason == f"swing by {degree}, a private degree"
        assert entry.events == from_dp_event(worst.event, CLIENT)
        assert entry.derived_from == ("training",)  # the degree reads the model, and no record
    assert len(answers) == 2

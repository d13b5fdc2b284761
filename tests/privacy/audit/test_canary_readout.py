"""Canary readout: exact losses, bounds over all models by brute force, and real trained clients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from fedkd.config_sections import Phase
from fedkd.data.canaries import FORMATS, Canaries, Canary, Format, insert, sentences
from fedkd.data.sources import load
from fedkd.data.text import Pydoc
from fedkd.data.tokens import VOCABULARY, encode
from fedkd.models.zoo import Classifier, build
from fedkd.rng import stream, torch_stream
from fedkd.training import cross_entropy, fit, predict
from privacy.audit.canary_readout import Readout, positions, readout, undo_temperature
from privacy.audit.exposure import NULL_BITS, candidate_losses, exposures
from privacy.audit.uploads import Answer, mean_rows, rows_at
from privacy.mechanisms import Gaussian
from privacy.swing import Swing

Floats = NDArray[np.float64]
LENGTH = 64
SMALL = Format("", ("abc", "xy", "pqr"))
TINY = Canary(0, 1, "small", "It is ", "byr")


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    FORMATS["small"] = SMALL
    yield
    del FORMATS["small"]


def random_rows(seed: int, sharp: float, n: int = 3) -> Floats:
    """Distributions [n, vocabulary] that are peaked on the letters of SMALL."""
    rng = stream(seed, "test")
    scores = rng.normal(0, 1, (n, VOCABULARY["characters"])) - 4
    for k, symbols in enumerate(SMALL.blanks):
        scores[k, encode(symbols, "characters")] = rng.normal(0, sharp, len(symbols))
    return softmax(scores, axis=1)


@cache
def clients() -> tuple[tuple[Canary, ...], Classifier, Classifier]:
    """Canaries, 4 controls and 4 that are repeated; who learnt them, and who did not."""
    train = load(Pydoc()).train
    mine = np.flatnonzero(train.client_ids == 0)[:80]
    drawn = Canaries(repetitions=(0,) * 4 + (16,) * 4).draw([0], seed=2)
    copies = [canary for canary in drawn for _ in range(canary.repetitions)]
    more = sentences(copies, "characters", LENGTH)
    x, y = insert(*train.rows(mine), *more, stream(2, "canary", client=0))
    nets = []
    for records, labels in ((x, y), train.rows(mine)):
        net = build("gru", (1, 1, LENGTH), 97, torch_stream(1, "test"), torch.int16)
        phase = Phase(epochs=20, batch_size=16, learning_rate=5e-3)
        fit(net, records, labels, cross_entropy, phase, stream(2, "test"))
        nets.append(net)
    return drawn, nets[0], nets[1]


def upload(net: Classifier, canaries: tuple[Canary, ...]) -> tuple[Answer, torch.Tensor]:
    """Soft labels at every position of a proxy set of these sentences, and the logits."""
    x, _ = sentences(canaries, "characters", LENGTH)
    z = predict(net.eval(), x).flatten(0, 1)
    return (np.arange(len(z), dtype=np.int32), torch.softmax(z, dim=1).numpy()), z


def read(answer: Answer, canaries: tuple[Canary, ...]) -> list[Readout]:
    return [
        readout(rows_at(answer, positions(canary, at, LENGTH, "characters")), canary, "characters")
        for at, canary in enumerate(canaries)
    ]


# --- what is ranked ---


def test_positions_are_those_that_foretell_the_secret() -> None:
    canaries = Canaries(format="number-plate", repetitions=(1,), each=5).draw([0, 1], seed=3)
    _, y = sentences(canaries, "characters", LENGTH)
    for at, canary in enumerate(canaries):
        places = positions(canary, at, LENGTH, "characters")
        assert y.flatten()[places].tolist() == encode(canary.secret, "characters").tolist()


@settings(deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.3, 1.0, 4.0]))
def test_ranks_are_those_of_loops(seed: int, sharp: float) -> None:
    rows = random_rows(seed, sharp)
    found = readout(rows, TINY, "characters")
    logs = np.log(rows)
    at = [encode(symbols, "characters") for symbols in SMALL.blanks]
    true = encode(TINY.secret, "characters")
    for k in range(3):
        assert found.place_ranks[k] == sum(logs[k, s] >= logs[k, true[k]] for s in at[k])
    totals = [sum(logs[k, s] for k, s in enumerate(c)) for c in product(*at)]
    own = totals[SMALL.index(TINY.secret)]
    assert found.independent.rank == sum(total >= own for total in totals)
    assert found.independent.size == found.least.size == 18
    # Rows that do not depend on what came before are one of the models that may have answered.
    assert found.least.bits <= found.independent.bits


def worst(rows: Floats) -> int:
    """The true secret's rank in the worst model that answers so: built, and ranked by loops."""
    at = [encode(symbols, "characters").tolist() for symbols in SMALL.blanks]
    true = encode(TINY.secret, "characters").tolist()
    p_true = math.prod(rows[k, true[k]] for k in range(3))
    ahead = 1
    for k in range(3):
        for s in at[k]:
            if s == true[k]:
                continue
            start = math.prod(rows[i, true[i]] for i in range(k)) * rows[k, s]
            n_ends = math.prod(len(symbols) for symbols in at[k + 1 :])
            # Its ends share their probability equally among as many as then beat the secret.
            ahead += max(
                (n for n in range(1, n_ends + 1) if start / n >= p_true * (1 - 1e-12)), default=0
            )
    return ahead


@settings(deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.3, 1.0, 4.0]))
def test_the_least_exposure_is_that_of_the_worst_model(seed: int, sharp: float) -> None:
    rows = random_rows(seed, sharp)
    assert readout(rows, TINY, "characters").least.rank == worst(rows)


def test_ties_zeros_and_missing_rows_never_help_the_reader() -> None:
    n = VOCABULARY["characters"]
    found = readout(np.full((3, n), 1 / n), TINY, "characters")
    assert (found.least.bits, found.independent.bits, found.answered) == (0, 0, 3)
    assert found.place_ranks == (3, 2, 3)
    found = readout(np.full((3, n), np.nan), TINY, "characters")
    assert (found.least.bits, found.independent.bits, found.answered) == (0, 0, 0)
    sure = np.zeros((3, n))
    sure[range(3), encode(TINY.secret, "characters")] = 1
    found = readout(sure, TINY, "characters")
    assert found.least.rank == found.independent.rank == 1
    # One place was not answered: that place tells nothing, the others all that they can.
    sure[1] = np.nan
    found = readout(sure, TINY, "characters")
    assert (found.answered, found.independent.rank, found.place_ranks) == (2, 2, (1, 2, 1))
    wrong = np.zeros((3, n))
    wrong[range(3), encode("axp", "characters")] = 1
    found = readout(wrong, TINY, "characters")
    assert found.least.bits == found.independent.bits == 0


# --- real clients ---


def test_a_real_upload_says_no_more_than_its_model() -> None:
    drawn, holder, other = clients()
    for net in (holder, other):
        answer, _ = upload(net, drawn)
        for canary, found, exact in zip(
            drawn, read(answer, drawn), exposures(net, drawn, "characters"), strict=True
        ):
            assert found.least.bits <= exact.bits
            symbols = [encode(s, "characters") for s in FORMATS["pin"].blanks]
            losses = candidate_losses(net, encode(canary.prefix, "characters"), symbols)
            rows = rows_at(answer, positions(canary, drawn.index(canary), LENGTH, "characters"))
            own = -np.log(rows[range(4), encode(canary.secret, "characters")]).sum()
            assert own == pytest.approx(losses[canary.index], rel=1e-4)


def test_an_upload_gives_away_what_its_client_learnt_by_heart() -> None:
    drawn, holder, other = clients()
    held = [canary.repetitions > 0 for canary in drawn]
    from_holder, from_other = (read(upload(net, drawn)[0], drawn) for net in (holder, other))
    for mine, found, theirs in zip(held, from_holder, from_other, strict=True):
        if mine:  # of 13.3 bits, and no model could make it less
            assert min(found.least.bits, found.independent.bits) > 10
        assert theirs.least.bits < 10
    # The consensus of the two still shows it: a mean of one who knows and one who does not.
    both = [rows_at(upload(net, drawn)[0], np.arange(8 * LENGTH)) for net in (holder, other)]
    told = np.arange(8 * LENGTH, dtype=np.int32), mean_rows(both).astype(np.float32)
    shown = [found.independent.bits for found in read(told, drawn)]
    assert np.mean(np.array(shown)[held]) > 10
    assert np.mean(np.array(shown)[~np.array(held)]) < NULL_BITS + 3 * NULL_BITS / 2


def test_an_untrained_client_says_what_chance_does() -> None:
    net = build("gru", (1, 1, LENGTH), 97, torch_stream(7, "test"), torch.int16)
    drawn = Canaries(repetitions=(0,), each=100).draw([0], seed=5)
    found = read(upload(net, drawn)[0], drawn)
    bits = [each.independent.bits for each in found]
    assert abs(np.mean(bits) - NULL_BITS) < 4 * NULL_BITS / math.sqrt(100)
    assert np.mean([each.least.bits for each in found]) < NULL_BITS


# --- the adaptive reader ---


@given(st.integers(0, 99), st.floats(1, 50))
def test_a_temperature_is_undone_exactly(seed: int, temperature: float) -> None:
    z = stream(seed, "test").normal(0, 3, (4, 9))
    np.testing.assert_allclose(
        undo_temperature(softmax(z / temperature, axis=1), temperature), softmax(z, axis=1)
    )
    by_place = np.array([1.0, 2.0, temperature, 20.0])
    np.testing.assert_allclose(
        undo_temperature(softmax(z / by_place[:, None], axis=1), by_place), softmax(z, axis=1)
    )


def test_what_cannot_be_undone_stays_as_it_is() -> None:
    rows = np.array([[0.5, 0.5, 0], [np.nan] * 3, [0, 0, 0], [0.5, 0.6, -0.1]])
    found = undo_temperature(rows, 2)
    np.testing.assert_allclose(found[0], [0.5, 0.5, 0])
    assert np.isnan(found[1:3]).all()
    np.testing.assert_allclose(found[3], [0.25 / 0.61, 0.36 / 0.61, 0])


def test_the_adaptive_reader_undoes_swing() -> None:
    """Heat alone hides nothing from who knows it; of noise, rounds take off their square root."""
    drawn, holder, _ = clients()
    held = tuple(canary for canary in drawn if canary.repetitions)
    plain, z = upload(holder, held)
    degrees = torch.ones(len(z), dtype=torch.float64)  # as private as can be
    ids = np.concatenate(
        [positions(canary, at, LENGTH, "characters") for at, canary in enumerate(held)]
    )

    def bits(soft: Floats) -> list[tuple[float, float]]:
        places = soft.reshape(len(held), 4, -1)
        read = [readout(rows, c, "characters") for rows, c in zip(places, held, strict=True)]
        return [(found.least.bits, found.independent.bits) for found in read]

    hot = Swing(degrees="public", noise=None, bound=50.0)
    swung = hot.release(z, degrees, torch_stream(1, "test"))
    rows = rows_at((plain[0], swung.values.numpy()), ids)
    heated, undone = bits(rows), bits(undo_temperature(rows, swung.temperatures.numpy()[ids]))
    exact = bits(rows_at(plain, ids))
    np.testing.assert_allclose(undone, exact, atol=1e-6)
    assert np.mean([least for least, _ in heated]) < np.mean([least for least, _ in exact]) / 2

    noisy = Swing(degrees="public", noise=Gaussian(sigma=0.02), bound=50.0)
    rounds = [
        rows_at(
            (plain[0], noisy.release(z, degrees, torch_stream(1, "test", r)).values.numpy()), ids
        )
        for r in range(64)
    ]
    one = np.mean([found[1] for rows in rounds[:8] for found in bits(rows)])
    temperatures = swung.temperatures.numpy()[ids]
    many = np.mean([found[1] for found in bits(undo_temperature(mean_rows(rounds), temperatures))])
    assert one < many - 3

"""Memorisation: against decoding step by step, and models that really learnt texts by heart."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedkd.config_sections import Phase
from fedkd.data.dataset import NO_LABEL
from fedkd.data.sources import load
from fedkd.data.text import Pydoc, records
from fedkd.errors import FedkdError
from fedkd.models.zoo import TEXT_MODELS, Classifier, build
from fedkd.rng import stream, torch_stream
from fedkd.training import cross_entropy, fit
from privacy.audit import memorisation
from privacy.audit.memorisation import (
    continuations,
    foretold,
    inheritance,
    memorised,
    overlap,
    whole_texts,
)
from privacy.audit.memorisation_predictor import foretell, text_features
from privacy.degrees import Memorization, kl

EVERY = pytest.mark.parametrize("name", TEXT_MODELS)
LENGTH = 110
BOOLS = st.lists(st.booleans(), min_size=6, max_size=6).map(np.array)


@cache
def texts() -> tuple[Tensor, Tensor]:
    """24 records that are learnt, and 24 that are not."""
    data = load(Pydoc(length=LENGTH)).train
    whole = torch.nonzero((data.y != NO_LABEL).all(dim=1)).flatten()[:400]
    picked = whole[torch.from_numpy(stream(1, "test").permutation(400)[:48])]
    return data.x[picked], data.y[picked]


def untrained(name: str) -> Classifier:
    return build(name, (1, 1, LENGTH), 97, torch_stream(1, "test"), torch.int16)


@cache
def taught(name: str, epochs: int) -> Classifier:
    x, y = texts()
    net = untrained(name)
    phase = Phase(epochs=epochs, batch_size=12, learning_rate=5e-3)
    fit(net, x[:24], y[:24], cross_entropy, phase, stream(1, "test"))
    return net


@torch.no_grad()
def slowly(net: Classifier, prefix: list[int], n_new: int) -> list[int]:
    """Greedy decoding with the whole text read again for each token."""
    text = list(prefix)
    for _ in range(n_new):
        text.append(int(net(torch.tensor(text)[None, None, None])[0, -1].argmax()))
    return text[len(prefix) :]


# --- the measure ---


def test_whole_texts_are_records_without_padding() -> None:
    x, y = records(np.arange(10, dtype=np.int16), 4)
    found, kept = whole_texts(x, y)
    assert found.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert kept.tolist() == [0, 1]


@EVERY
def test_continuations_are_greedy_decoding(name: str) -> None:
    net = taught(name, 20)
    whole, _ = whole_texts(*texts())
    found = continuations(net, whole[:6, :30], 20)
    assert found.tolist() == [slowly(net, text[:30].tolist(), 20) for text in whole[:6]]


@EVERY
@pytest.mark.parametrize(
    ("prefix", "suffix"), [pytest.param(50, 50, marks=pytest.mark.slow), (20, 10), (1, 3)]
)
def test_memorised_is_what_decoding_continues_exactly(
    name: str, prefix: int, suffix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memorisation, "BLOCK", 10)  # so that texts come in several blocks
    whole, _ = whole_texts(*texts())
    counts = set()
    for epochs in (20, 120):
        net = taught(name, epochs)
        found = memorised(foretold(net, whole), prefix, suffix)
        said = continuations(net, whole[:, :prefix], suffix)
        assert found.tolist() == (said == whole[:, prefix : prefix + suffix]).all(dim=1).tolist()
        counts.add(int(found.sum()))
    assert len(counts) > 1  # so the equality was tried on both kinds of texts


def test_what_is_learnt_by_heart_is_found_and_nothing_else() -> None:
    whole, _ = whole_texts(*texts())
    found = memorised(foretold(taught("gru", 120), whole))
    assert found[:24].sum() >= 20
    assert found[24:].sum() == 0
    assert memorised(foretold(untrained("gru"), whole), 50, 5).sum() == 0


def test_a_shorter_suffix_is_never_harder() -> None:
    whole, _ = whole_texts(*texts())
    hits = foretold(taught("gru", 20), whole)
    found = [memorised(hits, 50, suffix) for suffix in (1, 5, 20, 50)]
    for shorter, longer in pairwise(found):
        assert not (longer & ~shorter).any()
    assert found[0].sum() > found[-1].sum()


def test_what_cannot_be_measured_is_refused() -> None:
    whole, _ = whole_texts(*texts())
    for prefix, suffix in ((100, 50), (0, 5), (5, 0)):
        with pytest.raises(FedkdError, match="do not fit into the texts"):
            memorised(np.ones((3, LENGTH), np.bool_), prefix, suffix)
    image = build("mlp", (1, 8, 8), 10, torch_stream(1, "test"))
    with pytest.raises(FedkdError, match="measured on language models"):
        foretold(image, whole)
    short = build("transformer", (1, 1, 64), 97, torch_stream(1, "test"), torch.int16)
    with pytest.raises(FedkdError, match="longer than the model can read"):
        foretold(short, whole)
    with pytest.raises(FedkdError, match="longer than the model can read"):
        continuations(short, whole[:, :50], 50)
    assert continuations(short, whole[:2, :50], 15).shape == (2, 15)


# --- sets ---


@given(BOOLS, BOOLS, BOOLS)
def test_inheritance_is_that_of_sets(t: np.ndarray, s: np.ndarray, b: np.ndarray) -> None:
    teacher, student, baseline = (set(np.flatnonzero(found)) for found in (t, s, b))
    found = inheritance(t, s, b)
    assert (found.texts, found.teacher, found.student) == (6, len(teacher), len(student))
    assert found.inherited == len((teacher & student) - baseline)
    assert found.teacher_only == len(teacher - baseline)
    assert found.easy == len(teacher & student & baseline)
    assert found.baseline == len(baseline)
    both = overlap(t, s)
    assert (both.both, both.first_only) == (len(teacher & student), len(teacher - student))
    assert both.second_only == len(student - teacher)
    either = len(teacher | student)
    expected = both.both / either if either else float("nan")
    assert both.jaccard == pytest.approx(expected, nan_ok=True)


# --- the predictor ---


def test_features_are_those_of_swings_degree() -> None:
    whole, _ = whole_texts(*texts())
    teacher, baseline = taught("gru", 20), untrained("gru")
    found = text_features(teacher, baseline, whole[:5], "characters")
    with torch.no_grad():
        for row, text in zip(found, whole[:5], strict=True):
            told = [net(text[None, None, None, :-1])[0].double() for net in (teacher, baseline)]
            nats = [torch.nn.functional.cross_entropy(z, text[1:]) for z in told]
            assert float(row[2]) == pytest.approx(float(nats[0].exp()), rel=1e-5)
            assert float(row[1]) == pytest.approx(float(nats[1].exp()), rel=1e-5)
            assert float(row[3]) == pytest.approx(float(kl(*told).mean()), rel=1e-5)
    assert (found[:, 0] % 8 == 0).all()  # bits of whole bytes


def test_a_planted_rule_is_foretold_and_chance_is_not() -> None:
    rng = stream(1, "test")
    known = torch.from_numpy(rng.normal(size=(400, 4)))
    rule = (known[:, 0] + known[:, 3] > 1).numpy()
    found = foretell(known, rule, stream(1, "test", purpose="folds"))
    assert found.auc > 0.98
    assert found.auc == pytest.approx(np.mean(found.folds))
    assert len(found.folds) == 5
    assert found.predictor == Memorization.fit(known, torch.from_numpy(rule))
    chance = foretell(known, rng.random(400) < 0.3, stream(1, "test", purpose="folds"))
    assert abs(chance.auc - 0.5) < 4 * np.sqrt(401 / (12 * 120 * 280))
    with pytest.raises(FedkdError, match="too few texts to judge"):
        foretell(known, np.arange(400) < 3, stream(1, "test"))


def test_real_memorisation_is_foretold_by_what_the_teacher_knows() -> None:
    """Taught half of the texts by heart: its perplexity says which, on texts not fitted on."""
    whole, _ = whole_texts(*texts())
    teacher = taught("gru", 120)
    found = memorised(foretold(teacher, whole), 50, 20)
    known = text_features(teacher, untrained("gru"), whole, "characters")
    assert foretell(known, found, stream(1, "test")).auc > 0.95

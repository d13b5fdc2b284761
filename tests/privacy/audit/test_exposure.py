"""Exposure: exact by brute force, by chance what theory says, and high for what was memorised."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from fedkd.data.canaries import FORMATS, Canaries, Canary, insert, sentences
from fedkd.data.dataset import as_input
from fedkd.data.sources import load
from fedkd.data.text import Pydoc
from fedkd.data.tokens import VOCABULARY, Tokens, encode
from fedkd.errors import FedkdError
from fedkd.models.text import Gru, Transformer
from fedkd.models.zoo import TEXT_MODELS, Classifier, build
from fedkd.rng import stream, torch_stream
from privacy.audit import exposure
from privacy.audit.exposure import NULL_BITS, Exposure, candidate_losses, exposures, rank

EVERY = pytest.mark.parametrize("name", TEXT_MODELS)


def model(name: str, seed: int = 1, tokens: Tokens = "characters") -> Classifier:
    return build(name, (1, 1, 64), VOCABULARY[tokens], torch_stream(seed, "test"), torch.int16)


@torch.no_grad()
def brute_force(net: Classifier, prefix: str, secret: str, tokens: Tokens = "characters") -> float:
    """The loss of one secret, with the whole sentence in one forward pass."""
    text = torch.from_numpy(encode(prefix + secret, tokens)).long()
    losses = F.cross_entropy(net(text[None, None, None, :-1])[0], text[1:], reduction="none")
    return float(losses[-len(secret) :].double().sum())


@EVERY
@pytest.mark.parametrize("tokens", VOCABULARY)
def test_losses_are_those_of_brute_force(
    name: str, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposure, "BATCH", 4)  # so that contexts come in several blocks
    net = model(name, tokens=tokens)
    blanks = ("ab", "0123", "xyz")
    for prefix in ("It is ", ":"):
        places = [encode(symbols, tokens) for symbols in blanks]
        found = candidate_losses(net, encode(prefix, tokens), places)
        expected = [brute_force(net, prefix, "".join(s), tokens) for s in product(*blanks)]
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert np.argsort(found).tolist() == np.argsort(expected).tolist()


def test_a_model_of_images_is_refused() -> None:
    with pytest.raises(FedkdError, match="exposure is measured on language models"):
        candidate_losses(
            build("mlp", (1, 8, 8), 10, torch_stream(1, "test")), np.zeros(2, np.int16), []
        )


@EVERY
def test_exposure_is_that_of_brute_force(name: str) -> None:
    net = model(name)
    canary = Canaries().draw([0], seed=1)[0]
    (found,) = exposures(net, [canary], "characters")
    some = stream(1, "test").choice(10**4, 300, replace=False)
    own = brute_force(net, canary.prefix, canary.secret)
    ahead = [brute_force(net, canary.prefix, FORMATS["pin"].secret(i)) <= own for i in some]
    # The share of likelier candidates, in a sample of 300: binomial, 5 standard deviations.
    share = found.rank / 10**4
    assert abs(np.mean(ahead) - share) < 5 * math.sqrt(max(share * (1 - share), 0.01) / 300)
    assert found.size == 10**4
    assert 2**-found.bits == pytest.approx(share)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.data())
def test_rank_counts_ties_against_the_secret(losses: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(losses) - 1))
    behind = sorted(losses)[::-1].index(losses[index])  # how many lose strictly more
    assert rank(np.array(losses, np.float64), index) == len(losses) - behind


def test_bits_run_from_nothing_to_the_whole_space() -> None:
    canary = Canary(0, 1, "pin", "", "0000")
    assert Exposure(canary, 1, 1024).bits == 10
    assert Exposure(canary, 1024, 1024).bits == 0
    bits = [Exposure(canary, r, 10**4).bits for r in range(1, 10**4 + 1)]
    assert np.mean(bits) == pytest.approx(NULL_BITS, abs=0.002)  # every rank alike: the null


@pytest.mark.parametrize(
    "body",
    [
        lambda: Gru(97, width=4, hidden=8),
        lambda: Transformer(97, longest=64, width=8, heads=1, blocks=1),
    ],
    ids=["gru", "transformer"],
)
def test_an_untrained_model_exposes_what_chance_does(body: Callable[[], nn.Module]) -> None:
    """-log2 of a uniform rank is exponential, with NULL_BITS as its mean and deviation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Classifier(body(), 8, 97)
    drawn = Canaries(repetitions=(0,), each=100).draw([0], seed=5)
    bits = [found.bits for found in exposures(net, drawn, "characters")]
    assert stats.kstest(bits, "expon", (0, NULL_BITS)).pvalue > 0.01
    assert abs(np.mean(bits) - NULL_BITS) < 4 * NULL_BITS / math.sqrt(100)


def test_what_is_repeated_is_remembered() -> None:
    """A short real training: 16 repetitions expose nearly the whole secret, controls nothing."""
    train = load(Pydoc()).train
    mine = np.flatnonzero(train.client_ids == 0)[:80]
    drawn = Canaries(repetitions=(0, 0, 0, 0, 16, 16)).draw([0], seed=2)
    more = sentences([c for c in drawn for _ in range(c.repetitions)], "characters", 64)
    x, y = insert(*train.rows(mine), *more, stream(2, "canary", client=0))
    net = model("gru")
    step_with = torch.optim.Adam(net.parameters(), lr=5e-3)
    draws = stream(2, "test")
    for _ in range(20):
        for ids in np.array_split(draws.permutation(len(x)), 8):
            logits = net(as_input(x[torch.from_numpy(ids)]))
            loss = F.cross_entropy(logits.flatten(0, 1), y[torch.from_numpy(ids)].flatten())
            step_with.zero_grad()
            loss.backward()
            step_with.step()
    found = exposures(net, drawn, "characters")
    assert [each.canary for each in found] == list(drawn)
    seen = [each.bits for each in found if each.canary.repetitions]
    unseen = [each.bits for each in found if not each.canary.repetitions]
    assert min(seen) > 10  # of 13.3
    assert np.mean(unseen) < NULL_BITS + 3 * NULL_BITS / math.sqrt(len(unseen))

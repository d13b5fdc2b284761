"""Degrees: in [0, 1], from what each row needs and nothing else, against other people's code."""

from __future__ import annotations

import itertools
import math
import re
import time
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from faker import Faker
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression

from fedkd.errors import FedkdError
from fedkd.exchange.kmeans import distances
from privacy import patterns
from privacy.degrees import (
    DEGREES,
    Density,
    Divergence,
    Evidence,
    Memorization,
    Patterns,
    PrivateClasses,
    Rarity,
    features,
    kl,
)
from privacy.ngrams import NGrams
from privacy.patterns import KINDS, find


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def kinds(text: str) -> dict[str, str]:
    return {found.kind: text[found.start : found.end] for found in find(text)}


# Patterns


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("e-mail", "mail j.doe+x@mail.example.org, please", "j.doe+x@mail.example.org"),
        ("iban", "pay to DE89 3704 0044 0532 0130 00 today", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB82WEST12345698765432.", "GB82WEST12345698765432"),
        ("card", "card 4111 1111 1111 1111!", "4111 1111 1111 1111"),
        ("card", "card 378282246310005", "378282246310005"),
        ("phone", "call +49 30 901820 22 now", "+49 30 901820 22"),
        ("phone", "call (555)010-9999x12 now", "(555)010-9999x12"),
        ("phone", "call 555.010.9999 now", "555.010.9999"),
        ("phone", "call (555) 010-9999", "(555) 010-9999"),
        ("phone", "call +1 555-010-9999", "+1 555-010-9999"),
        ("digits", "my number is 8675309", "8675309"),
        ("short digits", "pin 0042 ok", "0042"),
        ("date", "born 1984-02-29.", "1984-02-29"),
        ("date", "on 3/12/99 we", "3/12/99"),
        ("written date", "on 3. March 1999 we", "3. March 1999"),
        ("written date", "on Feb 29, 1984 we", "Feb 29, 1984"),
        ("name", "it was Ada Lovelace who", "Ada Lovelace"),
        ("name", "with Ángel O'Neill-Peña here", "Ángel O'Neill-Peña"),
        ("name", "writes Жанна Дарк often", "Жанна Дарк"),
    ],
)
def test_private_data_is_found(kind: str, text: str, expected: str) -> None:
    assert kinds(text)[kind] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the cat sat on the mat",
        "we met 12 people in 2 rooms",
        "état et été",
        "a@b",
        "x1y2",
        "v1.2.3",
    ],
)
def test_plain_text_is_not_private(text: str) -> None:
    assert find(text) == []


@pytest.mark.parametrize(
    ("kind", "field", "share"),
    [
        ("e-mail", "email", 1.0),
        ("iban", "iban", 1.0),
        ("card", "credit_card_number", 0.9),  # some schemes have 12 digits
        ("date", "date", 1.0),
        ("name", "name", 0.95),
    ],
)
def test_most_of_what_faker_makes_is_found_whole(kind: str, field: str, share: float) -> None:
    fake = Faker("en_US")
    fake.seed_instance(4)
    secrets = [str(getattr(fake, field)()) for _ in range(200)]
    texts = [f"so it was {secret} in the end" for secret in secrets]
    hits = [
        float(patterns.degrees(text, [(10 + i, 11 + i)])[0]) > 0
        for text, secret in zip(texts, secrets, strict=True)
        for i in (0, len(secret) - 1)
    ]
    found = [kind in kinds(text) for text in texts]
    assert np.mean(found) >= share
    assert np.mean(hits) >= share


def test_most_phone_numbers_of_faker_are_private_one_way_or_another() -> None:
    fake = Faker("en_US")
    fake.seed_instance(5)
    texts = [f"call {fake.phone_number()} now" for _ in range(200)]
    found = [max((each.degree for each in find(text)), default=0) for text in texts]
    assert np.mean(np.array(found) >= 0.8) >= 0.95


def test_a_position_has_the_degree_of_the_most_private_character_in_it() -> None:
    text = "Ada Lovelace has 8675309 and ada@example.org"
    got = patterns.degrees(text, [*words(text), (0, 0), (2, 5)])
    assert got.tolist() == [0.7, 0.7, 0, 0.8, 0, 1, 0, 0.7]


@given(st.text(alphabet="aA9 .@-+/()é", max_size=60))
@settings(deadline=None, max_examples=100)
def test_character_by_character_equals_span_by_span(text: str) -> None:
    single = patterns.degrees(text, [(i, i + 1) for i in range(len(text))])
    for start, end in words(text):
        (got,) = patterns.degrees(text, [(start, end)])
        assert got == max(single[start:end])
    for i, value in enumerate(single):
        covering = [each.degree for each in find(text) if each.start <= i < each.end]
        assert value == max(covering, default=0)


@pytest.mark.parametrize(
    "unit", ["a", "A", "9", "9 ", "9-", "A a ", "a.", "a@", "Aa ", "AB12 ", "@a."]
)
def test_no_text_takes_long(unit: str) -> None:
    """20,000 characters made to trap a regular expression: linear time, not quadratic."""
    before = time.process_time()
    find(unit * (20_000 // len(unit)))
    assert time.process_time() - before < 2


def test_every_kind_has_a_degree_and_a_name_of_its_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(0 < kind.degree <= 1 for kind in KINDS)


def test_patterns_runs_over_all_texts() -> None:
    texts = ["call 8675309", "no one", "", "Ada Lovelace"]
    got = Patterns().degree(Evidence(texts=texts, offsets=[words(text) for text in texts]))
    assert got.tolist() == [0, 0.8, 0, 0, 0.7, 0.7]
    assert Patterns().degree(Evidence(texts=[], offsets=[])).shape == (0,)


# Rarity

CORPUS = [[0, 1, 2, 0, 1, 2, 0, 1], [3, 0, 1], [2]]


@given(st.integers(1, 4), st.floats(0.01, 10), st.lists(st.integers(0, 5), max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_probabilities_of_all_tokens_add_up(
    order: int, strength: float, context: list[int]
) -> None:
    ngrams = NGrams(CORPUS, vocabulary=6, order=order, strength=strength)
    total = sum(ngrams.probability(context, token) for token in range(6))
    assert total == pytest.approx(1, abs=1e-12)


def test_counts_are_counted_and_smoothed() -> None:
    """By hand, order 2 and strength 1: from uniform to single tokens to pairs."""
    ngrams = NGrams(CORPUS, vocabulary=6, order=2, strength=1)
    singles = Counter(token for text in CORPUS for token in text)
    pairs = Counter(pair for text in CORPUS for pair in itertools.pairwise(text))
    for token in range(6):
        alone = (singles[token] + 1 / 6) / (12 + 1)
        assert ngrams.probability([], token) == pytest.approx(alone, rel=1e-12)
        followed = sum(count for (first, _), count in pairs.items() if first == 0)
        after = (pairs[(0, token)] + alone) / (followed + 1)
        assert ngrams.probability([5, 0], token) == pytest.approx(after, rel=1e-12)
        assert ngrams.probability([4], token) == pytest.approx(alone, rel=1e-12)


def test_rare_tokens_are_private_and_common_ones_are_not() -> None:
    ngrams = NGrams(CORPUS * 20, vocabulary=50, order=3)
    tokens = torch.tensor([0, 1, 2, 0, 1, 0, 47, 1])
    offsets = [[(0, 1)] * 5, [(0, 1)] * 3]
    got = Rarity().degree(Evidence(tokens=tokens, offsets=offsets, ngrams=ngrams))
    assert bool(((got >= 0) & (got <= 1)).all())
    assert got[6] == 1  # never seen
    assert got[3] < 0.05  # always follows
    by_hand = [ngrams.probability([0, 1, 2][:i], token) for i, token in enumerate([0, 1, 2])]
    np.testing.assert_allclose(got[:3], -np.log(by_hand) / math.log(50), rtol=1e-12)
    # A text starts anew: what the text before it ended with is no context.
    alone = Evidence(tokens=tokens[5:], offsets=offsets[1:], ngrams=ngrams)
    assert torch.equal(got[5:], Rarity().degree(alone))


def test_only_what_can_be_counted_is_counted() -> None:
    for bad in ({"order": 0}, {"vocabulary": 1}, {"strength": 0}):
        settings_: dict[str, Any] = {"vocabulary": 6, **bad}
        with pytest.raises(FedkdError, match="n-grams cannot be counted"):
            NGrams(CORPUS, **settings_)
    with pytest.raises(FedkdError, match="no such token; got 6"):
        NGrams(CORPUS, vocabulary=6).probability([], 6)


# Divergence


def test_the_divergence_is_scipy_s_and_is_squashed_by_a_logistic() -> None:
    client, public = 3 * torch.randn(2, 40, 7, generator=draws())
    expected = entropy(softmax(client.numpy(), 1), softmax(public.numpy(), 1), axis=1)
    np.testing.assert_allclose(kl(client, public), expected, rtol=1e-4, atol=1e-6)
    row = Divergence(midpoint_nats=2, width_nats=0.5)
    got = row.degree(Evidence(client_logits=client, public_logits=public))
    np.testing.assert_allclose(got, expit((expected - 2) / 0.5), rtol=1e-3, atol=1e-6)


def test_a_client_that_says_what_the_public_model_says_has_nothing_private() -> None:
    z = torch.randn(5, 4, generator=draws())
    got = Divergence().degree(Evidence(client_logits=z, public_logits=z + 7))
    np.testing.assert_allclose(got, expit(-4), rtol=1e-5)


# Memorization


def some_features(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    raw = torch.randn(n, 4, generator=draws(seed), dtype=torch.float64)
    known = raw * torch.tensor([900.0, 20, 15, 0.3]) + torch.tensor([4000.0, 40, 30, 0.6])
    score = -2.5 * raw[:, 0] - 1.0 * raw[:, 2] + 0.4 * raw[:, 3] - 1
    return known, torch.rand(n, generator=draws(seed + 1)) < torch.sigmoid(score)


@pytest.mark.parametrize("ridge", [0.1, 1.0, 25.0])
def test_the_fit_is_scikit_learn_s(ridge: float) -> None:
    known, memorised = some_features(500, 1)
    row = Memorization.fit(known, memorised, ridge=ridge)
    x = (known - known.mean(0)) / known.std(0, correction=0)
    other = LogisticRegression(C=1 / ridge, tol=1e-10, max_iter=10_000)
    other.fit(x.numpy(), memorised.numpy())
    np.testing.assert_allclose(row.coefficients, other.coef_[0], atol=1e-5)
    assert row.intercept == pytest.approx(other.intercept_[0], abs=1e-5)
    np.testing.assert_allclose(row.of(known), other.predict_proba(x.numpy())[:, 1], atol=1e-5)
    assert row.coefficients[0] < 0
    assert row.coefficients[2] < 0


def test_separable_and_constant_features_are_fitted_too() -> None:
    known, _ = some_features(60, 3)
    known[:, 1] = 7.0
    memorised = known[:, 0] < 4000
    row = Memorization.fit(known, memorised)
    assert bool(((row.of(known) > 0.5) == memorised).float().mean() > 0.95)
    assert row.coefficients[1] == 0
    assert np.isfinite(row.coefficients).all()


def test_the_predictor_must_see_both_kinds() -> None:
    known, _ = some_features(5, 3)
    for memorised in (torch.zeros(5), torch.ones(5)):
        with pytest.raises(FedkdError, match="must see texts that were memorised"):
            Memorization.fit(known, memorised.bool())


def two_texts() -> Evidence:
    texts = ["la " * 40, "q8Zr!x0p 65530 mw#9 TbL4 zz7 Qe1 h%o 5Gd yU3 nS6 aJ"]
    offsets = [words(text) for text in texts]
    m = sum(len(spans) for spans in offsets)
    return Evidence(
        texts=texts,
        offsets=offsets,
        tokens=torch.arange(m) % 6,
        client_logits=2 * torch.randn(m, 6, generator=draws(1)),
        public_logits=torch.randn(m, 6, generator=draws(2)),
    )


def test_the_features_are_what_they_are_called() -> None:
    known = two_texts()
    assert known.texts is not None
    assert known.tokens is not None
    assert known.client_logits is not None
    assert known.public_logits is not None
    got, tokens = features(known), known.tokens.numpy()
    for row, part in enumerate((slice(0, 40), slice(40, len(tokens)))):
        nll = [
            -log_softmax(z.numpy()[part].astype(float), axis=1)[
                np.arange(len(tokens[part])), tokens[part]
            ].mean()
            for z in (known.public_logits, known.client_logits)
        ]
        expected = [
            8 * len(zlib.compress(known.texts[row].encode())),
            *np.exp(nll),
            float(kl(known.client_logits[part], known.public_logits[part]).mean()),
        ]
        np.testing.assert_allclose(got[row], expected, rtol=1e-9)


def test_compressible_texts_are_the_ones_memorised() -> None:
    known = two_texts()
    got = Memorization(mean=(300, 0, 0, 0), scale=(100, 1, 1, 1)).degree(known)
    assert known.offsets is not None
    assert got.shape == (sum(len(spans) for spans in known.offsets),)
    assert got[:40].unique().numel() == got[40:].unique().numel() == 1
    assert got[0] > 0.9
    assert got[-1] < 0.1


def test_hopeless_predictions_do_not_overflow() -> None:
    known = two_texts()
    assert known.client_logits is not None
    wild = Evidence(**{**vars(known), "client_logits": 1e6 * known.client_logits})
    got = Memorization(mean=(300, 0, 0, 0), scale=(100, 1, 1, 1)).degree(wild)
    assert bool(got.isfinite().all())


def test_a_fitted_row_survives_its_scenario() -> None:
    row = Memorization.fit(*some_features(50, 5))
    assert Memorization.model_validate_json(row.model_dump_json()) == row


# Labels and density


def test_private_classes_are_private() -> None:
    labels = torch.tensor([3, 0, 7, 3])
    assert PrivateClasses(private=(3, 9)).degree(Evidence(labels=labels)).tolist() == [1, 0, 0, 1]
    assert PrivateClasses(private=()).degree(Evidence(labels=labels)).tolist() == [0, 0, 0, 0]


def test_the_closer_to_the_client_s_own_the_more_private() -> None:
    centroids = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 4.0], [10.0, 400.0]])
    evidence = Evidence(distances=distances(x, centroids))
    got = Density(halfway=2).degree(evidence)
    np.testing.assert_allclose(got, [1, 0.5, 1 / 16, 0], atol=1e-6)


# The table

ROWS: dict[str, dict[str, Any]] = {
    "patterns": {},
    "rarity": {},
    "divergence": {},
    "memorization": {"mean": (300, 5, 5, 1), "scale": (100, 2, 2, 1)},
    "classes": {"private": (1,)},
    "density": {"halfway": 1},
}


@pytest.mark.parametrize("name", DEGREES)
def test_every_row_gives_one_degree_a_position(name: str) -> None:
    row: Any = DEGREES[name](**ROWS[name])
    known = two_texts()
    assert known.tokens is not None
    m = len(known.tokens)
    evidence = Evidence(
        **{
            **vars(known),
            "ngrams": NGrams([[0, 1, 2]], vocabulary=6),
            "labels": torch.arange(m) % 3,
            "distances": torch.linspace(0, 5, m),
        }
    )
    got = row.degree(evidence)
    assert got.dtype == torch.float64
    assert got.shape == (m,)
    assert bool(((got >= 0) & (got <= 1)).all())
    assert len(got.unique()) > 1
    assert row.line()


@pytest.mark.parametrize("name", DEGREES)
def test_every_row_says_what_it_lacks(name: str) -> None:
    row: Any = DEGREES[name](**ROWS[name])
    with pytest.raises(FedkdError, match=f"degree '{name}' cannot be computed .* got 'no "):
        row.degree(Evidence())


def test_what_needs_the_client_is_private() -> None:
    private = {name for name in DEGREES if getattr(DEGREES[name], "origin") == "private"}  # noqa: B009
    assert private == {"divergence", "memorization", "density"}


def test_positions_must_add_up() -> None:
    ngrams = NGrams(CORPUS, vocabulary=6)
    with pytest.raises(FedkdError, match="positions do not add up; got 3; allowed: 2 in all"):
        Rarity().degree(
            Evidence(tokens=torch.tensor([1, 2, 3]), offsets=[[(0, 1)] * 2], ngrams=ngrams)
        )

"""The table: rows find what is planted and nothing else, and say what they lack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedkd.errors import FedkdError
from fedkd.rng import stream
from privacy.audit.membership import ATTACKS, Evidence
from privacy.audit.quantile import quantile
from privacy.audit.signals import Flags
from worlds import auc, auc_error, world


def evidence(shift: float) -> tuple[Evidence, Flags]:
    """With features that tell how easy a target is, up to noise."""
    planted = world(shift=shift, n=4000, references_learn=True)
    public = world(shift=0, n=4000, seed=2)
    features = [part.references.mean(axis=0)[:, None] for part in (planted, public)]
    has = Evidence(
        target=planted.target,
        references=planted.references,
        members=planted.members,
        population=public.target,
        population_references=public.references,
        features=features[0],
        population_features=features[1],
    )
    return has, planted.member


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_finds_what_is_planted_and_nothing_else(name: str) -> None:
    has, member = evidence(2)
    scores = ATTACKS[name].score(has)
    assert scores.dtype == np.float64
    error = auc_error(member)
    least = 0.6 if name == "threshold" else 0.7
    assert auc(scores, member) > least
    assert auc(scores, stream(1, "test").permutation(member)) == pytest.approx(0.5, abs=4 * error)
    nothing, member = evidence(0)
    assert auc(ATTACKS[name].score(nothing), member) == pytest.approx(0.5, abs=4 * error)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_evidence_gives_the_same_scores(name: str) -> None:
    has, _ = evidence(2)
    kept = has.target.copy()
    first = ATTACKS[name].score(has)
    np.testing.assert_array_equal(first, ATTACKS[name].score(evidence(2)[0]))
    np.testing.assert_array_equal(has.target, kept)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_target_without_an_answer_has_no_score(name: str) -> None:
    has, _ = evidence(2)
    target = has.target.copy()
    target[[3, 17]] = np.nan
    found = ATTACKS[name].score(replace(has, target=target))
    expected = ATTACKS[name].score(has)
    assert np.flatnonzero(np.isnan(found) & ~np.isnan(expected)).tolist() == [3, 17]
    there = ~np.isnan(found)
    np.testing.assert_array_equal(found[there], expected[there])


@pytest.mark.parametrize(("name", "lacking"), [(n, f) for n in ATTACKS for f in ATTACKS[n].needs])
def test_a_row_says_what_it_lacks(name: str, lacking: str) -> None:
    has, _ = evidence(2)
    with pytest.raises(FedkdError, match=f"no {lacking}"):
        ATTACKS[name].score(replace(has, **{lacking: None}))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_needs_no_more_than_it_says(name: str) -> None:
    row, (has, member) = ATTACKS[name], evidence(2)
    bare = Evidence(target=has.target, **{field: getattr(has, field) for field in row.needs})
    assert auc(row.score(bare), member) > 0.55


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_quantile_holds_for_easy_and_for_hard_samples(level: float) -> None:
    """Where non-members pass it as often as it says, among the easy and among the hard ones."""
    public, fresh = (world(shift=0, n=8000, seed=seed) for seed in (2, 3))
    features, others = (part.references.mean(axis=0)[:, None] for part in (fresh, public))
    scores = quantile(fresh.target, features, public.target, others, level=level)
    hard = features[:, 0] < 0
    for part in (scores[hard], scores[~hard]):
        assert (part > 0).mean() == pytest.approx(1 - level, abs=0.03)


def test_the_quantile_attack_refuses_what_it_cannot_do() -> None:
    x, features = np.zeros(5), np.zeros((5, 1))
    with pytest.raises(FedkdError, match="between 0 and 1"):
        quantile(x, features, x, features, level=1.0)
    with pytest.raises(FedkdError, match="answered no public sample"):
        quantile(x, features, x * np.nan, features)

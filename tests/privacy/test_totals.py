"""What a ledger adds up to: by unit and relation, complete or infinite, and a budget that stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import FedkdError
from privacy import accounting
from privacy.events import Event, Gaussian, Protects, Pure, RandomisedResponse, SampledGaussian
from privacy.ledger import Ledger, Release
from privacy.totals import Budget, affords, at_most, total, totals, worst

RECORD = Protects("record", "add-remove")
CLIENT = Protects("client", "replace")
DELTA = 1e-5

STEPS = SampledGaussian(unit="record", rate=0.1, noise_multiplier=1.1, count=20)
CENTRES = Gaussian(unit="record", relation="add-remove", noise_multiplier=5.0)
LABELS = RandomisedResponse(unit="client", epsilon=0.2, n_categories=10, count=30)


def entry(round_: int = 1, **changes: Any) -> Release:
    return Release(
        **{
            "client": 1,
            "round": round_,
            "what": "soft labels",
            "rows": 30,
            "seen_by": "server",
            **changes,
        }
    )


def proved(round_: int, what: str, *events: Event, **changes: Any) -> Release:
    return entry(round_, what=what, guarantee="proved", events=events, **changes)


def training(round_: int) -> Release:
    return proved(round_, "training", STEPS, seen_by="no one")


def derived(round_: int, what: str, *sources: str) -> Release:
    return proved(round_, what, derived_from=sources, reason="post-processing")


def private_run(rounds: int) -> list[Release]:
    """DP-SGD, a filter on private centres, and labels of the private model."""
    entries = [proved(0, "summary", CENTRES)]
    for round_ in range(1, rounds + 1):
        entries += [
            training(round_),
            derived(round_, "accept mask", "summary"),
            derived(round_, "soft labels", "training", "accept mask"),
        ]
    return entries


def test_training_filter_and_release_together() -> None:
    got = total(private_run(3), RECORD, DELTA)
    expected = accounting.epsilon([CENTRES, STEPS, STEPS, STEPS], RECORD, DELTA)
    assert got.spent == expected
    assert got.epsilon == expected.epsilon < math.inf
    one = accounting.epsilon([STEPS], RECORD, DELTA).epsilon
    assert got.epsilon > one  # rounds add up


def test_one_piece_without_a_proof_makes_the_whole_infinite() -> None:
    """A filter on raw data undoes what training under DP-SGD promised."""
    entries = [e for e in private_run(2) if e.what not in ("summary", "accept mask")]
    mask = entry(1, what="accept mask", guarantee="empirical", reason="KMeans on private samples")
    before = total([e for e in entries if e.what == "training"], RECORD, DELTA)
    assert before.epsilon < math.inf
    got = total([*entries, mask], RECORD, DELTA)
    assert got.epsilon == math.inf
    assert mask in got.bare
    assert {e.what for e in got.bare} == {"accept mask", "soft labels"}  # made of the mask
    assert "accept mask: empirical, KMeans on private samples" in str(got)
    assert "epsilon infinite" in str(got)


def test_units_are_reported_each_by_itself() -> None:
    """The labels are private for the client, training for the record; neither is for the other."""
    entries = [training(1), proved(1, "soft labels", LABELS)]
    found = {t.spent.protects: t for t in totals(entries, DELTA)}
    assert found.keys() == {RECORD, CLIENT}
    assert found[CLIENT].spent == accounting.epsilon([LABELS], CLIENT, DELTA)
    assert found[CLIENT].epsilon < math.inf  # training alone is seen by no one
    assert found[RECORD].epsilon == math.inf
    assert "soft labels: not proved for one record added or removed" in str(found[RECORD])
    both = [training(1), proved(1, "soft labels", LABELS, derived_from=("training",))]
    found = {t.spent.protects: t for t in totals(both, DELTA)}
    assert found[RECORD].spent == accounting.epsilon([STEPS], RECORD, DELTA)
    assert found[CLIENT].spent == accounting.epsilon([LABELS], CLIENT, DELTA)
    assert max(t.epsilon for t in found.values()) < math.inf


def test_another_relation_is_another_total() -> None:
    replaced = Gaussian(unit="record", relation="replace", noise_multiplier=5.0)
    found = totals([proved(1, "summary", CENTRES, replaced)], DELTA)
    assert [t.spent.protects for t in found] == sorted([RECORD, CLIENT, replaced.protects])
    assert [t.epsilon < math.inf for t in found] == [False, True, True]


def test_no_mechanism_no_epsilon_for_either_unit() -> None:
    for got in totals([entry()], DELTA):
        assert got.epsilon == math.inf
        assert "soft labels: none, no mechanism" in str(got)


def test_an_empty_ledger_has_spent_nothing() -> None:
    assert [got.epsilon for got in totals([], DELTA)] == [0, 0]


def test_what_was_given_away_is_said_with_every_epsilon() -> None:
    """Infinite for the given records and for the client; the other records keep their epsilon."""
    given_away = entry(0, what="raw samples", rows=12, seen_by="server and all clients")
    entries = [given_away, *private_run(1)]
    record, client = total(entries, RECORD, DELTA), total(entries, CLIENT, DELTA)
    assert record.epsilon == total(private_run(1), RECORD, DELTA).epsilon < math.inf
    assert record.in_the_clear == 12
    assert "infinite for the 12 records given away in the clear" in str(record)
    assert client.epsilon == math.inf
    assert given_away in client.bare
    labels = [proved(1, "soft labels", LABELS)]
    assert total([given_away, *labels], CLIENT, DELTA).epsilon == math.inf
    nothing = given_away.model_copy(update={"rows": 0})
    assert total([nothing, *labels], CLIENT, DELTA).epsilon < math.inf
    assert "in the clear" not in str(total([nothing, *labels], RECORD, DELTA))


def test_over_clients_the_worst_counts_and_not_the_sum() -> None:
    by_client = {
        client: total([training(r) for r in range(rounds)], RECORD, DELTA)
        for client, rounds in {0: 2, 1: 5, 2: 3, 3: 5}.items()
    }
    client, got = worst(by_client)
    assert client == 1
    assert got == by_client[1]
    assert got.epsilon < sum(t.epsilon for t in by_client.values())
    by_client[2] = total([entry()], RECORD, DELTA)
    assert worst(by_client)[0] == 2


def test_a_budget_lasts_as_long_as_it_should() -> None:
    """The client answers until the next answer would cost too much, and not one round longer."""
    budget = Budget(unit="client", relation="replace", epsilon=8.0, delta=DELTA)
    ledger, rounds = Ledger(), 0
    while affords(ledger, budget, proved(rounds, "soft labels", LABELS)):
        ledger.record(proved(rounds, "soft labels", LABELS))
        rounds += 1
    assert rounds >= 2
    spent, more = (
        accounting.epsilon([LABELS] * n, CLIENT, DELTA).epsilon for n in (rounds, rounds + 1)
    )
    assert spent <= 8.0 < more
    assert total(ledger.entries(), CLIENT, DELTA).epsilon <= 8.0
    last = proved(rounds - 1, "soft labels", LABELS)
    assert affords(ledger, budget, last)  # it is paid for; its message may be repeated
    small = proved(99, "soft labels", Pure(unit="client", relation="replace", epsilon=1e-6))
    assert affords(ledger, budget, small) == (spent < 8.0 - 1e-4)


def test_a_budget_looks_at_all_releases_of_a_round_together() -> None:
    cost = accounting.epsilon([LABELS], CLIENT, DELTA).epsilon
    budget = Budget(unit="client", relation="replace", epsilon=1.1 * cost, delta=DELTA)
    one, other = (proved(1, what, LABELS) for what in ("soft labels", "accept mask"))
    assert affords(Ledger(), budget, one)
    assert affords(Ledger(), budget, other)
    assert not affords(Ledger(), budget, one, other)


@pytest.mark.parametrize(
    "release",
    [
        entry(guarantee="empirical", reason="temperature 4"),
        entry(what="raw samples"),
        training(1).model_copy(update={"seen_by": "server"}),
        derived(1, "soft labels", "training"),
    ],
)
def test_no_budget_affords_what_has_no_proof(release: Release) -> None:
    budget = Budget(unit="client", relation="replace", epsilon=1e6, delta=DELTA)
    ledger = Ledger()
    ledger.record(training(1))
    assert not affords(ledger, budget, release)
    assert affords(ledger, budget, proved(1, "soft labels", LABELS))


ENTRY = st.one_of(
    st.builds(entry, st.integers(0, 3), rows=st.integers(0, 2)),
    st.builds(training, st.integers(0, 3)),
    st.builds(
        proved, st.integers(0, 3), st.sampled_from(["soft labels", "weights"]), st.just(LABELS)
    ),
    st.builds(derived, st.integers(0, 3), st.just("soft labels"), st.just("training")),
    st.builds(derived, st.integers(0, 3), st.just("accept mask"), st.just("soft labels")),
    st.builds(derived, st.integers(0, 3), st.just("weights"), st.just("accept mask")),
    st.builds(entry, st.just(0), what=st.just("raw samples"), rows=st.integers(0, 2)),
)


@given(st.lists(ENTRY, max_size=6), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_the_order_of_the_ledger_does_not_matter(entries: list[Release], random: Any) -> None:
    shuffled = list(entries)
    random.shuffle(shuffled)
    assert totals(shuffled, DELTA) == totals(entries, DELTA)


@given(st.lists(ENTRY, max_size=5), ENTRY)
@settings(deadline=None, max_examples=40)
def test_an_entry_more_never_costs_less(entries: list[Release], more: Release) -> None:
    for protects in (RECORD, CLIENT):
        before, after = (total(e, protects, DELTA) for e in (entries, [*entries, more]))
        assert before.epsilon <= after.epsilon + 1e-9


@given(st.integers(1, 4), st.sets(st.integers(0, 12)), st.integers(0, 12))
@settings(deadline=None, max_examples=20)
def test_resumed_and_repeated_is_as_if_uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, rounds: int, reopened: set[int], torn: int
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    memory, file = Ledger(), Ledger(path)
    entries = private_run(rounds)
    for i, one in enumerate(entries):
        memory.record(one)
        file.record(one)
        if i == torn:  # killed while it wrote; the round is repeated from the start
            path.write_bytes(path.read_bytes()[:-7])
            file = Ledger(path)
            for again in entries[: i + 1]:
                file.record(again)
        if i in reopened:
            file = Ledger(path)
            file.record(one)
    assert totals(Ledger(path).entries(), DELTA) == totals(memory.entries(), DELTA)
    assert total(Ledger(path).entries(), RECORD, DELTA).epsilon < math.inf


def test_two_hundred_rounds_of_asking_read_and_compute_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounting._rdp.cache_clear()
    made: list[Any] = []
    accountant = accounting.RdpAccountant
    monkeypatch.setattr(
        accounting, "RdpAccountant", lambda **k: (made.append(k), accountant(**k))[1]
    )
    budget = Budget(unit="record", relation="add-remove", epsilon=100.0, delta=DELTA)
    path = tmp_path / "ledger.jsonl"
    for round_ in range(200):
        assert affords(Ledger(path), budget, training(round_))
        Ledger(path).record(training(round_))
    assert len(made) == 1


def test_a_total_for_a_wrong_delta_is_an_error() -> None:
    with pytest.raises(FedkdError, match="delta is no probability"):
        total([training(1)], RECORD, 2.0)


def test_an_answer_of_no_row_leaves_nothing_open() -> None:
    """A client whose private filter accepts nothing: its mask is charged, and that is all."""
    mask = proved(1, "accept mask", CENTRES)
    silent = entry(1, rows=0, reason="no mechanism")
    whole = total([training(1), mask, silent], RECORD, DELTA)
    assert whole.epsilon == total([training(1), mask], RECORD, DELTA).epsilon < math.inf
    assert total([training(1), mask, entry(1, rows=1)], RECORD, DELTA).epsilon == math.inf
    ledger = Ledger()
    ledger.record(mask)
    budget = Budget(unit="record", relation="add-remove", epsilon=50, delta=DELTA)
    assert affords(ledger, budget, silent)
    assert not affords(ledger, budget, entry(1, rows=1))


@given(st.integers(0, 4), st.booleans())
def test_at_most_is_the_total_by_rdp(rounds: int, open_end: bool) -> None:
    entries = private_run(rounds) + [entry(9)] * open_end
    found = total(entries, RECORD, DELTA)
    assert at_most(entries, RECORD, DELTA) == (math.inf if open_end else found.spent.rdp)

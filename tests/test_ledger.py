"""The ledger: append-only, whole after a crash, and a repeated release charged once."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.ledger import Ledger, Release, What

RELEASES = st.builds(
    Release,
    client=st.integers(0, 3),
    round=st.integers(0, 3),
    what=st.sampled_from(get_args(What)),
    rows=st.integers(0, 3),
    seen_by=st.sampled_from(["server", "server and all clients"]),
)


def release(**changes: Any) -> Release:
    return Release(
        **{
            "client": 1,
            "round": 2,
            "what": "soft labels",
            "rows": 9,
            "seen_by": "server",
            **changes,
        }
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@given(st.lists(RELEASES), st.sets(st.integers(0, 20)))
@settings(deadline=None, max_examples=60)
def test_the_entries_are_the_distinct_releases_in_order(
    tmp_path_factory: pytest.TempPathFactory, releases: list[Release], reopened: set[int]
) -> None:
    """In memory and in a file, however often that is opened again."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    memory, file = Ledger(), Ledger(path)
    for i, one in enumerate(releases):
        if i in reopened:
            file = Ledger(path)
        memory.record(one)
        file.record(one)
    expected = tuple(dict.fromkeys(releases))
    assert memory.entries() == file.entries() == Ledger(path).entries() == expected
    assert path.exists() == bool(releases)
    if releases:
        assert lines(path) == [asdict(one) for one in expected]


def test_it_is_on_disk_before_record_returns(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for round_ in range(5):
        ledger.record(release(round=round_))
        assert Ledger(tmp_path / "ledger.jsonl").entries() == ledger.entries()


def test_what_is_written_is_never_written_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger, before = Ledger(path), b""
    for round_ in (1, 2, 2, 1, 3):
        ledger.record(release(round=round_))
        after = path.read_bytes()
        assert after.startswith(before)
        before = after
    assert len(lines(path)) == 3


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_line_torn_by_a_crash_is_forgotten(tmp_path: Path, kept: int) -> None:
    """At any byte: what was torn never left, since a release is sent after it is recorded."""
    path = tmp_path / "ledger.jsonl"
    whole = [release(round=round_) for round_ in range(kept + 1)]
    for one in whole:
        Ledger(path).record(one)
    full = path.read_bytes()
    start = len(b"".join(full.splitlines(keepends=True)[:kept]))
    for length in range(start, len(full)):
        path.write_bytes(full[:length])
        ledger = Ledger(path)
        assert list(ledger.entries()) == whole[:kept]
        ledger.record(release(round=99))
        assert [line["round"] for line in lines(path)] == [*range(kept), 99]


def test_every_field_makes_another_release() -> None:
    ledger = Ledger()
    changes = [
        {},
        {"client": 7},
        {"round": 7},
        {"what": "weights"},
        {"rows": 7},
        {"seen_by": "server and all clients"},
    ]
    for change in changes:
        ledger.record(release(**change))
    assert len(ledger.entries()) == len(changes)


def test_without_a_mechanism_no_guarantee_is_claimed(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.jsonl").record(release())
    (line,) = lines(tmp_path / "ledger.jsonl")
    assert line["guarantee"] == "none"
    assert not {"epsilon", "delta"} & line.keys()


def test_what_was_recorded_cannot_be_changed() -> None:
    ledger = Ledger()
    ledger.record(release())
    with pytest.raises(FrozenInstanceError):
        ledger.entries()[0].rows = 0  # type: ignore[misc]
    assert isinstance(ledger.entries(), tuple)

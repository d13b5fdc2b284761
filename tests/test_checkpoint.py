"""Checkpoints and the event log: whole or not at all, and cut to fit each other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd.errors import FedkdError
from server.checkpoint import KEEP, Checkpoint, latest, save
from server.events import Event, EventLog, read


def checkpoint(round_: int) -> Checkpoint:
    arrays = {"ids": np.arange(3, dtype=np.int32), "values": np.full((3, 2), round_, np.float32)}
    return Checkpoint(round_, {"events_bytes": 10 * round_}, arrays)


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    return (
        one is not None
        and (one.round, one.note) == (other.round, other.note)
        and one.arrays.keys() == other.arrays.keys()
        and all(
            np.array_equal(array, other.arrays[name]) and array.dtype == other.arrays[name].dtype
            for name, array in one.arrays.items()
        )
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_before_the_first_there_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "not there") is None


def test_the_newest_is_read_and_two_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    for round_ in range(1, 6):
        save(folder, checkpoint(round_))
        assert same(latest(folder), checkpoint(round_))
    assert KEEP == 2
    assert names(folder) == {"round-00004", "round-00005"}


@pytest.mark.parametrize("round_", [9, 99_999])
def test_the_newest_is_that_of_the_highest_number(tmp_path: Path, round_: int) -> None:
    """Not the last in the alphabet: round-100000 comes before round-99999 there."""
    for number in (round_, round_ + 1, round_ + 2):
        save(tmp_path, checkpoint(number))
        assert same(latest(tmp_path), checkpoint(number))


def test_a_round_that_is_repeated_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(3))
    again = Checkpoint(3, {"events_bytes": 7}, {"weights": np.ones(4, np.float32)})
    save(tmp_path, again)
    assert same(latest(tmp_path), again)
    assert names(tmp_path) == {"round-00003"}


@given(
    st.dictionaries(
        st.text("abc", min_size=1),
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
        ),
        max_size=3,
    ),
    st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans()),
)
@settings(deadline=None, max_examples=40)
def test_arrays_and_notes_come_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, Any], note: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, Checkpoint(1, note, arrays))
    found = latest(folder)
    assert found is not None
    assert found.note == note
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)


def test_the_layout_in_memory_does_not_matter(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    save(tmp_path, Checkpoint(1, {}, {"x": array}))
    found = latest(tmp_path)
    assert found is not None
    assert np.array_equal(found.arrays["x"], array)


@pytest.mark.parametrize("pid", [1, os.getpid()])
def test_what_a_crash_left_half_written_is_not_seen(tmp_path: Path, pid: int) -> None:
    save(tmp_path, checkpoint(1))
    part = tmp_path / f"part-{pid}"
    part.mkdir()
    (part / "arrays.safetensors").write_bytes(b"\x08\x00")
    assert same(latest(tmp_path), checkpoint(1))
    save(tmp_path, checkpoint(2))
    assert same(latest(tmp_path), checkpoint(2))


@pytest.mark.parametrize("file", ["note.json", "arrays.safetensors"])
@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff" * 30, b"\x08\x00\x00\x00\x00\x00\x00\x00{}"]
)
def test_one_that_cannot_be_read_is_named_with_the_way_out(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    for round_ in (1, 2):
        save(tmp_path, checkpoint(round_))
    damaged = tmp_path / "round-00002" / file
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    with pytest.raises(FedkdError, match=r"round-00002.*fix: delete that folder"):
        latest(tmp_path)
    for path in damaged.parent.iterdir():  # the fix, taken at its word
        path.unlink()
    damaged.parent.rmdir()
    assert same(latest(tmp_path), checkpoint(1))


def test_arrays_cut_anywhere_are_refused(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(1))
    path = tmp_path / "round-00001" / "arrays.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FedkdError, match="cannot read the checkpoint"):
            latest(tmp_path)


# --- the event log ---

EVENTS = st.lists(
    st.fixed_dictionaries(
        {"event": st.text(max_size=5)},
        optional={
            "round": st.integers(),
            "reason": st.text(),
            "accuracy": st.floats(allow_nan=False),
            "counts": st.lists(st.integers(), max_size=3),
        },
    ),
    max_size=6,
)


@given(EVENTS)
@settings(deadline=None, max_examples=60)
def test_events_are_told_and_read_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event]
) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    told: list[Event] = []
    log = EventLog(path, told.append)
    for event in events:
        log.emit(**event)
    assert list(read(path)) == told == events
    assert log.size() == (path.stat().st_size if events else 0)
    if events:
        lines = path.read_text(encoding="ascii").split("\n")  # one line each, whatever is in it
        assert [json.loads(line) for line in lines[:-1]] == events


def test_without_a_path_events_are_only_told(tmp_path: Path) -> None:
    told: list[Event] = []
    log = EventLog(None, told.append)
    log.emit("round", round=1)
    assert told == [{"event": "round", "round": 1}]
    assert log.size() == 0
    log.cut(0)
    EventLog(None).emit("round")  # to nobody


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert list(read(path)) == []
    log = EventLog(path)
    log.cut(0)
    assert log.size() == 0
    assert not path.exists()


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.emit("round", round=1)
    at_checkpoint = log.size()
    whole = path.read_bytes()
    log.emit("client", round=2, client=0)
    full = path.read_bytes()
    for length in range(len(whole), len(full)):  # a crash at any byte of round 2
        path.write_bytes(full[:length])
        assert [event["round"] for event in read(path)] == [1]  # a torn line is left out
        told: list[Event] = []
        resumed = EventLog(path, told.append)
        resumed.cut(at_checkpoint)
        assert path.read_bytes() == whole
        resumed.emit("round", round=2)
        assert [event["round"] for event in read(path)] == [1, 2]
        assert [event["round"] for event in told] == [1, 2]  # what remains is told again


def test_without_a_checkpoint_the_log_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("round", round=1)
    told: list[Event] = []
    EventLog(path, told.append).cut(0)
    assert list(read(path)) == told == []

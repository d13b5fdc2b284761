"""The ledger: append-only, whole after a crash; a repeated release costs once; all is sealed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedkd.errors import FedkdError
from privacy import ledger as ledger_module
from privacy.events import Gaussian, Pure, SampledGaussian
from privacy.ledger import Ledger, Receipt, Release, SeenBy, Sensitivity, What, seal

NOISE = Gaussian(unit="client", relation="replace", noise_multiplier=2.0, count=3)
STEPS = SampledGaussian(unit="record", rate=0.1, noise_multiplier=1.1, count=20)
RELEASES = st.builds(
    Release,
    client=st.integers(0, 3),
    round=st.integers(0, 3),
    what=st.sampled_from(get_args(What)),
    rows=st.integers(0, 3),
    seen_by=st.sampled_from(get_args(SeenBy)),
) | st.builds(
    Release,
    client=st.just(1),
    round=st.integers(0, 3),
    what=st.just("soft labels"),
    rows=st.just(5),
    seen_by=st.just("server"),
    guarantee=st.just("proved"),
    events=st.lists(st.sampled_from([NOISE, STEPS]), min_size=1, max_size=2).map(tuple),
    sensitivity=st.just(Sensitivity(norm="l2", bound=1.4)) | st.none(),
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


def as_json(one: Release) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude_none=True)


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
        assert lines(path) == [as_json(one) for one in expected]


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
        {"guarantee": "empirical", "reason": "temperature 4"},
        {"guarantee": "none", "reason": "no noise was asked for"},
        {"guarantee": "proved", "events": (NOISE,)},
        {"guarantee": "proved", "events": (NOISE, STEPS)},
        {"guarantee": "proved", "events": (NOISE,), "sensitivity": Sensitivity(norm="l1", bound=2)},
    ]
    for change in changes:
        ledger.record(release(**change))
    assert len(ledger.entries()) == len(changes)


def test_without_a_mechanism_no_guarantee_is_claimed(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.jsonl").record(release())
    (line,) = lines(tmp_path / "ledger.jsonl")
    assert (line["guarantee"], line["reason"]) == ("none", "no mechanism")
    assert line["events"] == []
    assert not {"epsilon", "delta"} & line.keys()


def test_what_was_recorded_cannot_be_changed() -> None:
    ledger = Ledger()
    ledger.record(release())
    with pytest.raises(ValidationError, match="frozen"):
        ledger.entries()[0].rows = 0  # type: ignore[misc]
    assert isinstance(ledger.entries(), tuple)


def test_lines_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    """They had no events and no reason; a run that began with it can be resumed."""
    path = tmp_path / "ledger.jsonl"
    path.write_text(
        '{"client": 1, "round": 2, "what": "soft labels", "rows": 9, '
        '"seen_by": "server", "guarantee": "none"}\n'
    )
    assert Ledger(path).entries() == (release(),)
    Ledger(path).record(release())
    assert len(lines(path)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"guarantee": "proved"},
        {"guarantee": "empirical"},
        {"guarantee": "none", "reason": ""},
        {"guarantee": "empirical", "reason": "temperature", "events": (NOISE,)},
        {"events": (NOISE,)},
        {"derived_from": ("training",), "reason": "the model is private"},
        {"guarantee": "proved", "derived_from": ("training",)},
        {"guarantee": "proved", "derived_from": ("soft labels",), "reason": "copied"},
        {"rows": -1},
        {"what": "gradients"},
        {"epsilon": 1.0},
    ],
)
def test_an_entry_that_claims_what_it_does_not_show_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        release(**changes)


def test_what_is_derived_needs_its_source_in_the_ledger() -> None:
    ledger = Ledger()
    labels = release(guarantee="proved", derived_from=("training",), reason="of a private model")
    with pytest.raises(FedkdError, match=r"derived from what the ledger has no entry of.*training"):
        ledger.record(labels)
    assert ledger.entries() == ()
    training = {"what": "training", "seen_by": "no one", "guarantee": "proved", "events": (STEPS,)}
    ledger.record(release(**training))
    ledger.record(labels)
    assert len(ledger.entries()) == 2


def test_a_damaged_line_is_an_error_and_not_forgotten(tmp_path: Path) -> None:
    """Only the last line can be torn; any other fault would hide what was spent."""
    path = tmp_path / "ledger.jsonl"
    for round_ in range(3):
        Ledger(path).record(release(round=round_))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"rows":9', b'"rows":x', 1))
    with pytest.raises(FedkdError, match=r"line 1 of the ledger .* is no entry"):
        Ledger(path)
    assert path.read_bytes() != b""
    path.write_bytes(whole)
    assert len(Ledger(path).entries()) == 3


def test_what_another_process_wrote_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)
    first.record(release(round=1))
    with path.open("ab") as file:
        file.write(release(round=2).as_line())
    assert [entry.round for entry in Ledger(path).entries()] == [1, 2]
    with path.open("ab") as file:
        file.write(release(round=3).as_line())
    first.record(release(round=3))
    assert [line["round"] for line in lines(path)] == [1, 2, 3]
    assert [entry.round for entry in first.entries()] == [1, 2, 3]


def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = tmp_path / "ledger.jsonl", 0
    read = ledger_module._read

    def counted(path: Path) -> dict[Release, None]:
        nonlocal reads
        reads += 1
        return read(path)

    monkeypatch.setattr(ledger_module, "_read", counted)
    for round_ in range(50):
        Ledger(path).record(release(round=round_))
    assert (reads, len(Ledger(path).entries())) == (0, 50)
    monkeypatch.setattr(ledger_module, "MOST_KNOWN", 60)  # a second ledger drives the first out
    other = Ledger(tmp_path / "other.jsonl")
    for round_ in range(20):
        other.record(release(round=round_))
    assert path not in ledger_module._known
    assert len(Ledger(path).entries()) == 50
    assert reads == 1


def test_kill_9_while_recording_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    program = f"""
from pathlib import Path
from privacy.ledger import Ledger, Release
for i in range(10**6):
    entry = Release(client=0, round=i, what="weights", rows=1, seen_by="server")
    Ledger(Path({str(path)!r})).record(entry)
    print(i, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as out:
        for line in out:
            if int(line) == 40:
                os.kill(process.pid, signal.SIGKILL)
                break
        acknowledged = 40 + len(out.readlines())
    assert process.wait() == -signal.SIGKILL
    rounds = [entry.round for entry in Ledger(path).entries()]
    assert rounds == list(range(len(rounds)))
    assert len(rounds) > acknowledged


def test_nothing_is_sealed_without_a_receipt() -> None:
    data = bytes(3)
    ledger = Ledger()
    with pytest.raises(FedkdError, match="nothing leaves a client without an entry"):
        seal(data, client=1, round_=2)
    with pytest.raises(FedkdError, match=r"a receipt comes from Ledger\.record only"):
        Receipt(release(), object())
    receipt = ledger.record(release())
    assert ledger.record(release()) == receipt  # a repeated message may be sent again
    assert seal(data, receipt, client=1, round_=2).data is data
    for wrong in ({"client": 0, "round_": 2}, {"client": 1, "round_": 3}):
        with pytest.raises(FedkdError, match="the receipt is for something else"):
            seal(data, receipt, **wrong)
    pure = Pure(unit="record", relation="add-remove", epsilon=1.0)
    kept = release(what="training", seen_by="no one", guarantee="proved", events=(pure,))
    with pytest.raises(FedkdError, match="the receipt is for something else"):
        seal(data, receipt, ledger.record(kept), client=1, round_=2)

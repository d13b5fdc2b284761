"""A recorded run that is stopped anywhere and resumed leaves the recording of an unbroken one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fedkd.config import Scenario
from scenarios.simulate import resume, simulate
from server import checkpoint
from server.app import UPLOADS
from server.checkpoint import Checkpoint
from server.events import Event
from small_runs import facts, small


class Stop(Exception):
    """Stands for whatever ends a process."""


def scenario(method: str) -> Scenario:
    """Three rounds, in which not all take part; images that are canaries, some in the proxy set."""
    changes: dict[str, Any] = {
        "proxy": {"name": "public", "size": 40},
        "canaries": {"format": "noise", "assign": "coin", "each": 5, "in_proxy": True},
        "training": {"rounds": 3, "participation": 0.7},
    }
    if method == "secure":
        changes["privacy"] = {"server": {"name": "secure-aggregation"}}
        method = "no-filter"
    return small(audit=True, method={"name": method}, **changes)


def uploads(folder: Path) -> dict[str, bytes]:
    """The files of a recording, part files too."""
    (found,) = folder.glob(f"*/seed-1/{UPLOADS}")
    return {path.name: path.read_bytes() for path in found.iterdir()}


@pytest.mark.parametrize("method", ["edgefd", "secure", "fedavg"])
def test_a_resumed_run_has_the_recording_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    what = scenario(method)
    whole = simulate(what, folder=tmp_path / "whole")
    expected = uploads(tmp_path / "whole")
    assert len(expected) == {"edgefd": 4, "secure": 7, "fedavg": 3}[method]
    events = whole.cells[0].events
    broken = tmp_path / "broken"
    for after in range(3, len(events)):
        seen = 0

        def stop(row: str, seed: int, event: Event, after: int = after) -> None:
            nonlocal seen
            seen += 1
            if seen == after:
                raise Stop

        shutil.rmtree(broken, ignore_errors=True)
        with pytest.raises(Stop):
            simulate(what, folder=broken, listener=stop)
        assert facts(resume(broken)) == facts(whole)
        assert uploads(broken) == expected

    save = checkpoint.save

    def dies(folder: Path, saved: Checkpoint) -> None:
        """The round is recorded, and the checkpoint that would count on it never comes."""
        if saved.round == 2:
            assert any("00002" in name for name in uploads(broken))
            raise Stop
        save(folder, saved)

    shutil.rmtree(broken)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dies)
        with pytest.raises(Stop):
            simulate(what, folder=broken)
    (found,) = broken.glob(f"*/seed-1/{UPLOADS}")
    for path in found.glob("*-00002.parquet"):
        path.write_bytes(b"of a round that is played again")
    (found / "part-answers-00009").write_bytes(b"PAR1")  # as a process leaves it that is killed
    assert facts(resume(broken)) == facts(whole)
    assert uploads(broken) == expected

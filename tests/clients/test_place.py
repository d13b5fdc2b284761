"""Where a deployed client is, what it keeps to itself, and what it refuses to do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from clients.consent import Consent
from clients.place import place_of
from fedkd import config
from fedkd.errors import FedkdError
from privacy.ledger import look
from server.events import Event
from small_runs import small
from wandering import FIRST, Wandering, deployed, owned, play

GAUSSIAN = {
    "release": {"name": "gaussian", "epsilon": 8.0},
    "unit": "client",
}


def place(**node_config: Any) -> Any:
    return place_of(Context(1, 1, node_config, RecordDict(), {}))


def test_a_simulated_client_has_no_secret_and_no_folder() -> None:
    found = place(**{"partition-id": 2})
    assert (found.seat, found.state, found.data, found.consent) == (2, None, None, None)
    assert found.secret("job", 1) is None
    assert found.store("job") is None


@pytest.mark.parametrize(
    ("node_config", "reason"),
    [
        ({}, "does not say which client"),
        ({"seat": "two"}, "does not say which client"),
        ({"seat": 0, "data": '{"name": "digits"}'}, "needs a folder for its state"),
        ({"seat": 0, "state": "x", "data": "{"}, "no readable data section"),
        ({"seat": 0, "state": "x", "data": '{"name": "x"}'}, "no readable data section"),
        ({"seat": 0, "consent": '{"weights": true}'}, "no readable consent"),
    ],
)
def test_a_node_config_that_cannot_be_read(node_config: dict[str, Any], reason: str) -> None:
    with pytest.raises(FedkdError, match=reason):
        place(**node_config)


def test_the_secret_is_kept_and_differs_by_run_and_client(tmp_path: Path) -> None:
    data = json.dumps({"name": "digits"})
    one = place(seat=0, state=str(tmp_path / "a"), data=data)
    other = place(seat=0, state=str(tmp_path / "b"), data=data)
    secrets = [one.secret("x", 1), one.secret("y", 1), one.secret("x", 2), other.secret("x", 1)]
    assert len(set(secrets)) == 4
    assert one.secret("x", 1) == secrets[0]
    assert (tmp_path / "a/secret").stat().st_mode & 0o777 == 0o600
    assert not list((tmp_path / "a").glob("*.part"))


def test_a_damaged_secret_is_said(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(FedkdError, match="secret is damaged"):
        place(seat=0, state=str(tmp_path), data='{"name": "digits"}').secret("x", 1)


def test_noise_comes_from_the_secret_and_batches_from_the_seed(tmp_path: Path) -> None:
    """Two deployments of one seed: other noise, so other answers; one with its secret: the same."""
    configs, simulation = owned(tmp_path)
    proxy = {"name": "foreign", "source": {"name": "digits"}, "size": 40}
    changes = {"privacy": GAUSSIAN, "method": {"gate": {"name": "open"}}, "proxy": proxy}
    scenario = deployed(simulation, **changes)
    seen = {}
    for run in ("one", "two"):
        for i, each in enumerate(configs):
            each["state"] = str(tmp_path / run / f"{i}")
        play(Wandering(configs), scenario, tmp_path / run / "server")
        newest = max((tmp_path / run / "server/checkpoints").glob("round-*"))
        seen[run] = (newest / "arrays.safetensors").read_bytes()
    assert seen["one"] != seen["two"]
    for entry in look(next((tmp_path / "one/0").rglob("ledger.jsonl"))):
        assert entry.guarantee == "proved" or entry.what != "soft labels"


def test_runs_of_one_client_are_kept_apart(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    scenario = deployed(simulation)
    for run in ("a", "b"):
        play(Wandering(configs), scenario, tmp_path / run)
    ledgers = list((tmp_path / "state-0/runs").rglob("ledger.jsonl"))
    assert len(ledgers) == 2
    names = {(tmp_path / run / "name").read_text() for run in ("a", "b")}
    assert len(names) == 2


def test_nothing_of_a_client_lies_outside_its_folder(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    play(Wandering(configs), deployed(simulation), tmp_path / "server")
    assert not (tmp_path / "server/clients").exists()
    assert {path.name for path in (tmp_path / "server").iterdir()} == {
        "checkpoints",
        "events.jsonl",
        "name",
        "pool.safetensors",
    }
    assert "class_counts" not in (tmp_path / "server/events.jsonl").read_text().replace(
        '"class_counts": null', ""
    )


@pytest.mark.parametrize(
    ("terms", "changes", "reason"),
    [
        ({}, {"method": {"name": "fedavg"}}, "agree to the exchange"),
        ({}, {"proxy": {"name": "contributed", "fraction": 0.5}}, "raw records"),
        ({}, {"data": {"name": "python", "path": "os:abort"}}, "runs no code that a server names"),
        (
            {},
            {"proxy": {"name": "foreign", "source": {"name": "python", "path": "os:abort"}}},
            "runs no code that a server names",
        ),
        ({}, {"model": {"names": ["mlp", "os:abort"]}}, "runs no code that a server names"),
        ({"epsilon": 1.0}, {}, "agree to the privacy budget"),
        ({"epsilon": 1.0}, {"privacy": {"budget": 2.0, **GAUSSIAN}}, "privacy budget"),
        ({"epsilon": 4.0, "delta": 1e-6}, {"privacy": {"budget": 2.0, **GAUSSIAN}}, "delta"),
    ],
)
def test_what_a_client_does_not_agree_to(
    terms: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    if "privacy" in changes:
        changes = changes | {
            "method": {"gate": {"name": "open"}},
            "proxy": {"name": "public", "size": 50},
        }
    with pytest.raises(FedkdError, match=reason):
        Consent(**terms).check(small(**changes))


def test_what_a_client_agrees_to() -> None:
    Consent().check(small())
    Consent(exchanges=("weights",)).check(small(method={"name": "fedavg"}))
    fair = {
        "privacy": {"budget": 2.0, **GAUSSIAN},
        "method": {"gate": {"name": "open"}},
        "proxy": {"name": "public", "size": 50},
    }
    Consent(epsilon=2.0, unit="client").check(small(**fair))


def test_a_client_that_does_not_agree_is_left_out_and_says_why(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    configs[1]["consent"] = json.dumps({"contributed": 0.0})
    scenario = deployed(simulation, attendance={"quorum": 0.5, "gather_s": 0.05})
    events = play(Wandering(configs), scenario, tmp_path / "run")
    refused = [e for e in events if e["event"] == "refused"]
    assert {e["client"] for e in refused} == {1}
    assert "does not agree to the share of raw records" in refused[0]["reason"]
    assert {e["client"] for e in events if e["event"] == "client"} == {0, 2}
    assert not (tmp_path / "state-1").exists()


def test_a_round_is_not_answered_twice_to_two_questions(tmp_path: Path) -> None:
    """Back at round 2 after other lessons, a server gets no second answer under one noise."""
    configs, simulation = owned(tmp_path)
    scenario = deployed(simulation, attendance={"quorum": 0.3, "gather_s": 0.05})
    run = tmp_path / "run"
    play(Wandering(configs), scenario, run)
    for path in sorted((run / "checkpoints").glob("round-*"))[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    # The same questions again: the same answers, nobody is refused.
    honest = play(Wandering(configs), scenario, run)
    assert not [event for event in honest if event["event"] == "refused"]
    # The same round from another scenario: refused.
    table = scenario.model_dump()
    table["training"]["local"]["epochs"] = 2.0
    for path in sorted((run / "checkpoints").glob("round-*"))[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    with pytest.raises(FedkdError, match="answered in this round before, and to another question"):
        play(Wandering(configs), config.parse(table), run)


def test_a_new_lesson_before_a_round_that_was_answered(tmp_path: Path) -> None:
    """Client 0 has answered round 3; it is taught another round 2 and asked round 3 again."""
    configs, simulation = owned(tmp_path)
    scenario = deployed(simulation, attendance={"quorum": 0.3, "gather_s": 0.05, "repeats": 0})
    run = tmp_path / "run"
    play(Wandering(configs), scenario, run)
    import shutil

    for number in (2, 3):
        shutil.rmtree(run / f"checkpoints/round-{number:05d}", ignore_errors=True)
    for path in (run / "checkpoints").glob("*"):
        shutil.rmtree(path)
    grid = Wandering(configs)
    grid.here = {FIRST, FIRST + 1}  # another consensus than before
    refused: list[Event] = []
    with pytest.raises(FedkdError, match="another question"):
        play(grid, scenario, run, lambda e: refused.append(e) if e["event"] == "refused" else None)
    assert refused


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        place(seat=0, state=str(tmp_path / "s"), data='{"name": "digits"}').secret("x", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "s/secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert np.frombuffer((tmp_path / "s/secret").read_bytes(), np.uint8).std() > 0

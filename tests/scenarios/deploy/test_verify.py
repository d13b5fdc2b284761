"""What clients have signed: kept in a chain, held against the run, and found out where changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from typer.testing import CliRunner

from clients import steps
from clients.signing import COPY, Signer
from fedkd import config
from fedkd.errors import FedkdError
from fedkd.transcript import Chain, digest, read, statement_of
from scenarios.cli import app
from scenarios.deploy import init
from scenarios.deploy.keys import new_key, read_node_key
from scenarios.deploy.verify import Check, verify
from scenarios.grids.local import serve
from server.app import make_app
from server.events import read as read_events
from server.job import Job
from server.transcript import TRANSCRIPT, Member, Witnessed, member
from wandering import FIRST, Wandering, deployed, owned

Lines = list[dict[str, Any]]


def played(folder: Path, forged: int | None = None, **changes: Any) -> Path:
    """A run of three clients that sign, as `_deployed` plays it; one may sign with another key.

    Returns: the run's folder, in that of a server.
    """
    configs, simulation = owned(folder)
    init.init(folder / "lab", ["localhost"], 8100, ["a", "b", "c"])
    server = folder / "lab/server"
    signers, members = {}, {}
    for seat, name in enumerate("abc"):
        key = read_node_key(folder / f"lab/clients/{name}/key")
        state = folder / f"state-{seat}"
        state.mkdir(exist_ok=True)
        signers[FIRST + seat] = Signer(new_key() if seat == forged else key, seat, state)
        members[FIRST + seat] = member(seat, (server / f"nodes/{name}.pub").read_text())
    scenario = deployed(simulation, attendance={"quorum": 0.5, "gather_s": 0.05}, **changes)
    run = server / "state/runs/one"
    cell = run / "edgefd/seed-1"
    cell.mkdir(parents=True)
    (run / "scenario.toml").write_text(config.dump(scenario))
    grid = Witnessed(Wandering(configs, signers=signers), cell / TRANSCRIPT, members)
    seats = {node: one.seat for node, one in members.items()}
    serve(make_app(scenario, 1, cell, None, None, seats), grid)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("signed"), audit=True)


def cell_of(run: Path) -> Path:
    return run / "edgefd/seed-1"


def state_of(run: Path, seat: int) -> Path:
    return run.parents[4] / f"state-{seat}"


def first_failure(run: Path, state: Path | None = None) -> Check | None:
    return next((check for check in verify(run, None, state) if check.ok is False), None)


@contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    """A file of the run with other content, for a while."""
    before = path.read_bytes()
    try:
        path.write_bytes(data)
        yield
    finally:
        path.write_bytes(before)


def rewritten(run: Path, lines: Lines) -> AbstractContextManager[None]:
    """A chain of other lines that hangs together, as a server could write it."""
    path = run.parent / "other-chain"
    path.unlink(missing_ok=True)
    chain = Chain(path)
    for line in lines:
        chain.add(line)
    return changed(cell_of(run) / TRANSCRIPT, path.read_bytes())


def test_an_honest_run_passes_all_checks(run: Path) -> None:
    for seat in range(3):
        checks = list(verify(run, None, state_of(run, seat)))
        assert [check for check in checks if not check.ok] == []
        assert checks[-2].said == "all 8 answers that the client signed are in it"
        assert checks[-1].said.startswith("rounds 2, 3: the answers are those of the model")
    shown = CliRunner().invoke(app, ["verify", str(run)])
    assert shown.exit_code == 0
    assert "24 lines hang together" in shown.output


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_byte_of_a_line_can_be_changed(run: Path, data: st.DataObject) -> None:
    """Of the last line, which nothing follows, the signature takes care."""
    path = cell_of(run) / TRANSCRIPT
    honest = path.read_bytes()
    place = data.draw(st.integers(0, len(honest) - 2))
    new = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (honest[place], 10)))
    if honest[place] == 10 or _means_the_same(honest, place, new):
        return
    with changed(path, honest[:place] + bytes([new]) + honest[place + 1 :]):
        assert first_failure(run) is not None


def _means_the_same(honest: bytes, place: int, new: int) -> bool:
    """Whether JSON of the last line reads the same: white space, or the case of a hex digit."""
    last = honest.rstrip(b"\n").rfind(b"\n") + 1
    if place < last:
        return False
    line = honest[last:]
    changed = line[: place - last] + bytes([new]) + line[place - last + 1 :]
    try:
        one, other = json.loads(line), json.loads(changed)
        for each in (one, other):
            each["signature"] = bytes.fromhex(each["signature"])
    except (ValueError, KeyError, TypeError):
        return False
    return bool(one == other)


def drop(lines: Lines) -> None:
    del lines[next(i for i, line in enumerate(lines) if line["step"] == "train")]


def drop_last(lines: Lines) -> None:
    assert lines.pop()["step"] == "evaluate"


def swap_rounds(lines: Lines) -> None:
    mine = [line for line in lines if line["step"] == "train" and line["client"] == 0]
    mine[0]["round"], mine[1]["round"] = mine[1]["round"], mine[0]["round"]


def other_answer(lines: Lines) -> None:
    lines[-1]["answered"] = digest(b"something else")


def other_client(lines: Lines) -> None:
    lines[-1]["client"] = (lines[-1]["client"] + 1) % 3


def more_bytes(lines: Lines) -> None:
    next(line for line in lines if line["step"] == "train")["bytes"] += 1


@pytest.mark.parametrize(
    ("change", "what", "why"),
    [
        (drop, "rounds", "which signed nothing there"),
        (drop_last, "rounds", "signed no answer to the consensus"),
        (swap_rounds, "signatures", "no key of client 0 has signed it"),
        (other_answer, "signatures", "has signed it"),
        (other_client, "signatures", "has signed it"),
        (more_bytes, "rounds", "bytes of client"),
    ],
)
def test_a_server_that_rewrites_its_chain(
    run: Path, change: Callable[[Lines], None], what: str, why: str
) -> None:
    lines = list(read(cell_of(run) / TRANSCRIPT))
    change(lines)
    with rewritten(run, lines):
        found = first_failure(run)
    assert found is not None
    assert found.what.endswith(what)
    assert why in found.said


def test_a_server_that_forgets_a_client_is_shown_the_client_s_copy(run: Path) -> None:
    """Without the copy nothing is wrong: the log was changed too."""
    log = cell_of(run) / "events.jsonl"
    lines = [line for line in read(cell_of(run) / TRANSCRIPT) if line["client"] != 2]
    kept = [event for event in read_events(log) if event.get("client") != 2]
    text = "".join(json.dumps(event) + "\n" for event in kept)
    with rewritten(run, lines), changed(log, text.encode()):
        assert first_failure(run) is None
        assert first_failure(run, state_of(run, 1)) is None
        found = first_failure(run, state_of(run, 2))
    assert found is not None
    assert found.said.startswith("8 of 8 answers that the client signed are not in it")


def test_a_consensus_or_proxy_set_that_nobody_was_told(run: Path) -> None:
    newest = max((cell_of(run) / "checkpoints").glob("round-*")) / "arrays.safetensors"
    arrays = load_file(newest)
    other = save({**arrays, "values": np.roll(arrays["values"], 1, axis=1)})
    with changed(newest, other):
        found = first_failure(run)
    assert found is not None
    assert "is not what the clients learnt from" in found.said
    pool = cell_of(run) / "pool.safetensors"
    data = pool.read_bytes()
    with changed(pool, data[:-1] + bytes([data[-1] ^ 1])):
        found = first_failure(run)
    assert found is not None
    assert "is not what the clients have answered for" in found.said


def test_who_signs_with_another_key_is_not_heard(tmp_path: Path) -> None:
    run = played(tmp_path, forged=1)
    events = list(read_events(cell_of(run) / "events.jsonl"))
    refused = [event for event in events if event["event"] == "refused"]
    assert refused
    assert {event["client"] for event in refused} == {1}
    assert "does not bear the signature of its key" in refused[0]["reason"]
    assert {event["client"] for event in events if event["event"] == "client"} == {0, 2}
    assert first_failure(run) is None
    assert (state_of(run, 1) / COPY).exists()


def test_two_stories_in_one_round_are_found(run: Path) -> None:
    """A server that tells one client another consensus: both have signed what they were sent."""
    lines = list(read(cell_of(run) / TRANSCRIPT))
    victim = next(line for line in lines if (line["round"], line["step"]) == (2, "evaluate"))
    victim["asked"] = digest(b"another consensus")
    name = "abc"[victim["client"]]
    key = read_node_key(run.parents[3] / f"clients/{name}/key")
    signed = key.sign(statement_of(victim).to_bytes(), ec.ECDSA(hashes.SHA256()))
    victim["signature"] = signed.hex()
    with rewritten(run, lines):
        found = first_failure(run)
    assert found is not None
    assert "were not sent the same" in found.said


def test_a_model_that_is_not_the_one_announced_is_found(run: Path) -> None:
    state = state_of(run, 0)
    path = max((state / "runs").rglob("step-000006.safetensors"))
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("model."))
    with changed(path, save({**tensors, name: tensors[name] + 1})):
        found = first_failure(run, state)
    assert found is not None
    assert found.said == "round 3: the model there is not the one that was announced"


@pytest.mark.parametrize("up", ["float32", "int8"])
def test_answers_of_another_model_than_the_announced_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up: str
) -> None:
    """Client 1 trains and announces one model, and answers with a cheap one: its first weights."""
    honest = steps.answer

    def swapped(clients: Any, models: Any, *rest: Any) -> Any:
        given = [c.model(None) if c.id == 1 else m for c, m in zip(clients, models, strict=True)]
        return honest(clients, given, *rest)

    monkeypatch.setattr(steps, "answer", swapped)
    run = played(tmp_path, audit=True, wire={"up": up})
    assert first_failure(run) is None
    assert first_failure(run, state_of(run, 0)) is None
    found = first_failure(run, state_of(run, 1))
    assert found is not None
    assert "the answers are not those of the announced model" in found.said


def test_a_key_that_was_rotated_since_has_signed_all_the_same(tmp_path: Path) -> None:
    run = played(tmp_path)
    init.rotate_client(tmp_path / "lab", "b")
    assert first_failure(run) is None
    init.revoke(tmp_path / "lab/server", "b")
    assert first_failure(run) is None
    for path in (tmp_path / "lab/server/nodes/revoked").glob("b.*"):
        path.unlink()
    found = first_failure(run)
    assert found is not None
    assert "no key of client 1" in found.said


def test_flower_s_own_way_of_asking_is_witnessed_too(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    keys = {FIRST + seat: new_key() for seat in range(2)}
    signers = {node: Signer(key, node - FIRST, tmp_path) for node, key in keys.items()}
    members = {node: Member(node - FIRST, key.public_key()) for node, key in keys.items()}
    path = tmp_path / TRANSCRIPT
    grid = Witnessed(Wandering(configs[:2], signers=signers), path, members)
    job = Job(scenario=deployed(simulation, 2), seed=1, state_folder=str(tmp_path))
    asked = [Message(job.content(0), node, "query.hello") for node in keys]
    replies = list(grid.send_and_receive(asked, timeout=60))
    assert len(replies) == 2
    assert not any(reply.has_error() for reply in replies)
    assert {line["client"] for line in read(path)} == {0, 1}


def test_a_chain_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    chain = Chain(path)
    chain.add({"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2, "bef')
    assert list(read(path)) == [{"a": 1}]
    again = Chain(path)
    again.add({"a": 3})
    assert list(read(path)) == [{"a": 1}, {"a": 3}]


def test_what_is_no_deployed_run_is_said_in_a_line(tmp_path: Path, run: Path) -> None:
    with pytest.raises(FedkdError, match="not a run folder"):
        list(verify(tmp_path, None, None))
    (tmp_path / "scenario.toml").write_text((run / "scenario.toml").read_text())
    with pytest.raises(FedkdError, match="whose keys are the clients'"):
        list(verify(tmp_path, None, None))
    with pytest.raises(FedkdError, match="simulations do not"):
        list(verify(tmp_path, run.parents[2], None))
    with pytest.raises(FedkdError, match="no file of what a client has signed"):
        list(verify(run, None, tmp_path))

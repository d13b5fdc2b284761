"""Secure aggregation, a client's side: what it reveals, its keys, and a run that is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import clients.secure
from clients.client import Client
from clients.store import MemoryStore
from fedkd import device, payload, payload_secure
from fedkd.config import Scenario
from fedkd.errors import FedkdError, PayloadError
from privacy import secagg
from scenarios.simulate import resume, simulate
from secure_runs import CLIENTS, pair
from server.events import Event
from small_runs import facts
from spied import play


def client_of(scenario: Scenario, client: int, round_: int = 1) -> Client:
    return Client(
        scenario=scenario,
        seed=1,
        id=client,
        round=round_,
        world=scenario.world(1),
        device=device.resolve("cpu"),
    )


def test_a_client_reveals_once_a_round_and_the_same_again() -> None:
    """Two answers about different clients would together be its whole mask."""
    scenario, _ = pair()
    public = {c: clients.secure.keys(client_of(scenario, c)).public for c in range(CLIENTS)}
    store, me = MemoryStore(), client_of(scenario, 0)
    store.save(0, 2, {"model.w": torch.ones(2)})

    def ask(lost: set[int], round_: int = 1) -> payload.Bytes:
        question = payload_secure.encode_cohort(public, lost, round_)
        return clients.secure.reveal(me, store, question)

    first = ask({2})
    assert ask({2}) == first
    with pytest.raises(FedkdError, match=r"other clients were lost in this round before; got \[3"):
        ask({3})
    with pytest.raises(PayloadError, match="another round"):
        ask({2}, round_=2)
    state = store.load(0, before=3)
    assert state is not None
    assert torch.equal(state["model.w"], torch.ones(2))
    secrets = payload_secure.decode_secrets(first, client=0, round_=1, lost=frozenset({2}))
    cohort = secagg.cohort(1, public)
    other = secagg.secret(2, clients.secure.keys(client_of(scenario, 2)), 0, cohort)
    assert secrets == {2: other}


def test_train_does_not_forget_what_was_revealed(tmp_path: Path) -> None:
    """A round is played again after a crash, and now another client is lost: nobody helps."""
    secure, _ = pair(training={"rounds": 2})

    def first(kind: str, client: int, round_: int) -> bool:
        return (kind, client, round_) == ("train", 1, 2) or (kind, round_) == ("evaluate", 2)

    with pytest.raises(FedkdError, match="no client got through round 2"):
        play(secure, CLIENTS, fails=first, folder=tmp_path)

    seen = play(
        secure, CLIENTS, fails=lambda k, c, r: (k, c, r) == ("train", 3, 2), folder=tmp_path
    )
    (last,) = [event for event in seen.of("round") if event["round"] == 2]
    assert "did not reveal" in last["note"]
    refused = [e["reason"] for e in seen.of("refused") if e["step"] == "reveal"]
    assert len(refused) == 2  # clients 0 and 2; client 1 was lost before and has revealed nothing
    assert all("other clients were lost in this round before" in reason for reason in refused)


def test_keys_are_fresh_in_each_round_and_client() -> None:
    scenario, _ = pair()
    found = {
        clients.secure.keys(client_of(scenario, c, r)).public for c in range(4) for r in (1, 2, 3)
    }
    assert len(found) == 12


def test_a_run_stopped_anywhere_resumes_to_the_same_bits(tmp_path: Path) -> None:
    secure, _ = pair()
    whole = simulate(secure)
    for after in (5, 8, 10, 12):
        seen = 0

        def stop(row: str, seed: int, event: Event, after: int = after) -> None:
            nonlocal seen
            seen += 1
            if seen == after:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            simulate(secure, folder=tmp_path / str(after), listener=stop)
        assert facts(resume(tmp_path / str(after))) == facts(whole)

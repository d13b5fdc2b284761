"""Both stores against one contract: a dictionary that never forgets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from clients.store import ClientStore, FolderStore, MemoryStore, State
from privacy.ledger import Release

Open = Callable[[], ClientStore]


@pytest.fixture(params=["memory", "folder"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the store again; a memory store lives as long as its process."""
    memory = MemoryStore()
    return lambda: memory if request.param == "memory" else FolderStore(tmp_path / "clients")


def state(value: float) -> dict[str, Tensor]:
    return {"model.weight": torch.full((2, 3), value), "mask": torch.tensor([True, False])}


def value_of(found: State | None) -> float | None:
    return None if found is None else float(found["model.weight"][0, 0])


def test_a_client_without_a_state_has_none(reopen: Open) -> None:
    assert reopen().load(0, before=10**9) is None


def test_the_newest_state_from_before_a_step_is_loaded(reopen: Open) -> None:
    store = reopen()
    for step in (2, 3, 4):
        store.save(1, step, state(step))
    found = [value_of(reopen().load(1, before)) for before in (3, 4, 5, 99)]
    assert found[1:] == [3, 4, 4]
    assert reopen().load(2, before=99) is None  # another client's


def test_a_step_that_is_repeated_gets_the_same_input(reopen: Open) -> None:
    store = reopen()
    for step in (2, 3, 4, 5):
        store.save(1, step, state(step))
    for _ in range(2):  # round 2 once more, with other results
        assert value_of(reopen().load(1, before=4)) == 3
        store.save(1, 4, state(40))
        assert value_of(reopen().load(1, before=5)) == 40
        store.save(1, 5, state(50))
    assert value_of(reopen().load(1, before=6)) == 50


def test_a_client_may_sit_out_any_number_of_rounds(reopen: Open) -> None:
    store = reopen()
    store.save(1, 2, state(2))
    store.save(1, 3, state(3))
    assert value_of(store.load(1, before=2 * 1000)) == 3
    store.save(1, 2 * 1000, state(7))
    assert value_of(reopen().load(1, before=2 * 1000)) == 3
    assert value_of(reopen().load(1, before=2 * 1000 + 1)) == 7


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(6, 4).T,
        torch.empty(0, 7),
        torch.tensor(3.5),
        torch.tensor([True, False]),
        torch.arange(5),
        torch.tensor([float("nan"), float("inf"), -0.0]),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_tensors_come_back_to_the_bit(reopen: Open, tensor: Tensor) -> None:
    reopen().save(0, 2, {"x": tensor})
    found = reopen().load(0, before=3)
    assert found is not None
    assert found.keys() == {"x"}
    torch.testing.assert_close(found["x"], tensor, rtol=0, atol=0, equal_nan=True)
    assert found["x"].dtype == tensor.dtype


def test_pools_are_kept_by_their_digest(reopen: Open) -> None:
    one, other = "1" * 64, "2" * 64
    assert reopen().load_pool(one) is None
    reopen().save_pool(one, b"first")
    reopen().save_pool(one, b"first")
    reopen().save_pool(other, b"")
    assert reopen().load_pool(one) == b"first"
    assert reopen().load_pool(other) == b""


def test_ledgers_are_kept_by_client(reopen: Open) -> None:
    charged = Release(client=1, round=1, what="weights", rows=1, seen_by="server")
    reopen().ledger(1).record(charged)
    assert reopen().ledger(1).entries() == (charged,)
    assert reopen().ledger(2).entries() == ()
    reopen().save(1, 2, state(2))
    assert reopen().ledger(1).entries() == (charged,)


def test_what_a_crash_left_half_written_is_not_seen(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.save(3, 4, state(4))
    store.save_pool("1" * 64, b"pool")
    whole = next(tmp_path.glob("*/step-*.safetensors")).read_bytes()
    for pid in (1, os.getpid()):
        (tmp_path / "000003" / f"step-000005.{pid}.part").write_bytes(whole[:40])
        (tmp_path / f"pool-{'2' * 16}.{pid}.part").write_bytes(b"po")
    assert value_of(store.load(3, before=99)) == 4
    assert store.load_pool("2" * 64) is None
    store.save(3, 5, state(5))
    store.save_pool("2" * 64, b"other")
    assert value_of(store.load(3, before=99)) == 5
    assert store.load_pool("2" * 64) == b"other"


def test_nothing_half_written_is_left_behind(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for step in range(2, 8):
        store.save(0, step, state(step))
    store.save_pool("1" * 64, b"pool")
    store.ledger(0)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    steps = [f"000000/step-{step:06d}.safetensors" for step in (3, 4, 5, 6, 7)]
    assert files == [*steps, f"pool-{'1' * 16}.safetensors"]


class Rounds(RuleBasedStateMachine):
    """Clients train and evaluate, sit out, are asked twice; the server crashes and repeats a round.

    In round r, both stores must give what a store that forgets nothing gives for steps 2r, 2r + 1.
    """

    folder: Path  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / str(len(list(self.folder.iterdir())))
        self.path.mkdir()
        self.memory = MemoryStore()
        self.all: dict[int, dict[int, float]] = {}
        self.round = 1
        self.saved = 0.0
        self.begun = False

    @property
    def stores(self) -> list[ClientStore]:
        return [self.memory, FolderStore(self.path)]  # the folder is opened afresh each time

    def remembered(self, client: int, before: int) -> float | None:
        steps = [step for step in self.all.get(client, {}) if step < before]
        return self.all[client][max(steps)] if steps else None

    @rule(client=st.integers(0, 2), half=st.integers(0, 1))
    def step(self, client: int, half: int) -> None:
        self.saved += 1
        self.begun = True
        self.all.setdefault(client, {})[2 * self.round + half] = self.saved
        for store in self.stores:
            store.save(client, 2 * self.round + half, state(self.saved))

    @rule(skipped=st.integers(1, 3))
    def next_round(self, skipped: int) -> None:
        self.round += skipped
        self.begun = False

    @precondition(lambda self: self.begun)
    @rule(client=st.integers(0, 2))
    def repeat_the_round(self, client: int) -> None:
        """After a crash: the input of `train` is still there, whatever was saved since."""
        for store in self.stores:
            found = store.load(client, before=2 * self.round)
            assert value_of(found) == self.remembered(client, 2 * self.round)

    @invariant()
    def nothing_that_is_needed_is_forgotten(self) -> None:
        for store in self.stores:
            for client in range(3):
                for before in (2 * self.round, 2 * self.round + 1, 2 * self.round + 2):
                    found = value_of(store.load(client, before))
                    assert found == self.remembered(client, before)

    @invariant()
    def little_is_kept(self) -> None:
        for client in range(3):
            assert len(list((self.path / f"{client:06d}").glob("step-*"))) <= 5
            assert len(self.memory._states.get(client, {})) <= 5


def test_rounds_in_any_order_with_crashes(tmp_path: Path) -> None:
    machine = type("RoundsHere", (Rounds,), {"folder": tmp_path})
    run_state_machine_as_test(
        machine, settings=settings(deadline=None, max_examples=80, stateful_step_count=20)
    )

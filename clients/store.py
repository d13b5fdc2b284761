"""Where a client keeps its own state between messages: in memory, or in a folder.

A state is a table of tensors and is kept by *step*. A round has two steps: 2r for `train`, 2r + 1
for `evaluate`. A handler loads the newest state from before its own step, so that a message that is
delivered twice, or a round that is repeated after a crash, gives the same state again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from privacy.ledger import Ledger, Release

State = Mapping[str, Tensor]


class ClientStore(Protocol):
    """State, ledger and proxy pool of the clients that share a store."""

    def load(self, client: int, before: int) -> State | None:
        """The newest state from before a step, or None for a client that has none."""

    def at(self, client: int, step: int) -> State | None:
        """The state of exactly that step, or None if it is not kept."""

    def newest(self, client: int) -> int | None:
        """The last step that is kept, or None."""

    def save(self, client: int, step: int, state: State) -> None:
        """Keep the state of a step; forget those that no repeated round can need."""

    def ledger(self, client: int) -> Ledger:
        """The client's ledger."""

    def load_pool(self, digest: str) -> bytes | None:
        """The encoded proxy pool of that SHA-256, or None."""

    def save_pool(self, digest: str, pool: bytes) -> None:
        """Keep an encoded proxy pool."""


def _forgettable(steps: list[int], newest: int) -> list[int]:
    """Steps that neither the round of `newest` nor the one before it, if repeated, would load.

    The server keeps two checkpoints, so a run may go back by one round more than its last.
    """
    earlier = [step for step in steps if step < newest - newest % 2 - 2]
    return [step for step in earlier if step < max(earlier)]


class MemoryStore:
    """Keeps everything in this process; gone with it."""

    def __init__(self) -> None:
        self._states: dict[int, dict[int, State]] = {}
        self._ledgers: dict[int, Ledger] = {}
        self._pools: dict[str, bytes] = {}

    def load(self, client: int, before: int) -> State | None:
        """See `ClientStore`."""
        states = self._states.get(client, {})
        steps = [step for step in states if step < before]
        return states[max(steps)] if steps else None

    def at(self, client: int, step: int) -> State | None:
        """See `ClientStore`."""
        return self._states.get(client, {}).get(step)

    def newest(self, client: int) -> int | None:
        """See `ClientStore`."""
        return max(self._states.get(client, {}), default=None)

    def save(self, client: int, step: int, state: State) -> None:
        """See `ClientStore`."""
        states = self._states.setdefault(client, {})
        states[step] = state
        for old in _forgettable(list(states), step):
            del states[old]

    def ledger(self, client: int) -> Ledger:
        """See `ClientStore`."""
        return self._ledgers.setdefault(client, Ledger())

    def ledgers(self) -> dict[int, tuple[Release, ...]]:
        """The entries of each client that has a ledger."""
        return {client: self._ledgers[client].entries() for client in sorted(self._ledgers)}

    def load_pool(self, digest: str) -> bytes | None:
        """See `ClientStore`."""
        return self._pools.get(digest)

    def save_pool(self, digest: str, pool: bytes) -> None:
        """See `ClientStore`."""
        self._pools.setdefault(digest, pool)


class FolderStore:
    """Keeps each client in `folder/NNNNNN/`: one safetensors file a step, and the ledger.

    Files are written whole under another name and then renamed, so a crash leaves none torn.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, client: int, before: int) -> State | None:
        """See `ClientStore`."""
        steps = [step for step in self._steps(client) if step < before]
        return load_file(self._path(client, max(steps))) if steps else None

    def at(self, client: int, step: int) -> State | None:
        """See `ClientStore`."""
        path = self._path(client, step)
        return load_file(path) if path.exists() else None

    def newest(self, client: int) -> int | None:
        """See `ClientStore`."""
        return max(self._steps(client), default=None)

    def save(self, client: int, step: int, state: State) -> None:
        """See `ClientStore`."""
        path = self._path(client, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, part)
        part.replace(path)
        for old in _forgettable(self._steps(client), step):
            self._path(client, old).unlink()

    def ledger(self, client: int) -> Ledger:
        """See `ClientStore`."""
        folder = self.home(client)
        folder.mkdir(parents=True, exist_ok=True)
        return Ledger(folder / "ledger.jsonl")

    def home(self, client: int) -> Path:
        """The folder of one client."""
        return self._path(client, 0).parent

    def load_pool(self, digest: str) -> bytes | None:
        """See `ClientStore`."""
        path = self._folder / f"pool-{digest[:16]}.safetensors"
        return path.read_bytes() if path.exists() else None

    def save_pool(self, digest: str, pool: bytes) -> None:
        """See `ClientStore`."""
        path = self._folder / f"pool-{digest[:16]}.safetensors"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(pool)
            part.replace(path)

    def _path(self, client: int, step: int) -> Path:
        return self._folder / f"{client:06d}" / f"step-{step:06d}.safetensors"

    def _steps(self, client: int) -> list[int]:
        return [int(p.stem[5:]) for p in self._path(client, 0).parent.glob("step-*.safetensors")]

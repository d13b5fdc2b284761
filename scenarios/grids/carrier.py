"""What a worker does, be it a process of ours or a Ray actor: look first, then carry out."""

from __future__ import annotations

import platform
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Message, RecordDict
from flwr.app.message.message import make_message

from fedkd.errors import FedkdError
from scenarios.grids.nodes import Nodes, app_at, partition_of
from server.condense import condense

PACKAGES = ("flwr", "numpy", "torch")


def versions() -> dict[str, str]:
    """What must be the same everywhere for equal bits, and for messages to be understood."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{package: version(package) for package in PACKAGES}}


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """The first thing that a worker is told."""

    app: str
    """The ClientApp's address as "module:attribute"; its store must be a folder."""
    n_clients: int
    folder: Path
    """Where the run keeps its files; every worker must see the same one."""
    token: str
    """What the file of this name in the folder says, too."""
    worker: int = 0
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def asked(self) -> Path:
        """The server's file in the folder."""
        return self.folder / self.token

    @property
    def answered(self) -> Path:
        """The worker's file in the folder."""
        return self.folder / f"{self.token}-{self.worker}"


class Answer(NamedTuple):
    """The replies to a block, and the seconds that they took."""

    replies: list[Message]
    seconds: float


class Carrier:
    """Carries blocks of messages out; made when the greeting was looked into."""

    def __init__(self, greeting: Greeting) -> None:
        """Raises: FedkdError if this machine cannot work for the run."""
        _check_versions(greeting)
        _check_folder(greeting)
        self._nodes = Nodes(app_at(greeting.app), greeting.n_clients)

    def carry_out(self, metadata: Sequence[Any], content: RecordDict) -> Answer:
        """The replies to messages of one type and content, given by their metadata."""
        start = time.perf_counter()
        messages = [make_message(each, content) for each in metadata]
        if len(messages) == 1:
            replies = [self._nodes.carry_out(messages[0])]
        else:
            replies = self._nodes.carry_out_together(messages)
        clients = (partition_of(each.dst_node_id) for each in metadata)
        condense(content, dict(zip(clients, replies, strict=True)))
        return Answer(replies, time.perf_counter() - start)


def problem_of(error: Exception) -> str:
    """One line that says why a worker cannot work."""
    if isinstance(error, FedkdError):
        return str(error)
    return f"a worker on {socket.gethostname()} cannot start: {type(error).__name__}: {error}"


def _check_versions(greeting: Greeting) -> None:
    for name, here in versions().items():
        if here != greeting.versions[name]:
            raise FedkdError(
                f"a worker on {socket.gethostname()} has another version of {name}",
                value=here,
                allowed=greeting.versions[name],
                fix="install the same versions on all machines",
            )


def _check_folder(greeting: Greeting) -> None:
    try:
        seen = greeting.asked.read_text()
        greeting.answered.write_text(seen)
    except OSError:
        seen = ""
    if seen != greeting.token:
        raise not_shared(greeting.folder, socket.gethostname())


def not_shared(folder: Path, host: str) -> FedkdError:
    """The clients' states would be lost between two machines."""
    return FedkdError(
        f"a worker on {host} does not see the run folder, where clients keep their state",
        value=str(folder),
        fix="choose a folder that all machines share and may write to (fedkd run --out FOLDER)",
    )

"""A deployed client: one process that keeps its app loaded, and answers until it is stopped.

A message that was pulled is kept in the client's folder until its reply is sent. Whoever kills the
process in between loses nothing: it is answered after the restart, and since the app's handlers
are idempotent, with the same bytes and no second charge.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clients.carry import carry_out
from clients.fleet import Fleet, Gone, NotAccepted, Unreachable
from clients.signing import Signer
from fedkd.files import write

POLL_S = 0.05
SLOWEST_S = 1.0
"""Between two looks for a message: short after one, longer and longer while none comes."""
BUSY = 20
"""Looks are at least so many times as far apart as one takes: where hundreds of clients look, a
server then has 20 times as much time for one that answers as for one that looks."""
BUSIEST_S = 15.0
WAIT_S = 2.0
"""Before the next try at a server that does not answer."""
GRACE_S = 20.0
"""How long a server may refuse: one that has just come up learns its clients' keys first."""
Say = Callable[[str], None]


class Inbox:
    """The message that is being answered, in a file, if the node has a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "inbox.safetensors"

    def put(self, id_: str, objects: dict[str, bytes]) -> None:
        """Keep a message until `clear`; on the disk when this returns."""
        if self._path is None:
            return
        parts = {name: np.frombuffer(data, np.uint8) for name, data in objects.items()}
        write(self._path, save({f"{id_}/{name}": part for name, part in parts.items()}))

    def get(self) -> tuple[str, dict[str, bytes]] | None:
        """The message that was not answered when the process died."""
        if self._path is None or not self._path.exists():
            return None
        try:
            parts = load(self._path.read_bytes())
        except SafetensorError:
            return None
        ids = {name.split("/")[0] for name in parts}
        return ids.pop(), {name.split("/")[1]: part.tobytes() for name, part in parts.items()}

    def clear(self) -> None:
        """The message is answered."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Node:
    """One client of a deployment, without a thread of its own: `turn` does what there is to do."""

    def __init__(
        self,
        fleet: Fleet,
        app: ClientApp,
        config: UserConfig,
        folder: Path | None,
        signer: Signer | None = None,
    ) -> None:
        self.fleet = fleet
        self._signer = signer
        self._app, self._config, self._inbox = app, config, Inbox(folder)
        self._id = None if folder is None else folder / "node-id"

    def join(self) -> int:
        """Say that the node is there. Returns: its id."""
        known = 0
        if self._id is not None:
            with suppress(FileNotFoundError, ValueError):
                known = int(self._id.read_text())
        node = self.fleet.join(known)
        if self._id is not None and node != known:
            write(self._id, str(node).encode())
        return node

    def turn(self) -> bool:
        """Answer one message, first the one that is owed. Returns: whether there was one."""
        if (owed := self._inbox.get()) is not None:
            self._answer(*owed)
            return True
        found = self.fleet.pull()
        if found is None:
            return False
        id_, run, objects = found
        self._inbox.put(id_, objects)
        with suppress(Gone):
            self.fleet.confirm(run, id_)
        self._answer(id_, objects)
        return True

    def _answer(self, id_: str, objects: dict[str, bytes]) -> None:
        message = inflate_object_from_contents(id_, objects)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = id_
        start = time.monotonic()
        reply = self._carry_out(message)
        with suppress(Gone):
            self.fleet.push(reply, time.monotonic() - start)
        self._inbox.clear()

    def _carry_out(self, message: Message) -> Message:
        metadata = message.metadata
        TaskIdentity.run_id, TaskIdentity.node_id = metadata.run_id, metadata.dst_node_id
        TaskIdentity.task_id = metadata.dst_task_id or 1
        context = Context(
            run_id=metadata.run_id,
            node_id=metadata.dst_node_id,
            node_config=self._config,
            state=RecordDict(),
            run_config={},
        )
        reply = carry_out(self._app, message, context)
        if self._signer is not None:
            self._signer.sign(message, reply)
        return reply


def serve(node: Node, say: Say, stop: threading.Event, heartbeat_s: int) -> None:
    """Answer messages until `stop` is set. Who is cut off waits and comes back.

    Args: say: is told, in a line, when the line to the server comes up or breaks.
    Raises: FedkdError for a server that cannot be trusted or does not accept this client.
    """
    beating = threading.Thread(target=_beat, args=(node.fleet, stop, heartbeat_s), daemon=True)
    trouble, wait, joined = "", POLL_S, False
    refused_since = None
    try:
        while not stop.is_set():
            try:
                if not joined:
                    say(f"joined {node.fleet.address} as node {node.join()}")
                    joined, trouble = True, ""
                    if not beating.is_alive():
                        beating.start()
                began = time.monotonic()
                worked = node.turn()
                least = min(BUSY * (time.monotonic() - began), BUSIEST_S)
                if trouble:
                    say("the server is back")
                trouble, refused_since = "", None
                wait = POLL_S if worked else min(wait * 1.2, SLOWEST_S)
                stop.wait(0 if worked else max(wait, least))
            except Unreachable as error:
                if not trouble:
                    trouble = str(error)
                    say(f"{trouble}; trying again until it answers")
                stop.wait(WAIT_S)
            except NotAccepted:
                refused_since = refused_since or time.monotonic()
                if time.monotonic() - refused_since > GRACE_S:
                    raise
                stop.wait(WAIT_S)
    finally:
        if joined:
            node.fleet.leave()
        node.fleet.close()


def _beat(fleet: Fleet, stop: threading.Event, heartbeat_s: int) -> None:
    while not stop.wait(heartbeat_s / 2):
        with suppress(Unreachable, NotAccepted):  # the main thread meets the same, and says it
            fleet.beat()

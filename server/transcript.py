"""The transcript of a deployed run: what each client has signed, in the order in which it came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedkd.errors import FedkdError
from fedkd.transcript import SIGNED, Chain, Statement, digest
from server.calls import payload_of
from server.link import pull
from server.plain_grid import PlainGrid

TRANSCRIPT = "transcript.jsonl"
"""In the folder of a deployed cell; only ever added to, also by a run that is resumed."""


class Member(NamedTuple):
    """Who a node is."""

    seat: int
    key: ec.EllipticCurvePublicKey


def member(seat: int, key: str) -> Member:
    """Args: key: a public one, a line of OpenSSH. Raises: FedkdError where it is none."""
    try:
        found = load_ssh_public_key(key.encode())
    except ValueError as error:
        raise FedkdError(f"the key of client {seat} cannot be read: {error}") from None
    if not isinstance(found, ec.EllipticCurvePublicKey):
        raise FedkdError(f"the key of client {seat} is not ECDSA", value=key[:30])
    return Member(seat, found)


def signed_by(key: ec.EllipticCurvePublicKey, statement: Statement, signature: bytes) -> bool:
    """Whether the owner of a key has signed a statement."""
    try:
        key.verify(signature, statement.to_bytes(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


class Witnessed(PlainGrid):
    """A grid that lets through what its sender has signed, and keeps a line of each."""

    def __init__(self, grid: Grid, path: Path, members: Mapping[int, Member]) -> None:
        """Args: members: by node id; a node that is not among them is not heard."""
        self._grid, self._chain, self._members = grid, Chain(path), members
        self._asked: dict[str, Statement] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`; what is asked is remembered until it is answered."""
        outgoing = list(messages)
        ids = list(self._grid.push_messages(outgoing))
        shared: dict[int, Statement] = {}  # all messages of a step have one content
        for id_, message in zip(ids, outgoing, strict=True):
            content, node = message.content, message.metadata.dst_node_id
            if id(content) not in shared:
                shared[id(content)] = _question(content, message.metadata.message_type)
            seat = self._members[node].seat if node in self._members else -1
            self._asked[id_] = shared[id(content)]._replace(client=seat)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`; an answer that its node has not signed comes as an error."""
        return [self._hear(message) for message in pull(self._grid, message_ids)]

    def _hear(self, message: Message) -> Message:
        asked = self._asked.pop(message.metadata.reply_to_message_id, None)
        if message.has_error():
            return message
        records = message.content.config_records
        signed = records[SIGNED] if SIGNED in records else ConfigRecord()
        signature, model = signed.get("signature"), str(signed.get("model", ""))
        member = self._members.get(message.metadata.src_node_id)
        data = payload_of(message.content) or b""
        if asked is not None and member is not None and isinstance(signature, bytes):
            statement = asked._replace(answered=digest(data), model=model)
            if signed_by(member.key, statement, signature):
                entry = statement._asdict()
                self._chain.add({**entry, "bytes": len(data), "signature": signature.hex()})
                return message
        error = Error(
            ErrorCode.MOD_FAILED_PRECONDITION,
            "its answer does not bear the signature of its key over what it was asked and answered",
        )
        return make_message(message.metadata, error=error)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return self._grid.get_node_ids()

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._grid.run


def _question(content: RecordDict, step: str) -> Statement:
    config = content.config_records["config"]
    return Statement(
        job=str(config["job"]),
        seed=int(str(config["seed"])),
        round=int(str(config["round"])),
        step=step,
        client=-1,
        scenario=digest(str(config["scenario"]).encode()),
        pool=str(config["pool"]),
        asked=digest(payload_of(content) or b""),
        answered="",
        model="",
    )

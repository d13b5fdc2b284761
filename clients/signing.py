"""A deployed client signs what it answers, with its node's key, and keeps what it has signed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message

from fedkd.transcript import SIGNED, Statement, digest

COPY = "signed.jsonl"
"""In the client's own folder: every statement that it has signed."""


class Signer:
    """Signs replies. Who has the file can show what a server has left out or changed."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, seat: int, folder: Path) -> None:
        self._key, self._seat, self._path = key, seat, folder / COPY

    def sign(self, asked: Message, reply: Message) -> None:
        """Put a signature into a reply, once the statement is on the disk; errors have none."""
        if not reply.has_content():
            return
        config = asked.content.config_records["config"]
        record = reply.content.config_records.get(SIGNED, ConfigRecord())
        statement = Statement(
            job=str(config["job"]),
            seed=int(str(config["seed"])),
            round=int(str(config["round"])),
            step=asked.metadata.message_type,
            client=self._seat,
            scenario=digest(str(config["scenario"]).encode()),
            pool=str(config["pool"]),
            asked=digest(_payload(asked)),
            answered=digest(_payload(reply)),
            model=str(record.get("model", "")),
        )
        signature = self._key.sign(statement.to_bytes(), ec.ECDSA(hashes.SHA256()))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**statement._asdict(), "signature": signature.hex()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        reply.content[SIGNED] = ConfigRecord({**record, "signature": signature})


def _payload(message: Message) -> bytes:
    if "payload" not in message.content:
        return b""
    return bytes(message.content.array_records["payload"]["bytes"].data)

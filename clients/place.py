"""Where a client is: its seat, its data and its own folder, as its node's config says.

A simulation's node says no more than which partition it has. A deployed one may say:

`seat`      which client it is; `partition-id` means the same
`state`     the folder of its own, where its models, ledgers and secret stay
`data`      its own data, as the JSON of a data section; else it takes the seat's part of the
            scenario's data, as a simulation does
`consent`   what its operator allows to leave, as the JSON of a `Consent`
"""

from __future__ import annotations

import hashlib
import hmac
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from flwr.app import Context
from pydantic import TypeAdapter, ValidationError

from clients.consent import Consent
from clients.store import FolderStore
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.data.sources import Source
from fedkd.errors import FedkdError
from fedkd.files import write

SECRET_BYTES = 32
_SOURCE: TypeAdapter[Source] = TypeAdapter(Source)
_CONSENT = TypeAdapter(Consent)
T = TypeVar("T")


class Place(NamedTuple):
    """See the module."""

    seat: int
    state: Path | None
    data: Source | None
    consent: Consent | None

    def world(self, scenario: Scenario, seed: int) -> Federation:
        """What the client knows. Raises: FedkdError for data that do not fit the scenario."""
        if self.data is None:
            return scenario.world(seed)
        return scenario.held(seed, self.seat, self.data)

    def store(self, job: str) -> FolderStore | None:
        """The client's own store for one run, which `job` names; None if it has no folder.

        Runs are kept apart, since each counts its rounds from 1.
        """
        if self.state is None:
            return None
        return FolderStore(self.state / "runs" / _short(job))

    def secret(self, job: str, seed: int) -> int | None:
        """What the noise and the keys of the client are drawn from, with the address of a draw.

        A client with data of its own has made it at random, tells it to nobody, and takes another
        for each run, since two releases with one noise tell their difference. Where the data are
        simulated there is none, so that a deployment repeats a simulation bit for bit.
        """
        if self.data is None or self.state is None:
            return None
        own = _kept_secret(self.state / "secret")
        return int.from_bytes(hmac.digest(own, f"{job}|{seed}".encode(), "sha256"), "big")


def place_of(context: Context) -> Place:
    """Where the client of a context is. Raises: FedkdError for a config that cannot be read."""
    config = context.node_config
    seat = config.get("seat", config.get("partition-id"))
    if type(seat) is not int:
        raise FedkdError(
            "the node does not say which client it is",
            value=seat,
            fix="give it seat=N (or partition-id=N) in its node config",
        )
    state, data, consent = (str(config.get(key, "")) for key in ("state", "data", "consent"))
    if data and not state:
        raise FedkdError(
            "a client with data of its own needs a folder for its state", fix="state=…"
        )
    return Place(
        seat,
        Path(state).expanduser() if state else None,
        _read(_SOURCE, "data section", data),
        _read(_CONSENT, "consent", consent),
    )


@lru_cache(maxsize=16)
def _read(kind: TypeAdapter[T], what: str, text: str) -> T | None:
    """JSON of a node's config; None where there is none."""
    try:
        return kind.validate_json(text) if text else None
    except ValidationError as error:
        raise FedkdError(
            f"the node's config has no readable {what}: {error.errors()[0]['msg']}", value=text
        ) from None


@lru_cache(maxsize=8)
def _kept_secret(path: Path) -> bytes:
    """The secret in a file, made at the first need; nobody but its owner may read it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(path, os.urandom(SECRET_BYTES), 0o600)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise FedkdError("the client's secret is damaged", value=str(path), fix="restore that file")
    return secret


def _short(job: str) -> str:
    """A folder's name for a run; a server may call its run anything."""
    return hashlib.sha256(job.encode()).hexdigest()[:16]

"""The envelope of every message: named arrays <-> one flat array of bytes, and common checks.

A payload is a safetensors file in memory: named arrays with types and shapes, one of them a JSON
header; no pickle. It is one array, since every extra array costs Flower a round trip. Each side
checks everything that it reads, and refuses with a `PayloadError` that says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedkd.errors import PayloadError

SCHEMA = 2
"""Raised whenever a reader of the older version would misread the newer."""

Bytes = bytes
STYPE = "safetensors"
"""How a Flower `Array` says that its data are such bytes, as they are: no copy on the way."""

Array = NDArray[Any]
HEADER = "header"


def pack(kind: str, arrays: Mapping[str, Array], **header: int) -> Bytes:
    """The bytes of a message: its arrays, and its kind and header as JSON."""
    note = json.dumps({"schema": SCHEMA, "kind": kind, **header}).encode()
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    packed[HEADER] = np.frombuffer(note, dtype=np.uint8)
    return save(packed)


def unpack(
    data: Bytes, kind: str, *specs: Mapping[str, str]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays that one of `specs` names with their allowed types, and the header."""
    try:
        arrays = load(data)
        header = json.loads(arrays.pop(HEADER).tobytes())
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise PayloadError(f"not a payload: {error}") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise PayloadError("wrong schema", value=header, allowed=str(SCHEMA))
    if header.get("kind") != kind:
        raise PayloadError("wrong kind of message", value=header.get("kind"), allowed=kind)
    spec = next((one for one in specs if set(one) == set(arrays)), None)
    if spec is None:
        allowed = " or ".join(", ".join(sorted(one)) for one in specs)
        raise PayloadError("wrong arrays", value=sorted(arrays), allowed=allowed)
    for name, types in spec.items():
        if str(arrays[name].dtype) not in types.split():
            raise PayloadError(
                f"wrong type of {name}", value=str(arrays[name].dtype), allowed=types
            )
    return arrays, header


def check_rows(ids: Array, values: Array, n_samples: int, n_classes: int) -> None:
    """Raises: PayloadError unless `values` is a finite row [classes] for each of the ids."""
    check_ids(ids, n_samples)
    require(
        values.shape == (len(ids), n_classes),
        f"values are {list(values.shape)}, not [{len(ids)}, {n_classes}]",
    )
    check_finite(values, "values")


def check_ids(ids: Array, n_samples: int) -> None:
    """Raises: PayloadError unless ids [m] are ascending and unique, below `n_samples`."""
    require(ids.ndim == 1, "ids are not [m]")
    if len(ids):
        require(int(ids.min()) >= 0 and int(ids.max()) < n_samples, "an id is out of range")
        require(bool((np.diff(ids) > 0).all()), "ids are repeated or not ascending")


def check_ascending(clients: Array, name: str) -> None:
    """Raises: PayloadError unless `clients` [n] are ascending and unique, from 0."""
    require(clients.ndim == 1, f"{name} is not [n]")
    require(bool((np.diff(clients, prepend=-1) > 0).all()), f"{name} is not ascending from 0")


def check_sender(header: Mapping[str, Any], client: int, round_: int) -> None:
    """Raises: PayloadError for a message of another client or round."""
    found = (whole(header, "client"), whole(header, "round"))
    if found != (client, round_):
        raise PayloadError(
            "a message of another client or round", value=found, allowed=str((client, round_))
        )


def whole(header: Mapping[str, Any], key: str) -> int:
    """The whole number under a key of the header. Raises: PayloadError for anything else."""
    value = header.get(key)
    if type(value) is not int or not -1 <= value < 2**31:
        raise PayloadError(
            f"header {key} is not a whole number in range", value=value, allowed="-1 to 2^31 - 1"
        )
    return value


def check_finite(array: Array, name: str) -> None:
    """Raises: PayloadError for NaN or infinity."""
    require(bool(np.isfinite(array).all()), f"{name} has values that are not finite")


def require(truth: bool, what: str) -> None:
    """Raises: PayloadError, saying `what`, unless it is true."""
    if not truth:
        raise PayloadError(what)

"""What goes over the wire for secure aggregation: keys, blinded tables, secrets of the lost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import PayloadError
from fedkd.wire import (
    Array,
    Bytes,
    check_ascending,
    check_sender,
    pack,
    require,
    unpack,
    whole,
)

WORD = 32


def encode_key(key: bytes, client: int, round_: int) -> Bytes:
    """One client's public key of one round as bytes."""
    return pack("key", {"key": _octets([key])}, client=client, round=round_)


def decode_key(data: Bytes, *, client: int, round_: int) -> bytes:
    """The 32 bytes of a key. Raises: PayloadError for another client or round, or another size."""
    arrays, header = unpack(data, "key", {"key": "uint8"})
    check_sender(header, client, round_)
    return _split(arrays["key"], 1)[0]


def encode_cohort(public: Mapping[int, bytes], lost: Collection[int], round_: int) -> Bytes:
    """The public keys of a round by client, and which of these clients were lost, as bytes."""
    arrays: dict[str, Array] = {
        "clients": np.array(sorted(public), np.int32),
        "keys": _octets([public[client] for client in sorted(public)]),
        "lost": np.array(sorted(lost), np.int32),
    }
    return pack("cohort", arrays, round=round_)


def decode_cohort(data: Bytes, *, round_: int) -> tuple[dict[int, bytes], frozenset[int]]:
    """The public keys by client, and the clients that were lost.

    Raises: PayloadError for another round, clients repeated or not ascending, keys of another
        number or size, or a lost client that has no key.
    """
    spec = {"clients": "int32", "keys": "uint8", "lost": "int32"}
    arrays, header = unpack(data, "cohort", spec)
    if whole(header, "round") != round_:
        raise PayloadError("cohort of another round", value=header["round"])
    for name in ("clients", "lost"):
        check_ascending(arrays[name], name)
    public = dict(
        zip(
            arrays["clients"].tolist(),
            _split(arrays["keys"], len(arrays["clients"])),
            strict=True,
        )
    )
    lost = frozenset(arrays["lost"].tolist())
    require(lost <= public.keys(), "a client without a key is lost")
    return public, lost


def encode_blinded(blinded: NDArray[np.uint64], client: int, round_: int) -> Bytes:
    """One client's table under its mask [samples, classes + 1] as bytes."""
    return pack("blinded", {"table": blinded}, client=client, round=round_)


def decode_blinded(
    data: Bytes, *, client: int, round_: int, shape: tuple[int, int]
) -> NDArray[np.uint64]:
    """The table of `client` in `round_`; whatever numbers it holds are possible.

    Raises: PayloadError for another client or round, or another shape.
    """
    arrays, header = unpack(data, "blinded", {"table": "uint64"})
    check_sender(header, client, round_)
    table = arrays["table"]
    require(table.shape == shape, f"table is {list(table.shape)}, not {list(shape)}")
    return table


def encode_secrets(secrets: Mapping[int, bytes], client: int, round_: int) -> Bytes:
    """What one client shared with each of the lost ones, as bytes."""
    arrays: dict[str, Array] = {
        "lost": np.array(sorted(secrets), np.int32),
        "secrets": _octets([secrets[peer] for peer in sorted(secrets)]),
    }
    return pack("secrets", arrays, client=client, round=round_)


def decode_secrets(
    data: Bytes, *, client: int, round_: int, lost: frozenset[int]
) -> dict[int, bytes]:
    """The secrets of `client` with those that were lost.

    Raises: PayloadError for another client or round, other peers, or secrets of another size.
    """
    arrays, header = unpack(data, "secrets", {"lost": "int32", "secrets": "uint8"})
    check_sender(header, client, round_)
    check_ascending(arrays["lost"], "lost")
    peers = arrays["lost"].tolist()
    if frozenset(peers) != lost:
        raise PayloadError("secrets with other clients", value=peers, allowed=str(sorted(lost)))
    return dict(zip(peers, _split(arrays["secrets"], len(peers)), strict=True))


def _octets(words: Sequence[bytes]) -> NDArray[np.uint8]:
    """Words of 32 bytes as uint8 [n, 32]."""
    return np.frombuffer(b"".join(words), np.uint8).reshape(len(words), WORD)


def _split(octets: Array, n: int) -> list[bytes]:
    """The n words of uint8 [n, 32]."""
    require(octets.shape == (n, WORD), f"expected {n} words of {WORD} bytes")
    return [row.tobytes() for row in octets]

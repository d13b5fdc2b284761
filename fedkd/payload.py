"""What goes over the wire: typed messages <-> one flat array of bytes.

A payload is a safetensors file in memory: named arrays with types and shapes, one of them a JSON
header; no pickle. It is one array, since every extra array costs Flower a round trip. Each side
checks everything that it reads, and refuses with a `PayloadError` that says why.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedkd.errors import PayloadError
from fedkd.exchange.combine import GRID, Consensus, Votes
from fedkd.sparse import TOLERANCE, Coding

SCHEMA = 2
"""Raised whenever a reader of the older version would misread the newer."""

Bytes = NDArray[np.uint8]
Array = NDArray[Any]
HEADER = "header"
WORD = 32
"""Bytes of a key and of a shared secret."""


class Hello(NamedTuple):
    """A client's first words: who it is, and what it gives to the proxy pool."""

    client: int
    n_private: int
    n_classes: int
    contribution: Array  # uint8, float32, int16 [m, c, h, w]: raw private samples, in the clear


class Answer(NamedTuple):
    """One client's answers of one round."""

    client: int
    round: int
    ids: NDArray[np.int32]  # [m] ascending, unique proxy ids
    values: NDArray[np.float32]  # [m, classes]

    def blocks(self) -> Iterator[Answer]:
        """The answer itself."""
        yield self


class SparseAnswer(NamedTuple):
    """One client's answers of one round as a coding of them was sent; checked."""

    client: int
    round: int
    ids: NDArray[np.int32]  # [m] ascending, unique proxy ids
    arrays: dict[str, Array]
    coding: Coding
    n_classes: int

    def blocks(self) -> Iterator[Answer]:
        """The answers with dense rows, a few at a time: all of a vocabulary's take too much."""
        start = 0
        for values in self.coding.decode(self.arrays, self.n_classes):
            ids = self.ids[start : start + len(values)]
            yield Answer(self.client, self.round, ids, values)
            start += len(values)


class Partial(NamedTuple):
    """The votes of some clients in one round, about the samples that any of them answered."""

    round: int
    clients: NDArray[np.int32]  # [k] ascending: whose answers are in it, each once
    ids: NDArray[np.int32]  # [m] ascending, unique proxy ids
    votes: Votes  # total [m, classes] float64, or float32 where that is exact; voters [m]


class Pool(NamedTuple):
    """The proxy set."""

    x: Array  # uint8, float32, int16 [n, c, h, w]
    contributor: NDArray[np.int32]  # [n] the client that gave the sample, or -1


def encode_hello(hello: Hello) -> Bytes:
    """One client's hello as bytes."""
    return _encode(
        "hello",
        {"contribution": hello.contribution},
        client=hello.client,
        n_private=hello.n_private,
        n_classes=hello.n_classes,
    )


def decode_hello(data: Bytes) -> Hello:
    """Raises: PayloadError where counts or samples break the contract."""
    arrays, header = _decode(data, "hello", {"contribution": "uint8 float32 int16"})
    hello = Hello(
        _whole(header, "client"), _whole(header, "n_private"), _whole(header, "n_classes"), **arrays
    )
    _require(min(hello.client, hello.n_private) >= 0, "client or n_private is negative")
    _require(hello.n_classes >= 1, "there are no classes")
    _require(hello.contribution.ndim == 4, "contribution is not [m, c, h, w]")
    _finite(hello.contribution, "contribution")
    return hello


def encode_pool(pool: Pool) -> Bytes:
    """The proxy set as bytes."""
    return _encode("pool", pool._asdict())


def decode_pool(data: Bytes) -> Pool:
    """Raises: PayloadError where samples and contributors do not match or are not finite."""
    arrays, _ = _decode(data, "pool", {"x": "uint8 float32 int16", "contributor": "int32"})
    pool = Pool(**arrays)
    _require(pool.x.ndim == 4, "pool is not [n, c, h, w]")
    _require(pool.contributor.shape == (len(pool.x),), "one contributor a sample is needed")
    _finite(pool.x, "pool")
    return pool


def encode_answer(answer: Answer) -> Bytes:
    """One client's answers as bytes."""
    arrays = {"ids": answer.ids, "values": answer.values}
    return _encode("answer", arrays, client=answer.client, round=answer.round)


def decode_answer(
    data: Bytes, *, client: int, round_: int, n_samples: int, n_classes: int, simplex: bool
) -> Answer:
    """The answers of `client` in `round_`.

    Args: simplex: whether each row must be a distribution over the classes.
    Raises: PayloadError for another client or round, ids out of range, unsorted or repeated, a
        wrong shape, values that are not finite or, with `simplex`, not distributions.
    """
    arrays, header = _decode(data, "answer", {"ids": "int32", "values": "float32"})
    answer = Answer(_whole(header, "client"), _whole(header, "round"), **arrays)
    _from(answer, client, round_)
    _rows(answer.ids, answer.values, n_samples, n_classes)
    if simplex and len(answer.values):
        ones = np.ones(n_classes, np.float32)  # a product sums short rows 20 times as fast
        off = float(np.abs(answer.values @ ones - 1).max())
        low = float(answer.values.min())
        if off > TOLERANCE or low < 0:
            raise PayloadError("a row is not a distribution", value=(low, off))
    return answer


def encode_sparse_answer(answer: Answer, coding: Coding, draws: np.random.Generator) -> Bytes:
    """One client's answers as bytes, their rows by `coding`.

    Raises: FedkdError for a row that is not a distribution.
    """
    arrays = {"ids": answer.ids, **coding.encode(answer.values, draws)}
    return _encode(coding.kind, arrays, client=answer.client, round=answer.round)


def decode_sparse_answer(
    data: Bytes, *, client: int, round_: int, n_samples: int, n_classes: int, coding: Coding
) -> SparseAnswer:
    """The answers of `client` in `round_`, all of them checked before any dense row is made.

    Raises: PayloadError as `decode_answer`, and for arrays that break the coding's contract.
    """
    spec = {"ids": "int32", **coding.types(n_classes)}
    arrays, header = _decode(data, coding.kind, spec)
    ids = arrays.pop("ids")
    answer = SparseAnswer(
        _whole(header, "client"), _whole(header, "round"), ids, arrays, coding, n_classes
    )
    _from(answer, client, round_)
    _ids(ids, n_samples)
    coding.check(arrays, len(ids), n_classes)
    return answer


def encode_partial(partial: Partial) -> Bytes:
    """A partial sum as bytes; a total that float32 can say exactly takes half of them."""
    total = partial.votes.total
    narrow = total.astype(np.float32)
    arrays = {
        "clients": partial.clients,
        "ids": partial.ids,
        "total": narrow if np.array_equal(narrow, total) else total,
        "voters": partial.votes.voters,
    }
    return _encode("partial", arrays, round=partial.round)


def decode_partial(data: Bytes, *, round_: int, n_samples: int, n_classes: int) -> Partial:
    """A partial sum of answers whose rows are distributions.

    Raises: PayloadError for another round, clients or ids that are repeated or not ascending, ids
        out of range, a wrong shape, a total that is not finite or no whole number of steps, more
        voters than clients, or rows that are not the sum of as many distributions.
    """
    arrays, header = _decode(
        data,
        "partial",
        {"clients": "int32", "ids": "int32", "total": "float32 float64", "voters": "int32"},
    )
    clients, ids, total, voters = (arrays[k] for k in ("clients", "ids", "total", "voters"))
    if _whole(header, "round") != round_:
        raise PayloadError("sum of another round", value=header["round"], allowed=str(round_))
    _require(clients.ndim == 1 and len(clients) > 0, "clients are not [k], or there are none")
    _require(
        bool((clients >= 0).all() and (np.diff(clients) > 0).all()),
        "clients are negative, repeated or not ascending",
    )
    _rows(ids, total, n_samples, n_classes)
    _require(voters.shape == ids.shape, f"voters are {list(voters.shape)}, not [{len(ids)}]")
    if len(ids):
        _require(
            int(voters.min()) >= 1 and int(voters.max()) <= len(clients),
            f"a sample does not have 1 to {len(clients)} voters",
        )
        _require(bool((total == np.rint(total)).all()), "a total is no whole number of steps")
        low, high = float(total.min()), float(total.max())
        # Each answer's rows are off by their own tolerance, and by half a step a class.
        tolerance = TOLERANCE + n_classes / GRID
        _require(
            low >= 0 and high <= (1 + tolerance) * len(clients) * GRID,
            "a row is not a sum of distributions",
        )
        off = float(np.abs(total @ np.ones(n_classes) / (voters * GRID) - 1).max())
        if off > tolerance:
            raise PayloadError("a row is not a sum of distributions", value=off)
    return Partial(round_, clients, ids, Votes(total, voters))


def encode_consensus(consensus: Consensus, round_: int) -> Bytes:
    """One round's consensus as bytes."""
    return _encode("consensus", consensus._asdict(), round=round_)


def decode_consensus(data: Bytes, *, round_: int, n_samples: int, n_classes: int) -> Consensus:
    """Raises: PayloadError for another round, bad ids, a wrong shape or values not finite."""
    arrays, header = _decode(data, "consensus", {"ids": "int32", "values": "float32"})
    if _whole(header, "round") != round_:
        raise PayloadError("consensus of another round", value=header["round"])
    _rows(arrays["ids"], arrays["values"], n_samples, n_classes)
    return Consensus(**arrays)


def encode_key(key: bytes, client: int, round_: int) -> Bytes:
    """One client's public key of one round as bytes."""
    return _encode("key", {"key": _octets([key])}, client=client, round=round_)


def decode_key(data: Bytes, *, client: int, round_: int) -> bytes:
    """The 32 bytes of a key. Raises: PayloadError for another client or round, or another size."""
    arrays, header = _decode(data, "key", {"key": "uint8"})
    _sender(header, client, round_)
    return _split(arrays["key"], 1)[0]


def encode_cohort(public: Mapping[int, bytes], lost: Collection[int], round_: int) -> Bytes:
    """The public keys of a round by client, and which of these clients were lost, as bytes."""
    arrays: dict[str, Array] = {
        "clients": np.array(sorted(public), np.int32),
        "keys": _octets([public[client] for client in sorted(public)]),
        "lost": np.array(sorted(lost), np.int32),
    }
    return _encode("cohort", arrays, round=round_)


def decode_cohort(data: Bytes, *, round_: int) -> tuple[dict[int, bytes], frozenset[int]]:
    """The public keys by client, and the clients that were lost.

    Raises: PayloadError for another round, clients repeated or not ascending, keys of another
        number or size, or a lost client that has no key.
    """
    spec = {"clients": "int32", "keys": "uint8", "lost": "int32"}
    arrays, header = _decode(data, "cohort", spec)
    if _whole(header, "round") != round_:
        raise PayloadError("cohort of another round", value=header["round"])
    for name in ("clients", "lost"):
        _ascending(arrays[name], name)
    public = dict(
        zip(
            arrays["clients"].tolist(),
            _split(arrays["keys"], len(arrays["clients"])),
            strict=True,
        )
    )
    lost = frozenset(arrays["lost"].tolist())
    _require(lost <= public.keys(), "a client without a key is lost")
    return public, lost


def encode_blinded(blinded: NDArray[np.uint64], client: int, round_: int) -> Bytes:
    """One client's table under its mask [samples, classes + 1] as bytes."""
    return _encode("blinded", {"table": blinded}, client=client, round=round_)


def decode_blinded(
    data: Bytes, *, client: int, round_: int, shape: tuple[int, int]
) -> NDArray[np.uint64]:
    """The table of `client` in `round_`; whatever numbers it holds are possible.

    Raises: PayloadError for another client or round, or another shape.
    """
    arrays, header = _decode(data, "blinded", {"table": "uint64"})
    _sender(header, client, round_)
    table = arrays["table"]
    _require(table.shape == shape, f"table is {list(table.shape)}, not {list(shape)}")
    return table


def encode_secrets(secrets: Mapping[int, bytes], client: int, round_: int) -> Bytes:
    """What one client shared with each of the lost ones, as bytes."""
    arrays: dict[str, Array] = {
        "lost": np.array(sorted(secrets), np.int32),
        "secrets": _octets([secrets[peer] for peer in sorted(secrets)]),
    }
    return _encode("secrets", arrays, client=client, round=round_)


def decode_secrets(
    data: Bytes, *, client: int, round_: int, lost: frozenset[int]
) -> dict[int, bytes]:
    """The secrets of `client` with those that were lost.

    Raises: PayloadError for another client or round, other peers, or secrets of another size.
    """
    arrays, header = _decode(data, "secrets", {"lost": "int32", "secrets": "uint8"})
    _sender(header, client, round_)
    _ascending(arrays["lost"], "lost")
    peers = arrays["lost"].tolist()
    if frozenset(peers) != lost:
        raise PayloadError("secrets with other clients", value=peers, allowed=str(sorted(lost)))
    return dict(zip(peers, _split(arrays["secrets"], len(peers)), strict=True))


def encode_weights(
    weights: NDArray[np.float32], client: int, round_: int, n_samples: int = 0
) -> Bytes:
    """A flat vector of model weights as bytes, and how many samples taught them.

    Client -1 is the server.
    """
    header = {"client": client, "round": round_, "n_samples": n_samples}
    return _encode("weights", {"weights": weights}, **header)


def decode_weights(
    data: Bytes, *, client: int, round_: int, size: int
) -> tuple[NDArray[np.float32], int]:
    """The weights [size] and the number of samples.

    Raises: PayloadError for another sender or round, a wrong size or values not finite.
    """
    arrays, header = _decode(data, "weights", {"weights": "float32"})
    if (_whole(header, "client"), _whole(header, "round")) != (client, round_):
        raise PayloadError("weights of another client or round", value=header)
    _require(arrays["weights"].shape == (size,), f"expected {size} weights")
    _finite(arrays["weights"], "weights")
    n_samples = _whole(header, "n_samples")
    _require(n_samples >= 0, "n_samples is negative")
    return arrays["weights"], n_samples


def _encode(kind: str, arrays: Mapping[str, Array], **header: int) -> Bytes:
    note = json.dumps({"schema": SCHEMA, "kind": kind, **header}).encode()
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    packed[HEADER] = np.frombuffer(note, dtype=np.uint8)
    return np.frombuffer(save(packed), dtype=np.uint8)


def _decode(
    data: Bytes, kind: str, spec: Mapping[str, str]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays that `spec` names with their allowed types, and the header."""
    try:
        arrays = load(data.tobytes())
        header = json.loads(arrays.pop(HEADER).tobytes())
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise PayloadError(f"not a payload: {error}") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise PayloadError("wrong schema", value=header, allowed=str(SCHEMA))
    if header.get("kind") != kind:
        raise PayloadError("wrong kind of message", value=header.get("kind"), allowed=kind)
    if set(arrays) != set(spec):
        raise PayloadError("wrong arrays", value=sorted(arrays), allowed=", ".join(sorted(spec)))
    for name, types in spec.items():
        if str(arrays[name].dtype) not in types.split():
            raise PayloadError(
                f"wrong type of {name}", value=str(arrays[name].dtype), allowed=types
            )
    return arrays, header


def _from(answer: Answer | SparseAnswer, client: int, round_: int) -> None:
    if answer.client != client:
        raise PayloadError("answer in another client's name", value=answer.client)
    if answer.round != round_:
        raise PayloadError("answer of another round", value=answer.round, allowed=str(round_))


def _rows(ids: Array, values: Array, n_samples: int, n_classes: int) -> None:
    _ids(ids, n_samples)
    _require(
        values.shape == (len(ids), n_classes),
        f"values are {list(values.shape)}, not [{len(ids)}, {n_classes}]",
    )
    _finite(values, "values")


def _ids(ids: Array, n_samples: int) -> None:
    _require(ids.ndim == 1, "ids are not [m]")
    if len(ids):
        _require(int(ids.min()) >= 0 and int(ids.max()) < n_samples, "an id is out of range")
        _require(bool((np.diff(ids) > 0).all()), "ids are repeated or not ascending")


def _octets(words: Sequence[bytes]) -> NDArray[np.uint8]:
    """Words of 32 bytes as uint8 [n, 32]."""
    return np.frombuffer(b"".join(words), np.uint8).reshape(len(words), WORD)


def _split(octets: Array, n: int) -> list[bytes]:
    """The n words of uint8 [n, 32]."""
    _require(octets.shape == (n, WORD), f"expected {n} words of {WORD} bytes")
    return [row.tobytes() for row in octets]


def _ascending(clients: Array, name: str) -> None:
    _require(clients.ndim == 1, f"{name} is not [n]")
    _require(bool((np.diff(clients, prepend=-1) > 0).all()), f"{name} is not ascending from 0")


def _sender(header: Mapping[str, Any], client: int, round_: int) -> None:
    found = (_whole(header, "client"), _whole(header, "round"))
    if found != (client, round_):
        raise PayloadError(
            "a message of another client or round", value=found, allowed=str((client, round_))
        )


def _whole(header: Mapping[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not -1 <= value < 2**31:
        raise PayloadError(
            f"header {key} is not a whole number in range", value=value, allowed="-1 to 2^31 - 1"
        )
    return value


def _finite(array: Array, name: str) -> None:
    _require(bool(np.isfinite(array).all()), f"{name} has values that are not finite")


def _require(truth: bool, what: str) -> None:
    if not truth:
        raise PayloadError(what)

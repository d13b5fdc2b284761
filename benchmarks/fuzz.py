"""A million mutated messages: does any decoder raise what it must not, or keep more than it got?

    python benchmarks/fuzz.py --inputs 1000000 --seed 1

Real messages of every kind are changed in one to four of the ways in `WAYS`, and each goes to the
decoder of its kind (one in eight to another). Allowed is a `PayloadError`, or a message that keeps
the contract (`holds`, written without the code under test). The memory of a decoder is measured by
tracemalloc on every 50th input; NumPy tells it of its arrays.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import test_secure_payload as secure  # noqa: E402
from test_payload_fuzz import holds  # noqa: E402

import messages as plain  # noqa: E402
from fedkd.codecs import squeezed  # noqa: E402
from fedkd.errors import PayloadError  # noqa: E402

DECODE: dict[str, Callable[[bytes], Any]] = {**plain.DECODE, **secure.DECODE}
SEEDS: dict[str, bytes] = {
    **{kind: plain.forged(kind) for kind in plain.GOOD},
    **{kind: make() for kind, make in secure.GOOD.items()},
}
DTYPES = ("U8", "I8", "I32", "I64", "U64", "F16", "BF16", "F32", "F64", "BOOL", "F8_E4M3", "X")
NUMBERS = (-1, 0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64, 1e400, 0.5, "1", None)


def flip(data: bytes, draws: random.Random) -> bytes:
    """One bit."""
    if not data:
        return data
    changed = bytearray(data)
    changed[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    return bytes(changed)


def cut(data: bytes, draws: random.Random) -> bytes:
    """The end, or a piece from within, is gone."""
    start = draws.randrange(len(data) + 1)
    return data[:start] + (data[start + draws.randint(1, 16) :] if draws.random() < 0.5 else b"")


def splice(data: bytes, draws: random.Random) -> bytes:
    """The beginning of this and the end of another message."""
    other = SEEDS[draws.choice(list(SEEDS))]
    return data[: draws.randrange(len(data) + 1)] + other[draws.randrange(len(other)) :]


def overwrite(data: bytes, draws: random.Random) -> bytes:
    """Four or eight bytes become a number at the edge of some type."""
    edge = draws.choice([0, 1, -1, 2**31 - 1, -(2**31), 0x7F800000, 0x7FC00000])
    word = struct.pack("<q" if draws.random() < 0.5 else "<i", edge)
    start = draws.randrange(len(data) + 1)
    return data[:start] + word + data[start + len(word) :]


def lie(data: bytes, draws: random.Random) -> bytes:
    """The length of the table of arrays is another."""
    length = draws.choice([0, 1, len(data), 2**31, 2**63, 2**64 - 1, draws.randrange(2**16)])
    return struct.pack("<Q", length) + data[8:]


def retype(data: bytes, draws: random.Random) -> bytes:
    """An array has another type, shape or place, as the table says."""
    table, body = _table(data)
    arrays = [one for one in table.values() if isinstance(one, dict) and "shape" in one]
    if not arrays:
        return data
    one = draws.choice(arrays)
    match draws.randrange(4):
        case 0:
            one["dtype"] = draws.choice(DTYPES)
        case 1:
            one["shape"] = [draws.choice(NUMBERS) for _ in range(draws.randrange(6))]
        case 2:
            one["data_offsets"] = [draws.choice(NUMBERS), draws.choice(NUMBERS)]
        case _:
            table[draws.choice(["header", "ids", "__metadata__", "é" * 9])] = one
    return _packed(table, body)


def restate(data: bytes, draws: random.Random) -> bytes:
    """A field of the message's own header says something else."""
    table, body = _table(data)
    try:
        start, end = table["header"]["data_offsets"]
        note = json.loads(body[start:end])
        note[draws.choice(list(note))] = draws.choice(NUMBERS)
        new = json.dumps(note).encode()
        for one in table.values():
            one["data_offsets"] = [
                at + (len(new) - end + start) * (at >= end) for at in one["data_offsets"]
            ]
        table["header"] |= {"shape": [len(new)], "data_offsets": [start, start + len(new)]}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return data
    return _packed(table, body[:start] + new + body[end:])


def frame(data: bytes, draws: random.Random) -> bytes:
    """In a zstd frame, which what comes next may damage."""
    return squeezed(data, 1)


WAYS = (flip, cut, splice, overwrite, lie, retype, restate, frame)


def _table(data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        (length,) = struct.unpack_from("<Q", data)
        found = json.loads(data[8 : 8 + length])
    except (struct.error, ValueError, RecursionError, OverflowError):
        return {}, data
    return (found, data[8 + length :]) if isinstance(found, dict) else ({}, data)


def _packed(table: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + body


def main() -> None:
    """Feed the decoders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draws = random.Random(args.seed)
    kinds = sorted(SEEDS)
    tried: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    wrong: list[str] = []
    most = 0.0
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(args.inputs):
        kind = draws.choice(kinds)
        data = SEEDS[kind]
        for way in draws.choices(WAYS, k=draws.choice((1, 1, 1, 2, 2, 3, 4))):
            data = way(data, draws)
            ways[way.__name__] += 1
        reader = kind if draws.randrange(8) else draws.choice(kinds)
        tried[reader] += 1
        if traced := i % 50 == 0:
            tracemalloc.start()
        try:
            got = DECODE[reader](data)
            if reader in plain.DECODE and not holds(reader, got):
                wrong.append(f"{i}: {reader} took what breaks the contract: {data!r}")
            passed[reader] += 1
        except PayloadError:
            pass
        except BaseException as error:
            wrong.append(f"{i}: {reader} raised {type(error).__name__}: {error}: {data!r}")
            if isinstance(error, KeyboardInterrupt):
                raise
        if traced:
            most = max(most, tracemalloc.get_traced_memory()[1] / 1024)
            tracemalloc.stop()
    print("| decoder | inputs | refused | kept the contract |\n|---|---:|---:|---:|")
    for kind in kinds:
        print(f"| {kind} | {tried[kind]:,} | {tried[kind] - passed[kind]:,} | {passed[kind]:,} |")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{args.inputs:,} inputs in {time.perf_counter() - start:.0f} s; {dict(ways)}")
    longest = max(map(len, SEEDS.values()))
    print(f"most memory of one input: {most:.0f} KiB; the longest message has {longest} bytes")
    print(f"the process grew by {grown:.0f} MiB")
    print(f"{len(wrong)} wrong")
    print("\n".join(wrong[:20]))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()

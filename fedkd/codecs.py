"""Rows of soft labels or logits in fewer bytes each, and messages in fewer bytes altogether.

A codec is a `fedkd.sparse.Coding`. What its rows lose is bounded, entry by entry:

`Half`    float16. Up to 2^-11 of the entry, and 2^-25 for the smallest.
`Eight`   one byte a class. Of a distribution with the largest entry s, s / 510; of logits with the
          largest magnitude s, s / 254, and 4 bytes a row say what s is.
`ArgMax`  the likeliest class alone, the lowest at a tie: everything else.

Of distributions, rows are divided by their sum after decoding (`ArgMax`: it is 1), so the bounds
are those before that. Post-processing of what is released: no privacy mechanism, and no cost.

`squeezed` and `opened` are zstd's frames around a whole message, `mask_of` and `ids_of` a bit for
each proxy sample in place of 4 bytes for each that is answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedkd.errors import PayloadError
from fedkd.sparse import TOLERANCE, Arrays, Coding, Rows, blocks, check_distributions, smallest

MAGIC = zstandard.FRAME_HEADER
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Half:
    """float16; logits beyond its range become its largest number."""

    simplex: bool
    kind: ClassVar[str] = "half"

    def types(self, n_classes: int) -> dict[str, str]:
        """As `Coding.types`."""
        return {"values": "float16"}

    def encode(self, rows: Rows, draws: np.random.Generator) -> dict[str, NDArray[Any]]:
        """As `Coding.encode`; draws nothing."""
        if self.simplex:
            check_distributions(rows)
        return {"values": np.clip(rows, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)}

    def check(self, arrays: Arrays, n_rows: int, n_classes: int) -> None:
        """As `Coding.check`."""
        values = arrays["values"]
        _check_shape(values, n_rows, n_classes)
        for block in blocks(values, n_classes):
            if not np.isfinite(block).all():
                raise PayloadError("values has values that are not finite")
            if self.simplex and len(block):
                off = float(np.abs(block.sum(axis=1, dtype=np.float64) - 1).max())
                if off > TOLERANCE or float(block.min()) < 0:
                    raise PayloadError("a row is not a distribution", value=off)

    def decode(self, arrays: Arrays, n_classes: int) -> Iterator[Rows]:
        """As `Coding.decode`."""
        for block in blocks(arrays["values"], n_classes):
            yield _whole(block) if self.simplex else block.astype(np.float32)


@dataclass(frozen=True)
class Eight:
    """One byte a class: of a distribution relative to its largest entry, of logits signed."""

    simplex: bool
    kind: ClassVar[str] = "eight"

    def types(self, n_classes: int) -> dict[str, str]:
        """As `Coding.types`."""
        return {"levels": "uint8"} if self.simplex else {"levels": "int8", "largest": "float32"}

    def encode(self, rows: Rows, draws: np.random.Generator) -> dict[str, NDArray[Any]]:
        """As `Coding.encode`; draws nothing."""
        if self.simplex:
            check_distributions(rows)
            largest = rows.max(axis=1, keepdims=True, initial=0)
            return {"levels": np.rint(rows / largest * np.float32(255)).astype(np.uint8)}
        largest = np.abs(rows).max(axis=1, initial=0).astype(np.float32)
        shares = rows / np.where(largest > 0, largest, 1)[:, None]
        return {"levels": np.rint(shares * np.float32(127)).astype(np.int8), "largest": largest}

    def check(self, arrays: Arrays, n_rows: int, n_classes: int) -> None:
        """As `Coding.check`: of a distribution, the largest entry is at the top of the scale."""
        levels = arrays["levels"]
        _check_shape(levels, n_rows, n_classes)
        if self.simplex:
            if n_rows and (levels.max(axis=1) != 255).any():
                raise PayloadError("a row's largest level is not 255")
            return
        largest = arrays["largest"]
        if largest.shape != (n_rows,) or not np.isfinite(largest).all() or (largest < 0).any():
            raise PayloadError("largest is not one finite number of at least 0 a row")

    def decode(self, arrays: Arrays, n_classes: int) -> Iterator[Rows]:
        """As `Coding.decode`."""
        start = 0
        for block in blocks(arrays["levels"], n_classes):
            if self.simplex:
                yield _whole(block)
            else:
                scale = arrays["largest"][start : start + len(block), None] / np.float32(127)
                yield np.multiply(block, scale, dtype=np.float32)
            start += len(block)


@dataclass(frozen=True)
class ArgMax:
    """The likeliest class of each row, as a row that is sure of it."""

    kind: ClassVar[str] = "argmax"

    def types(self, n_classes: int) -> dict[str, str]:
        """As `Coding.types`."""
        return {"classes": smallest(n_classes - 1)}

    def encode(self, rows: Rows, draws: np.random.Generator) -> dict[str, NDArray[Any]]:
        """As `Coding.encode`; draws nothing."""
        check_distributions(rows)
        return {"classes": rows.argmax(axis=1).astype(smallest(rows.shape[1] - 1))}

    def check(self, arrays: Arrays, n_rows: int, n_classes: int) -> None:
        """As `Coding.check`."""
        classes = arrays["classes"]
        if classes.shape != (n_rows,):
            raise PayloadError(f"classes are {list(classes.shape)}, not [{n_rows}]")
        if n_rows and int(classes.max()) >= n_classes:
            raise PayloadError("a class is out of range", value=int(classes.max()))

    def decode(self, arrays: Arrays, n_classes: int) -> Iterator[Rows]:
        """As `Coding.decode`."""
        for block in blocks(arrays["classes"], n_classes):
            rows = np.zeros((len(block), n_classes), np.float32)
            rows[np.arange(len(block)), block] = 1
            yield rows


def coding_of(values: str, simplex: bool) -> Coding | None:
    """The codec of a name of `[wire]`; None is float32, as the rows are."""
    match values:
        case "float16":
            return Half(simplex)
        case "int8":
            return Eight(simplex)
        case "argmax":
            return ArgMax()
        case _:
            return None


def mask_of(ids: NDArray[np.int32], n_samples: int) -> NDArray[np.uint8]:
    """A bit for each of `n_samples`: whether it is among the ids; the first is the highest bit."""
    asked = np.zeros(n_samples, np.uint8)
    asked[ids] = 1
    return np.packbits(asked)


def ids_of(mask: NDArray[np.uint8], n_samples: int) -> NDArray[np.int32]:
    """The ids of a mask. Raises: PayloadError for another size, or bits beyond the last sample."""
    if mask.shape != (-(-n_samples // 8),):
        raise PayloadError(f"mask is {list(mask.shape)}, not a bit for each of {n_samples}")
    bits = np.unpackbits(mask)
    if bits[n_samples:].any():
        raise PayloadError("the mask has bits beyond the last sample")
    return np.flatnonzero(bits[:n_samples]).astype(np.int32)


def squeezed(data: bytes, level: int) -> bytes:
    """A message as one zstd frame that says how long it was; as it is at level 0."""
    return zstandard.ZstdCompressor(level=level).compress(data) if level else data


def opened(data: bytes, most: int) -> bytes:
    """A message out of its frame, if it is in one: no message begins as a frame does.

    Args: most: bytes that the message may have. Raises: PayloadError for a longer one, before any
        of it is made, for a frame that does not say its length, and for a broken one.
    """
    if data[: len(MAGIC)] != MAGIC:
        return data
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= most:
            raise PayloadError(
                "a frame of that length is not opened", value=size, allowed=f"0 to {most}"
            )
        return zstandard.ZstdDecompressor().decompress(
            data, max_output_size=most, allow_extra_data=False
        )
    except (zstandard.ZstdError, MemoryError) as error:
        raise PayloadError(f"not a zstd frame: {error}") from None


def _check_shape(values: NDArray[Any], n_rows: int, n_classes: int) -> None:
    if values.shape != (n_rows, n_classes):
        raise PayloadError(f"rows are {list(values.shape)}, not [{n_rows}, {n_classes}]")


def _whole(block: NDArray[Any]) -> Rows:
    rows = block.astype(np.float32)
    rows /= rows.sum(axis=1, keepdims=True)
    return rows

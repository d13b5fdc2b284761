"""Data sets kept in MNIST's format, IDX: MNIST, Fashion-MNIST, EMNIST and their kin."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedkd.data.arrays import assemble
from fedkd.data.dataset import Splits
from fedkd.errors import FedkdError
from fedkd.section import Section

_GZIP_MAGIC = b"\x1f\x8b"


class Idx(Section):
    """A folder of four IDX files, gzipped or not: MNIST, Fashion-MNIST, EMNIST.

    The default is what Debian's package dataset-fashion-mnist installs. Classes are counted up
    from 0 to the greatest label, so EMNIST letters, whose labels start at 1, have an empty
    class 0. EMNIST's images lie transposed in its files, and stay so.
    """

    name: Literal["idx"] = "idx"
    path: str = "/usr/share/datasets/fashion-mnist"

    def load(self) -> Splits:
        """Both sets; `x` uint8 [n, 1, h, w].

        Raises: FedkdError for a missing folder, a file that is missing, ambiguous or damaged,
        and for images and labels that differ in number.
        """
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise FedkdError(
                "no such folder of IDX files",
                value=self.path,
                fix="apt-get install dataset-fashion-mnist, or set data.path",
            )
        train, test = (_pair(folder, words) for words in (("train",), ("t10k", "test")))
        return assemble(train, test)


def _pair(folder: Path, words: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    images = read_idx(_find(folder, words, "images", 3), 3)
    labels = read_idx(_find(folder, words, "labels", 1), 1)
    if len(images) != len(labels):
        raise FedkdError(
            f"{folder}: {words[0]} images and labels differ in number",
            value=f"{len(images)} images, {len(labels)} labels",
        )
    return images[:, None], labels.to(torch.int64)


def _find(folder: Path, words: tuple[str, ...], kind: str, n_axes: int) -> Path:
    patterns = [f"*{word}*{kind}*idx{n_axes}-ubyte{end}" for word in words for end in ("", ".gz")]
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if len(found) != 1:
        raise FedkdError(
            f"{folder}: need exactly one file of {words[0]} {kind}",
            value=[path.name for path in found],
            allowed=" or ".join(patterns),
            fix="keep one data set, packed or unpacked, in the folder",
        )
    return found[0]


def read_idx(path: Path, n_axes: int) -> Tensor:
    """The uint8 tensor of `n_axes` axes in one IDX file, unpacked if it is gzipped.

    Layout: bytes 0, 0, 8 (uint8), n_axes; each axis as a big-endian uint32; then the values.
    Raises: FedkdError for corrupt gzip, another magic number, or too few or too many bytes.
    """
    raw = path.read_bytes()
    if raw.startswith(_GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise FedkdError(
                f"{path}: corrupt gzip ({error})", fix="fetch the file again"
            ) from None
    magic = bytes((0, 0, 8, n_axes))
    if raw[:4] != magic:
        raise FedkdError(f"{path}: bad magic number", value=raw[:4].hex(), allowed=magic.hex())
    header = 4 + 4 * n_axes
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header + math.prod(shape)
    if len(raw) != expected:
        raise FedkdError(
            f"{path}: expected {expected} bytes, found {len(raw)}", fix="fetch the file again"
        )
    values = torch.frombuffer(bytearray(raw), dtype=torch.uint8)  # torch wants writable memory
    return values[header:].reshape(shape)

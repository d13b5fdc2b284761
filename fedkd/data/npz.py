"""Data sets kept as NumPy archives: one file, or one file a client."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedkd.data.arrays import assemble, images, labels
from fedkd.data.dataset import Splits
from fedkd.errors import FedkdError
from fedkd.section import Section

# TypeError: for a .npy file np.load gives a bare array, which is no context manager.
_UNREADABLE = (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)


class Npz(Section):
    """One .npz file of arrays x, y; or a folder with one such file a client.

    A file may also hold x_test and y_test; where none does, `test_fraction` of the samples is
    held out. A single file may name each sample's owner in an array `client`; in a folder, the
    files in the order of their names are the clients.
    """

    name: Literal["npz"] = "npz"
    path: str
    test_fraction: float = Field(default=0.2, gt=0, lt=1)

    def load(self) -> Splits:
        """Both sets; see `fedkd.data.arrays.images` for the layouts of x that are understood.

        Raises: FedkdError for a missing or unreadable file, missing arrays, pickled objects,
        and files whose images differ in shape or dtype.
        """
        path = Path(self.path).expanduser()
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not files:
            raise FedkdError("no .npz file in this folder", value=self.path, fix="set data.path")
        archives = {file: _read(file) for file in files}
        train = [pair(file, arrays, "") for file, arrays in archives.items()]
        test = [
            pair(file, arrays, "_test")
            for file, arrays in archives.items()
            if {"x_test", "y_test"} & arrays.keys()
        ]
        owners = (
            np.repeat(np.arange(len(train)), [len(y) for _, y in train])
            if path.is_dir()
            else archives[path].get("client")
        )
        return assemble(
            _join(files, train),
            _join(files, test) if test else None,
            owners=owners,
            test_fraction=self.test_fraction,
        )


def _read(file: Path) -> dict[str, NDArray[Any]]:
    try:
        # Opened here, since np.load leaves a damaged file open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise FedkdError("no such file or folder", value=str(file), fix="set data.path") from None
    except _UNREADABLE as error:
        raise FedkdError(
            f"{file}: not a readable .npz file ({error})",
            allowed="plain arrays; pickled objects are never loaded",
            fix="write it with numpy.savez(path, x=…, y=…)",
        ) from None


def pair(
    file: Path | str, arrays: Mapping[str, NDArray[Any]], suffix: str
) -> tuple[Tensor, Tensor]:
    """Images and labels, the arrays x and y with a suffix. Raises: FedkdError; `file` is named."""
    missing = {f"x{suffix}", f"y{suffix}"} - arrays.keys()
    if missing:
        raise FedkdError(f"{file}: no array {min(missing)}", value=sorted(arrays))
    x, y = images(arrays[f"x{suffix}"], str(file)), labels(arrays[f"y{suffix}"], str(file))
    if len(x) != len(y):
        raise FedkdError(
            f"{file}: x{suffix} and y{suffix} differ in number", value=f"{len(x)} and {len(y)}"
        )
    return x, y


def _join(files: list[Path], pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    kinds = {(tuple(x.shape[1:]), x.dtype) for x, _ in pairs}
    if len(kinds) > 1:
        raise FedkdError(
            f"{files[0].parent}: the files hold images of different shape or dtype",
            value=sorted(map(str, kinds)),
        )
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])

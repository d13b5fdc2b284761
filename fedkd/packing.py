"""Messages about some of the proxy samples: which they are, and how short they can be made."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkd.codecs import ids_of, mask_of, opened, squeezed
from fedkd.wire import Array, Bytes, pack, unpack


class Packing(NamedTuple):
    """What is done to answers and consensus to make them shorter, without any loss."""

    n_samples: int
    mask: bool
    """Whether a bit for each sample says which are meant, where that is shorter than their ids."""
    zstd: int
    """Its level; 0 is none."""


def packed(
    kind: str,
    ids: NDArray[np.int32],
    arrays: dict[str, Array],
    packing: Packing | None,
    **header: int,
) -> Bytes:
    """A message about some proxy samples, as short as `packing` allows."""
    if packing is None:
        return pack(kind, {"ids": ids, **arrays}, **header)
    which: dict[str, Array] = {"ids": ids}
    if packing.mask and 4 * len(ids) > -(-packing.n_samples // 8):
        which = {"mask": mask_of(ids, packing.n_samples)}
    return squeezed(pack(kind, {**which, **arrays}, **header), packing.zstd)


def unpacked(
    data: Bytes, kind: str, spec: dict[str, str], n_samples: int, n_classes: int
) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """The ids, the other arrays and the header of a message, however it was packed.

    A frame may hold what the largest answer to all samples takes, and no more.
    """
    most = n_samples * (12 * n_classes + 8) + 2**16
    arrays, header = unpack(
        opened(data, most), kind, {"ids": "int32", **spec}, {"mask": "uint8", **spec}
    )
    ids = arrays.pop("ids") if "ids" in arrays else ids_of(arrays.pop("mask"), n_samples)
    return ids, arrays, header

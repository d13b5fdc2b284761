"""From the arrays that people keep to the tensors of a `Dataset`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.dataset import Dataset, Splits, split_test
from fedkd.errors import FedkdError


def images(array: NDArray[Any], where: str) -> Tensor:
    """uint8 or float32 [n, c, h, w] from any usual layout.

    Shapes: `array` [n, d] becomes [n, 1, 1, d]; [n, h, w] becomes [n, 1, h, w]; [n, h, w, c] is
    told from [n, c, h, w] by a last axis of 1 or 3 where the second axis is neither.
    Floats become float32; whole numbers must be pixels, 0 to 255.
    Raises: FedkdError, naming `where`, for any other shape or dtype.
    """
    match array.ndim:
        case 2:
            array = array[:, None, None, :]
        case 3:
            array = array[:, None]
        case 4 if array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        case 4:
            pass
        case _:
            raise FedkdError(
                f"{where}: x has an unknown shape",
                value=array.shape,
                allowed="[n, d], [n, h, w], [n, c, h, w], [n, h, w, c] with c of 1 or 3",
            )
    if array.dtype.kind == "f":
        return _owned(array, np.float32)
    if array.dtype.kind in "iu" and (array.size == 0 or 0 <= array.min() <= array.max() <= 255):
        return _owned(array, np.uint8)
    raise FedkdError(
        f"{where}: x is neither floats nor pixels",
        value=str(array.dtype),
        allowed="float16 to float64, or whole numbers from 0 to 255",
    )


def labels(array: NDArray[Any], where: str) -> Tensor:
    """int64 labels, in the shape given.

    Raises: FedkdError, naming `where`, for anything but whole numbers.
    """
    if array.dtype.kind not in "iu":
        raise FedkdError(
            f"{where}: y must hold whole numbers", value=str(array.dtype), allowed="int or uint"
        )
    return _owned(array, np.int64)


def _owned(array: NDArray[Any], dtype: type[np.generic]) -> Tensor:
    """A tensor of its own memory: torch warns about borrowing read-only arrays."""
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def assemble(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor] | None,
    *,
    owners: NDArray[Any] | None = None,
    n_classes: int | None = None,
    test_fraction: float = 0.2,
) -> Splits:
    """The two sets, out of (x, y) pairs and what is known besides.

    Owners may be of any type that sorts; they become 0, 1, … in sorted order. Without
    `n_classes`, it is the greatest label of both sets plus one. Without `test`,
    `test_fraction` of the training samples is held out (see `split_test`).
    Raises: FedkdError as `Dataset`, `Splits` and `split_test` do.
    """
    if n_classes is None:
        pairs = [train] if test is None else [train, test]
        n_classes = 1 + max((int(y.max()) for _, y in pairs if y.numel()), default=0)
    ids = None if owners is None else np.unique(owners, return_inverse=True)[1].astype(np.int64)
    whole = Dataset(*train, n_classes, ids)
    if test is None:
        return split_test(whole, test_fraction)
    return Splits(whole, Dataset(*test, n_classes))

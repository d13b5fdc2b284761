"""A labelled set of images in memory, checked once, and the one way to draw a part of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.rng import stream


def as_input(x: Tensor) -> Tensor:
    """What a model eats: uint8 pixels become float32 in [0, 1]; float32 passes unchanged."""
    return x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples with their labels.

    Shapes: `x` uint8 or float32 [n, c, h, w]; `y` int64 [n], each in [0, n_classes);
    `client_ids` int64 [n], the natural owner of each sample, or None where there is none.
    Flat features are images of shape [1, 1, d].
    Raises: FedkdError where any of that does not hold, or `x` is empty or not finite.
    """

    x: Tensor
    y: Tensor
    n_classes: int
    client_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.x.dtype not in (torch.uint8, torch.float32):
            raise FedkdError("wrong dtype of x", value=self.x.dtype, allowed="uint8, float32")
        if self.x.ndim != 4 or self.x.numel() == 0:
            raise FedkdError("x must be [n, c, h, w] and not empty", value=tuple(self.x.shape))
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise FedkdError(
                f"y must be int64 with one label for each of {len(self.x)} samples",
                value=f"{self.y.dtype} {tuple(self.y.shape)}",
            )
        if self.client_ids is not None and self.client_ids.shape != (len(self.x),):
            raise FedkdError(
                f"client_ids must name one owner for each of {len(self.x)} samples",
                value=self.client_ids.shape,
            )
        self._check_values()

    def _check_values(self) -> None:
        wrong = torch.nonzero((self.y < 0) | (self.y >= self.n_classes))
        if len(wrong):
            index = int(wrong[0])
            raise FedkdError(
                f"label of sample {index} is out of range",
                value=int(self.y[index]),
                allowed=f"0 to {self.n_classes - 1}",
            )
        if self.x.dtype == torch.float32:
            broken = torch.nonzero(~torch.isfinite(self.x).flatten(1).all(1))
            if len(broken):
                raise FedkdError(
                    f"sample {int(broken[0])} of x holds NaN or infinity", allowed="finite floats"
                )

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(x [k, c, h, w], y [k]) of the samples `ids` int64 [k]; k may be 0."""
        index = torch.from_numpy(ids)
        return self.x[index], self.y[index]

    def subset(self, ids: NDArray[np.int64]) -> Dataset:
        """A copy of the samples `ids` int64 [k], with their owners."""
        owners = None if self.client_ids is None else self.client_ids[ids]
        return Dataset(*self.rows(ids), self.n_classes, owners)


@dataclass(frozen=True, eq=False)
class Splits:
    """A training and a test set of the same kind of images and the same classes.

    Raises: FedkdError where image shape, dtype or the number of classes differ.
    """

    train: Dataset
    test: Dataset

    def __post_init__(self) -> None:
        train, test = (
            (tuple(part.x.shape[1:]), part.x.dtype, part.n_classes)
            for part in (self.train, self.test)
        )
        if train != test:
            raise FedkdError(
                "test samples differ from training samples in shape, dtype or classes",
                value=test,
                allowed=str(train),
            )


def stratified(
    labels: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`count` of the samples, sorted, each class in its share to within one sample.

    Shapes: `labels` int64 [n]; returns int64 [count], for 0 <= count <= n.

    Which samples of a class are drawn is random. The draw is systematic: it walks through the
    samples ordered by class, in steps of n / count.
    """
    order = np.lexsort((rng.random(len(labels)), labels))
    steps = (2 * np.arange(count) + 1) * len(labels) // (2 * max(count, 1))
    return np.sort(order[steps])


def split_test(whole: Dataset, test_fraction: float) -> Splits:
    """Hold a stratified test set out of data that come without one.

    It is drawn from seed 0, whatever the seed of the run: the test set belongs to the data, so
    runs with different seeds are scored on the same samples.
    Raises: FedkdError for a single sample, which cannot be split.
    """
    n = len(whole)
    if n < 2:
        raise FedkdError("a data set without test samples needs at least 2 samples", value=n)
    count = min(max(round(test_fraction * n), 1), n - 1)
    rng = stream(0, "data", purpose="test")
    test = stratified(whole.y.numpy(), count, rng)
    train = np.setdiff1d(np.arange(n), test)
    return Splits(whole.subset(train), whole.subset(test))

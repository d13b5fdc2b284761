"""A labelled set of images or texts in memory, checked once, and how to draw a part of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.rng import stream

NO_LABEL = -100
"""The label of a token position that has no next token; what torch's losses ignore."""


def as_input(x: Tensor) -> Tensor:
    """What a model eats: uint8 pixels as float32 in [0, 1], int16 tokens as int64, else as is."""
    if x.dtype == torch.uint8:
        return x.to(torch.float32).div_(255)
    return x.to(torch.int64) if x.dtype == torch.int16 else x


@dataclass(frozen=True, eq=False)
class Dataset:
    """Records with their labels: images, or texts of L tokens.

    Shapes: images: `x` uint8 or float32 [n, c, h, w]; `y` int64 [n], each in [0, n_classes).
    Flat features are images of shape [1, 1, d].
    Text: `x` int16 [n, 1, 1, L], each in [0, n_classes); `y` int64 [n, L], the next token of each,
    or NO_LABEL; `n_classes` is the size of the vocabulary.
    `client_ids` int64 [n], the natural owner of each record, or None where there is none.
    `topics` int64 [n], each in [0, n_topics): of text only, and every text has them.
    Raises: FedkdError where any of that does not hold, or `x` is empty or not finite.
    """

    x: Tensor
    y: Tensor
    n_classes: int
    client_ids: NDArray[np.int64] | None = None
    topics: NDArray[np.int64] | None = None
    n_topics: int = 0

    def __post_init__(self) -> None:
        if self.x.dtype not in (torch.uint8, torch.float32, torch.int16):
            raise FedkdError(
                "wrong dtype of x", value=self.x.dtype, allowed="uint8, float32, int16"
            )
        if self.x.ndim != 4 or self.x.numel() == 0:
            raise FedkdError("x must be [n, c, h, w] and not empty", value=tuple(self.x.shape))
        if self.is_text and self.x.shape[1:3] != (1, 1):
            raise FedkdError("tokens must be [n, 1, 1, L]", value=tuple(self.x.shape))
        wanted = (len(self.x), self.x.shape[3]) if self.is_text else (len(self.x),)
        if self.y.dtype != torch.int64 or self.y.shape != wanted:
            label = "next token for each token" if self.is_text else "label for each"
            raise FedkdError(
                f"y must be int64 with one {label} of {len(self.x)} samples",
                value=f"{self.y.dtype} {tuple(self.y.shape)}",
            )
        if self.is_text != (self.topics is not None):
            raise FedkdError("text needs topics, and images must have none")
        for name, ids, what in (
            ("client_ids", self.client_ids, "owner"),
            ("topics", self.topics, "topic"),
        ):
            if ids is not None and ids.shape != (len(self.x),):
                raise FedkdError(
                    f"{name} must name one {what} for each of {len(self.x)} samples",
                    value=ids.shape,
                )
        self._check_values()

    def _check_values(self) -> None:
        _in_range("label", self.y, self.n_classes, NO_LABEL if self.is_text else None)
        if self.is_text:
            _in_range("token", self.x, self.n_classes)
        if self.topics is not None:
            _in_range("topic", torch.from_numpy(self.topics), self.n_topics)
        if self.x.dtype == torch.float32:
            broken = torch.nonzero(~torch.isfinite(self.x).flatten(1).all(1))
            if len(broken):
                raise FedkdError(
                    f"sample {int(broken[0])} of x holds NaN or infinity", allowed="finite floats"
                )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def is_text(self) -> bool:
        """Whether the records are texts."""
        return self.x.dtype == torch.int16

    @property
    def strata(self) -> NDArray[np.int64]:
        """What partitions, held-out sets and counts go by, int64 [n]: labels, or topics of text."""
        return self.y.numpy() if self.topics is None else self.topics

    @property
    def n_strata(self) -> int:
        """`strata` lie in [0, n_strata)."""
        return self.n_classes if self.topics is None else self.n_topics

    def rows(self, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(x [k, c, h, w], y [k] or [k, L]) of the records `ids` int64 [k]; k may be 0."""
        index = torch.from_numpy(ids)
        return self.x[index], self.y[index]

    def subset(self, ids: NDArray[np.int64]) -> Dataset:
        """A copy of the records `ids` int64 [k], with their owners and topics."""
        owners = None if self.client_ids is None else self.client_ids[ids]
        topics = None if self.topics is None else self.topics[ids]
        return Dataset(*self.rows(ids), self.n_classes, owners, topics, self.n_topics)


def _in_range(what: str, values: Tensor, below: int, allow: int | None = None) -> None:
    wrong = (values < 0) | (values >= below)
    found = torch.nonzero(wrong if allow is None else wrong & (values != allow))
    if len(found):
        raise FedkdError(
            f"{what} of sample {int(found[0, 0])} is out of range",
            value=int(values[tuple(found[0])]),
            allowed=f"0 to {below - 1}",
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """A training and a test set of the same kind of records, the same classes and strata.

    Raises: FedkdError where the records' shape, dtype, or the number of classes or strata differ.
    """

    train: Dataset
    test: Dataset

    def __post_init__(self) -> None:
        train, test = (
            (tuple(part.x.shape[1:]), part.x.dtype, part.n_classes, part.n_strata)
            for part in (self.train, self.test)
        )
        if train != test:
            raise FedkdError(
                "test samples differ from training samples in shape, dtype, classes or topics",
                value=test,
                allowed=str(train),
            )


def stratified(
    strata: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`count` of the samples, sorted, each stratum in its share to within one sample.

    Shapes: `strata` int64 [n]; returns int64 [count], for 0 <= count <= n.

    Which samples of a stratum are drawn is random. The draw is systematic: it walks through the
    samples ordered by stratum, in steps of n / count.
    """
    order = np.lexsort((rng.random(len(strata)), strata))
    return np.sort(order[_steps(len(strata), count)])


def stratified_runs(
    strata: NDArray[np.int64],
    documents: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """As `stratified`, but what a document gives is one run of neighbouring records.

    Records of one document resemble their neighbours; so no document gives more than two records
    that lie next to one that stays. Each document, too, gives its share to within one record.
    Where its run starts is random.
    Shapes: `strata` int64 [n]; `documents` int64 [n], ascending, each within one stratum.
    """
    starts, sizes = np.unique(documents, return_index=True, return_counts=True)[1:]
    order = np.lexsort((rng.random(len(starts)), strata[starts]))
    ends = np.cumsum(sizes[order])
    hits = np.searchsorted(ends, _steps(len(strata), count), side="right")
    wanted = np.bincount(hits, minlength=len(order))
    first = starts[order] + rng.integers(0, sizes[order] - wanted, endpoint=True)
    runs = [np.arange(at, at + n) for at, n in zip(first, wanted, strict=True)]
    return np.sort(np.concatenate(runs))


def _steps(n: int, count: int) -> NDArray[np.int64]:
    """`count` places in [0, n), as evenly spread as whole numbers can be."""
    return (2 * np.arange(count) + 1) * n // (2 * max(count, 1))


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
    test = stratified(whole.strata, count, rng)
    train = np.setdiff1d(np.arange(n), test)
    return Splits(whole.subset(train), whole.subset(test))

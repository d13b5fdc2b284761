"""Rows of probabilities as few numbers: soft labels over a vocabulary, fit for the wire.

A coding turns rows float32 [m, classes] into a few small arrays, and those back into rows. The
arrays arrive bit for bit; what the rows lose on the way is what each coding says:

`Largest`  the k largest probabilities of a row exactly, the rest of its mass spread evenly over
           all other classes. Biased: a class below the first k is never told apart from another.
`Draws`    n draws from the row, as counts. Each probability is unbiased, with the variance of a
           multinomial share, p (1 - p) / n.

Neither is a privacy mechanism: what they withhold is no guarantee.
Class ids take one byte up to 256 classes, two up to 65,536, and four above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd.errors import FedkdError, PayloadError

Rows = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]

TOLERANCE = 1e-3
"""How far the sum of a distribution may be from one."""
BLOCK = 2**20
"""Numbers of dense rows that are held at a time."""


class Coding(Protocol):
    """One way to send rows of probabilities."""

    kind: ClassVar[str]
    """What a message of such rows is called."""

    def types(self, n_classes: int) -> dict[str, str]:
        """The arrays of a message, and their types."""

    def encode(self, rows: Rows, draws: np.random.Generator) -> dict[str, NDArray[Any]]:
        """The arrays for rows [m, classes]. Raises: FedkdError for a row that is no distribution.

        Same `draws`, same arrays.
        """

    def check(self, arrays: Arrays, n_rows: int, n_classes: int) -> None:
        """Raises: PayloadError if arrays of the right types do not say `n_rows` distributions."""

    def decode(self, arrays: Arrays, n_classes: int) -> Iterator[Rows]:
        """The rows of checked arrays, some [b, classes] of them at a time."""


@dataclass(frozen=True)
class Largest:
    """The k largest classes of each row (all, if there are fewer); at a tie, the lower id.

    Arrays: `classes` [m, k] ascending in each row, `values` float32 [m, k].
    Not renormalised, as the mass of the tail is then known: it is 1 less the sum of the values.
    """

    k: int
    kind: ClassVar[str] = "top-k-answer"

    def types(self, n_classes: int) -> dict[str, str]:
        """As `Coding.types`."""
        return {"classes": smallest(n_classes - 1), "values": "float32"}

    def encode(self, rows: Rows, draws: np.random.Generator) -> dict[str, NDArray[Any]]:
        """As `Coding.encode`; draws nothing."""
        check_distributions(rows)
        n_classes = rows.shape[1]
        k = min(self.k, n_classes)
        parts = []
        for block in blocks(rows, n_classes):
            least = np.partition(block, n_classes - k, axis=1)[:, n_classes - k, None]
            above, equal = block > least, block == least
            room = k - above.sum(axis=1, keepdims=True)
            kept = above | (equal & (np.cumsum(equal, axis=1) <= room))
            parts.append(kept.nonzero()[1].reshape(-1, k))
        classes = np.concatenate(parts)
        values = np.take_along_axis(rows, classes, axis=1)
        return {"classes": classes.astype(smallest(n_classes - 1)), "values": values}

    def check(self, arrays: Arrays, n_rows: int, n_classes: int) -> None:
        """As `Coding.check`."""
        classes, values = arrays["classes"], arrays["values"]
        shape = (n_rows, min(self.k, n_classes))
        if not classes.shape == values.shape == shape:
            raise PayloadError(
                "wrong shape of classes or values",
                value=(classes.shape, values.shape),
                allowed=f"{shape}",
            )
        if n_rows == 0:
            return
        if int(classes.max()) >= n_classes:
            raise PayloadError("a class is out of range", value=int(classes.max()))
        if (np.diff(classes.astype(np.int64), axis=1) <= 0).any():
            raise PayloadError("classes are repeated or not ascending")
        if not np.isfinite(values).all():
            raise PayloadError("values has values that are not finite")
        mass = values.sum(axis=1, dtype=np.float64)
        least = 0.0 if shape[1] < n_classes else 1.0  # without a tail, the values are all there is
        if values.min() < 0 or mass.max() > 1 + TOLERANCE or mass.min() < least - TOLERANCE:
            raise PayloadError(
                "a row is not a distribution",
                value=(float(values.min()), float(mass.min()), float(mass.max())),
            )

    def decode(self, arrays: Arrays, n_classes: int) -> Iterator[Rows]:
        """As `Coding.decode`."""
        classes, values = arrays["classes"], arrays["values"]
        n_others = max(n_classes - values.shape[1], 1)
        for some, kept in zip(blocks(classes, n_classes), blocks(values, n_classes), strict=True):
            tail = np.maximum(1 - kept.sum(axis=1, dtype=np.float64), 0) / n_others
            rows = np.repeat(tail.astype(np.float32)[:, None], n_classes, axis=1)
            np.put_along_axis(rows, some, kept, axis=1)
            yield rows


@dataclass(frozen=True)
class Draws:
    """n draws with replacement from each row; the share of a class estimates its probability.

    Arrays: `classes` [e], the classes drawn at all, row after row and ascending in each, and
    `counts` [e], how often each was; the counts of a row add up to n, which tells rows apart.
    Every decoded row sums to one. A row counts as divided by its own sum.
    Source: random sampling distillation, Anshumann et al., ACL 2025, arXiv 2503.16870, from its
    abstract. Ours, since its formulas were not available: the proposal is the row itself, so that
    importance weights are all one and a count says everything.
    """

    n: int
    kind: ClassVar[str] = "sampled-answer"

    def types(self, n_classes: int) -> dict[str, str]:
        """As `Coding.types`."""
        return {"classes": smallest(n_classes - 1), "counts": smallest(self.n)}

    def encode(self, rows: Rows, draws: np.random.Generator) -> dict[str, NDArray[Any]]:
        """As `Coding.encode`; takes n uniform draws a row, in the rows' order."""
        check_distributions(rows)
        n_classes = rows.shape[1]
        classes, counts = [], []
        for block in blocks(rows, max(n_classes, self.n)):
            ends = np.cumsum(block, axis=1, dtype=np.float64)
            # A product with a number below one is below the last end, so it lies in some class;
            # `right` leaves classes without mass out.
            points = draws.random((len(block), self.n)) * ends[:, -1:]
            drawn = torch.searchsorted(
                torch.from_numpy(ends), torch.from_numpy(points), right=True
            ).numpy()
            places = drawn + n_classes * np.arange(len(block))[:, None]
            found, times = np.unique(places, return_counts=True)
            classes.append(found % n_classes)
            counts.append(times)
        return {
            "classes": np.concatenate(classes).astype(smallest(n_classes - 1)),
            "counts": np.concatenate(counts).astype(smallest(self.n)),
        }

    def check(self, arrays: Arrays, n_rows: int, n_classes: int) -> None:
        """As `Coding.check`."""
        classes, counts = arrays["classes"], arrays["counts"]
        if classes.ndim != 1 or classes.shape != counts.shape:
            raise PayloadError(
                "classes and counts are not both [e]", value=(classes.shape, counts.shape)
            )
        if (counts == 0).any():
            raise PayloadError("a count is zero")
        ends = np.cumsum(counts, dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        if total != n_rows * self.n:
            raise PayloadError(
                f"the counts of {n_rows} rows do not add up",
                value=total,
                allowed=str(n_rows * self.n),
            )
        if total == 0:
            return
        rows = (ends - 1) // self.n
        if ((ends - counts) // self.n != rows).any():
            raise PayloadError(f"the counts of a row do not add up to {self.n}")
        if int(classes.max()) >= n_classes:
            raise PayloadError("a class is out of range", value=int(classes.max()))
        if (np.diff(rows * n_classes + classes) <= 0).any():
            raise PayloadError("classes are repeated or not ascending")

    def decode(self, arrays: Arrays, n_classes: int) -> Iterator[Rows]:
        """As `Coding.decode`."""
        classes, counts = arrays["classes"], arrays["counts"]
        rows_of = (np.cumsum(counts, dtype=np.int64) - 1) // self.n
        shares = (counts / self.n).astype(np.float32)
        n_rows = int(rows_of[-1]) + 1 if len(rows_of) else 0
        for some in blocks(np.arange(n_rows), n_classes):
            rows = np.zeros((len(some), n_classes), np.float32)
            if len(some):
                entries = slice(*np.searchsorted(rows_of, [some[0], some[-1] + 1]))
                rows[rows_of[entries] - some[0], classes[entries]] = shares[entries]
            yield rows


def smallest(largest: int) -> str:
    """The smallest unsigned type for whole numbers up to `largest`."""
    return str(np.min_scalar_type(largest))


def blocks(array: NDArray[Any], width: int) -> Iterator[NDArray[Any]]:
    """The array by runs of rows that are `BLOCK` numbers if `width` wide; at least one run."""
    step = max(1, BLOCK // width)
    for start in range(0, max(len(array), 1), step):
        yield array[start : start + step]


def check_distributions(rows: Rows) -> None:
    """Raises: FedkdError unless each of rows [m, classes] is a distribution."""
    for block in blocks(rows, rows.shape[1]):
        mass = block.sum(axis=1, dtype=np.float64)
        # Written so that NaN fails.
        if not ((block >= 0).all() and (np.abs(mass - 1) <= TOLERANCE).all()):
            raise FedkdError(
                "an answer is not a distribution over the classes",
                value=(float(block.min()), float(mass.min()), float(mass.max())),
                allowed="values of at least 0 that sum to 1",
                fix="a model that has diverged answers with NaN: lower the learning rate",
            )

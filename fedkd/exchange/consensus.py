"""What stage 4 gives, and what its rules share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Consensus(NamedTuple):
    """What the clients say together about the samples that at least one of them answered."""

    ids: NDArray[np.int32]  # [kept], ascending proxy ids
    values: NDArray[np.float32]  # [kept, classes]


def normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row over its sum."""
    whole: NDArray[np.float64] = rows / rows.sum(axis=1, keepdims=True)
    return whole


def places(ids: NDArray[np.int32]) -> slice | NDArray[np.int32]:
    """What to index by: ascending ids as they are, or as a slice where they are one run."""
    # Most answers are to one run of samples, and a slice costs a fifth of what an index does.
    run = len(ids) > 0 and ids[-1] - ids[0] + 1 == len(ids)
    return slice(ids[0], ids[-1] + 1) if run else ids

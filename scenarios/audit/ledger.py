"""What the ledgers of a cell allow any attack: the ceilings that stand beside findings.

For a record or a canary that its client holds once. What the observer `owner` sees, the model,
never left, so only a proof of the training itself (DP-SGD) covers it; all others see what left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privacy.asked import CLIENT, RECORD
from privacy.audit.ceiling import best_tpr_of
from privacy.events import Protects
from privacy.ledger import Release
from privacy.totals import Total, total, worst
from scenarios.audit.evidence import Cell


def entries(cell: Cell, observer: str) -> dict[int, tuple[Release, ...]]:
    """The entries of each client that cover what an observer sees; none without a proof of it."""
    if observer != "owner":
        return {i: found for i, found in cell.ledgers.items() if found}
    trained = {
        i: tuple(entry for entry in found if entry.what == "training")
        for i, found in cell.ledgers.items()
    }
    if not all(found and all(entry.events for entry in found) for found in trained.values()):
        return {}
    return trained


def accounted(cell: Cell, observer: str, protects: Protects = RECORD) -> Total | None:
    """The total of the client that spent most; None where it promises nothing."""
    found = entries(cell, observer)
    if not found:
        return None
    delta = cell.scenario.privacy.delta
    _, most = worst({i: _total(_of_anyone(own), protects, delta) for i, own in found.items()})
    return None if math.isinf(most.epsilon) else most


def ceilings(cell: Cell, observer: str, what: str, fprs: Sequence[float]) -> list[float | None]:
    """The best TPR at each FPR for records or canaries; None where the ledger promises nothing.

    A whole client's guarantee covers a record of it too, so the lower of the two is taken.
    """
    nothing: list[float | None] = [None] * len(fprs)
    repeated = max((canary.repetitions for canary in cell.world.canaries), default=0) > 1
    if what != "records" and repeated:
        return nothing
    found = entries(cell, observer)
    if not found:
        return nothing
    by_unit = []
    for protects in (RECORD, CLIENT):
        if accounted(cell, observer, protects) is not None:
            tables = [_best(_of_anyone(own), protects, tuple(fprs)) for own in found.values()]
            by_unit.append(np.max(tables, axis=0))
    return np.min(by_unit, axis=0).tolist() if by_unit else nothing


def _of_anyone(own: tuple[Release, ...]) -> tuple[Release, ...]:
    """Entries without the client's name: what many have spent alike is added up once."""
    return tuple(entry.model_copy(update={"client": 0}) for entry in own)


@lru_cache(maxsize=256)
def _total(own: tuple[Release, ...], protects: Protects, delta: float) -> Total:
    return total(own, protects, delta)


@lru_cache(maxsize=256)
def _best(
    own: tuple[Release, ...], protects: Protects, fprs: tuple[float, ...]
) -> NDArray[np.float64]:
    return best_tpr_of(own, protects, fprs)

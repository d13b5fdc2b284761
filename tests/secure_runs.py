"""What the tests of secure aggregation share: a scenario with it, and the same without."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedkd.config import Scenario
from fedkd.exchange.consensus import Consensus
from privacy.events import Protects
from small_runs import small

N, CLIENTS = 40, 4
PUBLIC = {"name": "public", "size": N}
SECURE = {"name": "secure-aggregation"}
DEALT = {"name": "dirichlet", "clients": CLIENTS, "alpha": 0.5}
CLIENT = Protects("client", "replace")
RECORD = Protects("record", "add-remove")


def pair(**changes: Any) -> tuple[Scenario, Scenario]:
    """A scenario with secure aggregation and the same without; four clients, a public pool."""
    changes = {"partition": DEALT, "proxy": PUBLIC, **changes}
    privacy = changes.pop("privacy", {})
    return small(**changes, privacy={**privacy, "server": SECURE}), small(
        **changes, privacy=privacy
    )


def same(one: Consensus | None, other: Consensus | None) -> bool:
    """Whether two consensuses have the same bits."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one.ids, other.ids) and one.values.tobytes() == other.values.tobytes()


def noisy(sigma: float, **changes: Any) -> Scenario:
    privacy = {**changes.pop("privacy", {}), "server": {**SECURE, "sigma": sigma}}
    return small(partition=DEALT, proxy=PUBLIC, privacy=privacy, **changes)

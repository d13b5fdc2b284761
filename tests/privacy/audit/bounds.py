"""What the tests of lower bounds share: a claim, how many runs, a ledger of Gaussian noise."""

from __future__ import annotations

from scipy import stats

from privacy.audit.epsilon import Claim
from privacy.events import Gaussian, Protects
from privacy.ledger import Release
from privacy.totals import Total, total

RECORD = Protects("record", "add-remove")
DELTA = 1e-5
CLAIM = Claim(protects=RECORD, delta=DELTA)
PURE = Claim(protects=RECORD, delta=0.0)
RUNS = 200
MOST_WRONG = int(stats.binom.ppf(0.999, RUNS, 0.05))
"""Wrong bounds that RUNS bounds at 95 % have at most, but for one time in a thousand."""


def ledger(multiplier: float, delta: float = DELTA) -> Total:
    event = Gaussian(unit="record", relation="add-remove", noise_multiplier=multiplier)
    release = Release(
        client=1,
        round=1,
        what="soft labels",
        rows=3,
        seen_by="server",
        guarantee="proved",
        events=(event,),
    )
    return total([release], RECORD, delta)

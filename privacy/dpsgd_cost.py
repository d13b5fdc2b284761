"""What DP-SGD costs, and how much noise keeps a whole run within an epsilon.

One accounting for the whole run: the noise is calibrated once, for every step that a client may
take in all its rounds, and the ledger composes the rounds' events. (An epsilon a round, printed
as if it were the run's, is the usual mistake.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

from dp_accounting import (
    DpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    PrivacyAccountant,
    SelfComposedDpEvent,
    calibrate_dp_mechanism,
)
from dp_accounting.pld import PLDAccountant
from scipy.stats import binom

from fedkd.config_sections import Phase
from fedkd.errors import FedkdError
from fedkd.protection import DpSgd
from privacy.accounting import quiet

LOST_ROUNDS = 0.05
"""The share of clients that may be drawn for more rounds than their noise is calibrated for."""
TOLERANCE = 1e-3
"""How much more than the least noise a calibration may find."""


class Schedule(NamedTuple):
    """The steps of one round, and the probability with which each takes a record."""

    rate: float
    steps: int


def schedule(n_records: int, phase: Phase) -> Schedule:
    """As many steps as `fedkd.training.batches`; an epoch sees each record once in expectation.

    Source: the rate is 1 / steps an epoch, as in Opacus' loader, so the expected batch is
    at most `batch_size`.

    >>> schedule(1000, Phase(batch_size=100, epochs=2))
    Schedule(rate=0.1, steps=20)
    """
    per_epoch = max(1, math.ceil(n_records / phase.batch_size))
    return Schedule(1 / per_epoch, max(1, round(phase.epochs * per_epoch)))


def round_event(plan: Schedule, noise_multiplier: float) -> DpEvent:
    """The privacy event of one round of `dpsgd.fit` with `error_clip` 0.

    Unit: a record; neighbours: one record added or removed. Compose one event for each round
    trained. It says nothing proved of error feedback (`error_feedback_event`).
    """
    step = PoissonSampledDpEvent(plan.rate, GaussianDpEvent(noise_multiplier))
    return SelfComposedDpEvent(step, plan.steps)


def error_feedback_event(n_records: int, plan: Schedule, settings: DpSgd) -> DpEvent:
    """A bound on one round with `error_clip` above 0 that needs no theorem but composition.

    DiceSGD's own analysis gives less: its released code accounts as `round_event` does, and its
    theorem's constants were not verified, so that figure is a claim of its authors and not of
    this project. Here the draws of records are held fixed (they do not depend on the data, and a
    mixture over them costs no more than the worst of them). Then a step's sum differs between
    neighbours by at most C in its clipped gradients, and by at most 2 * C2 * expected batch
    in the fed-back error, which depends on all that was ever drawn; so no step gains from sampling.
    """
    expected = plan.rate * n_records
    difference = settings.clip + 2 * settings.error_clip * expected
    return SelfComposedDpEvent(GaussianDpEvent(settings.noise_std / difference), plan.steps)


def paid_rounds(rounds: int, participation: float) -> int:
    """How many rounds of training to pay for, of a run of `rounds` with clients drawn at random.

    All with full participation, else as many as a client exceeds with probability LOST_ROUNDS at
    most. A client that is drawn more often must sit out the rest: the ledger's budget sees to it.
    The draw saves nothing else: the server makes it, so the server knows it.

    >>> paid_rounds(100, 1.0), paid_rounds(100, 0.1)
    (100, 15)
    """
    return max(1, int(binom.ppf(1 - LOST_ROUNDS, rounds, participation)))


def coarse_losses() -> PrivacyAccountant:
    """Privacy loss distributions on a grid of 1e-3: ten times as fast as on the usual one, and the
    epsilon, an upper bound on any grid, is about 0.001 above.
    """
    return PLDAccountant(value_discretization_interval=1e-3)


def noise_multiplier(
    n_records: int,
    phase: Phase,
    *,
    rounds: int,
    participation: float,
    epsilon: float,
    delta: float,
    accountant: Callable[[], PrivacyAccountant] = coarse_losses,
) -> float:
    """The least noise, in units of `clip`, with which the whole run stays within epsilon at delta.

    The run: `paid_rounds(rounds, participation)` rounds of `phase`. `accountant` makes a fresh
    one: pass the one that will be asked later, since RDP finds about a tenth more epsilon in the
    same noise than privacy loss distributions. With error feedback it is what the released code
    would use, and proves nothing.
    Guarantee: (epsilon, delta)-DP for each record, one added or removed.
    Raises: FedkdError where epsilon or delta is no budget.
    """
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise FedkdError(
            "a privacy budget is no budget",
            value=f"epsilon {epsilon}, delta {delta}",
            allowed="a finite epsilon above 0, and a delta between 0 and 1",
        )
    rate, steps = schedule(n_records, phase)
    run = Schedule(rate, steps * paid_rounds(rounds, participation))
    return _calibrated(run, epsilon, delta, accountant)


@lru_cache(maxsize=1024)
def _calibrated(
    run: Schedule, epsilon: float, delta: float, accountant: Callable[[], PrivacyAccountant]
) -> float:
    """Kept, since many clients ask the same in every round and an answer takes seconds."""
    with quiet():
        enough = calibrate_dp_mechanism(
            accountant, partial(round_event, run), epsilon, delta, tol=TOLERANCE
        )
    return float(enough)

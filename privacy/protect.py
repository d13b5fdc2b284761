"""From a scenario's settings (`fedkd.protection`) to what a client releases, and what it may claim.

`answers` does what the rows of `privacy.release` say. The `claim_of_…` functions say what each part
costs before anything is computed, so that a budget can be asked first, and a whole run forecast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from dp_accounting import NonPrivateDpEvent
from dp_accounting.rdp import RdpAccountant
from torch import Tensor

from fedkd import protection
from fedkd.config import Phase, Scenario, Training
from fedkd.errors import FedkdError
from fedkd.exchange.gate import needs_scores
from fedkd.protection import Privacy
from privacy import mechanisms, nfdp, private_filter, swing
from privacy.accounting import from_dp_event
from privacy.degrees import Origin
from privacy.dpsgd_cost import (
    error_feedback_event,
    noise_multiplier,
    paid_rounds,
    round_event,
    schedule,
)
from privacy.events import Event, Protects
from privacy.ledger import Sensitivity, What
from privacy.mechanisms import Cost
from privacy.sensitivity import Neighbours, SoftLabels
from privacy.totals import Budget

CLIENT = Protects("client", "replace")
RECORD = Protects("record", "add-remove")
OF: dict[Neighbours, Protects] = {
    "replace one client": CLIENT,
    "add or remove one client": Protects("client", "add-remove"),
}


class Claim(NamedTuple):
    """What a ledger entry says about the guarantee of one release; see `privacy.ledger.Release`."""

    guarantee: Literal["proved", "empirical", "none"]
    reason: str
    events: tuple[Event, ...] = ()
    derived_from: tuple[What, ...] = ()
    sensitivity: Sensitivity | None = None


NOTHING = Claim("none", "no mechanism")


def budget_of(privacy: Privacy) -> Budget | None:
    """The scenario's budget; None if a client may spend without end."""
    if privacy.budget is None:
        return None
    protects = {"record": RECORD, "client": CLIENT}[privacy.unit]
    return Budget(**protects._asdict(), epsilon=privacy.budget, delta=privacy.delta)


def claim_of_mask(scenario: Scenario) -> Claim | None:
    """What the accept mask costs; None where it tells nothing of the client's private records."""
    if not needs_scores(scenario.method.gate):
        return None
    row = scenario.privacy.filter
    if isinstance(row, protection.PlainFilter):
        return Claim("none", "the filter is fitted on raw data")
    return Claim("proved", f"{row.name} filter", private_filter.cost(row, scenario.privacy.delta))


def dp_sgd_of(
    row: protection.DpSgd, n_records: int, training: Training, delta: float
) -> protection.DpSgd:
    """The row with its noise: calibrated once for the whole run, where it names an epsilon."""
    if row.epsilon is None:
        return row
    noise = noise_multiplier(
        n_records,
        training.local,
        rounds=training.rounds,
        participation=training.participation,
        epsilon=row.epsilon,
        delta=delta,
        accountant=RdpAccountant,  # the ledger shows the larger of PLD and RDP, and that is RDP
    )
    return row.model_copy(update={"noise_multiplier": noise})


def claim_of_training(row: protection.TrainingRow, n_records: int, phase: Phase) -> Claim:
    """What one round of local training costs a record, whatever is asked of the model after it."""
    match row:
        case protection.DpSgd() if row.noise_multiplier > 0:
            plan = schedule(n_records, phase)
            if row.error_clip:
                cost = error_feedback_event(n_records, plan, row)
                why = "DP-SGD with error feedback, by composition alone"
            else:
                cost, why = round_event(plan, row.noise_multiplier), "DP-SGD"
            moved = Sensitivity(norm="l2", bound=row.clip)
            return Claim("proved", why, from_dp_event(cost, RECORD), sensitivity=moved)
        case protection.Nfdp():
            kept = max(1, round(row.fraction * n_records))
            pair = nfdp.claimed(n_records, kept)
            why = f"NFDP: ({pair.epsilon:.3g}, {pair.delta:.3g}) is no meaningful guarantee"
            return Claim("empirical", why)
        case _:
            return NOTHING


@dataclass(frozen=True, kw_only=True)
class Occasion:
    """What a release depends on besides the logits; nothing of it is private but the degrees."""

    temperature: float
    """The method's, of answers and students."""
    most_rows: int
    """Soft labels that a client may release in the whole run: the noise is calibrated to them."""
    delta: float
    degrees: Tensor | None = None
    """For Swing: [m], of the positions answered."""
    origin: Origin = "public"
    """Who can compute the degrees."""


def most_rows(scenario: Scenario, n_samples: int) -> int:
    """Soft labels of one client in a whole run, at the most that its noise is calibrated for."""
    training = scenario.training
    return n_samples * paid_rounds(training.rounds, training.participation)


def answers(
    privacy: Privacy, logits: Tensor, occasion: Occasion, generator: torch.Generator
) -> Tensor:
    """What leaves for logits [m, classes]: float32 [m, classes]. `claim_of_release` says its cost.

    Not for the row `plain`, whose answers are those of the method's own release stage.
    Raises: FedkdError for logits that are not finite.
    """
    n_classes = logits.shape[1]
    match privacy.release:
        case protection.TopOne():
            return mechanisms.TopOne().release(logits, generator)
        case protection.GaussianRelease() | protection.LaplaceRelease() as row:
            return _calibrated(row, occasion, n_classes).release(logits, generator)
        case protection.SampledLabel(bound=bound):
            labels = SoftLabels(bound, occasion.temperature)
            return mechanisms.HardLabels(labels).release(logits, generator)
        case protection.RandomisedResponse(epsilon=epsilon):
            response = mechanisms.RandomisedResponse(epsilon, n_classes)
            return response.release(logits, generator)
        case protection.Swing() as row:
            swung = swing_of(row, occasion.origin)
            return swung.release(logits, _degrees(row, occasion), generator).values
        case other:
            raise FedkdError("no mechanism of this name releases answers", value=other.name)


def claim_of_answers(privacy: Privacy, occasion: Occasion, rows: int, n_classes: int) -> Claim:
    """What one release of `rows` answers costs a client whose model has no guarantee of its own.

    Of a Swing with public degrees, `occasion` holds those of just these rows.
    """
    match privacy.release:
        case protection.TopOne():
            return Claim("empirical", "top-1")
        case protection.GaussianRelease() | protection.LaplaceRelease() as row:
            return _claim(_calibrated(row, occasion, n_classes).cost(rows, n_classes), row.name)
        case protection.SampledLabel(bound=bound):
            drawn = mechanisms.HardLabels(SoftLabels(bound, occasion.temperature))
            return _claim(drawn.cost(rows, n_classes), "sampled label")
        case protection.RandomisedResponse(epsilon=epsilon):
            response = mechanisms.RandomisedResponse(epsilon, n_classes)
            return _claim(response.cost(rows), "randomised response")
        case protection.Swing(noise="none") as row:
            return Claim("empirical", f"swing by {row.degree}, without noise")
        case protection.Swing() as row:
            swung = swing_of(row, occasion.origin)
            cost = swung.cost(_degrees(row, occasion), n_classes)
            return _claim(cost, f"swing by {row.degree}")
        case _:
            return NOTHING


def claim_of_model(row: protection.TrainingRow) -> Claim:
    """What may be claimed of anything that is computed from the client's model alone."""
    match row:
        case protection.DpSgd():
            return Claim("proved", "of a model trained with DP-SGD", derived_from=("training",))
        case protection.Nfdp():
            return Claim("empirical", "of a model trained on a part of the records (NFDP)")
        case _:
            return NOTHING


def claim_of_release(privacy: Privacy, occasion: Occasion, rows: int, n_classes: int) -> Claim:
    """What may be claimed of answers, by how the model was trained and how they are released."""
    model = claim_of_model(privacy.training)
    if isinstance(privacy.release, protection.PlainRelease):
        return model
    claim = claim_of_answers(privacy, occasion, rows, n_classes)
    if model.guarantee != "proved":
        return claim
    if claim.guarantee != "proved":
        return model._replace(reason=f"{claim.reason}, {model.reason}")
    return claim._replace(derived_from=model.derived_from)


def _degrees(row: protection.Swing, occasion: Occasion) -> Tensor:
    if occasion.degrees is None:
        raise FedkdError("swing needs a degree for each position", value=row.degree)
    return occasion.degrees


def swing_of(row: protection.Swing, origin: Origin) -> swing.Swing:
    """The Swing that a scenario asks for."""
    noises: dict[str, Callable[[float], mechanisms.Noise]] = {
        "gaussian": mechanisms.Gaussian,
        "laplace": mechanisms.Laplace,
    }
    return swing.Swing(
        degrees=origin,
        noise=noises[row.noise](row.scale) if row.noise in noises else None,
        bound=row.bound,
        t_min=row.t_min,
        t_max=row.t_max,
        sharpness=row.sharpness,
    )


def _calibrated(
    row: protection.GaussianRelease | protection.LaplaceRelease,
    occasion: Occasion,
    n_classes: int,
) -> mechanisms.Noised:
    """The noise that keeps all answers of the run within the row's epsilon."""
    labels = SoftLabels(row.bound, occasion.temperature)
    noise: mechanisms.Noise
    if isinstance(row, protection.GaussianRelease):
        one = labels.sensitivity(2, "replace one client", n_classes)
        whole = one * occasion.most_rows**0.5
        noise = mechanisms.Gaussian.calibrated(row.epsilon, occasion.delta, whole)
    else:
        one = labels.sensitivity(1, "replace one client", n_classes)
        noise = mechanisms.Laplace.calibrated(row.epsilon, one * occasion.most_rows)
    return mechanisms.Noised(labels, noise)


def _claim(cost: Cost, reason: str) -> Claim:
    if isinstance(cost.event, NonPrivateDpEvent):
        return Claim("empirical", reason)
    events = from_dp_event(cost.event, OF[cost.neighbours])
    if not events:
        return Claim("none", f"{reason}, of no sample")
    return Claim("proved", reason, events)

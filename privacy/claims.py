"""What may be claimed of each thing that leaves a client, and what it costs, by the settings.

Known before anything is computed, so that a budget can be asked first, and a whole run forecast.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from dp_accounting import NonPrivateDpEvent

from fedkd import protection
from fedkd.config import Scenario
from fedkd.config_sections import Phase
from fedkd.exchange.gate import Soft, needs_scores
from fedkd.protection import Privacy
from privacy import mechanisms, nfdp, private_filter, secagg
from privacy.asked import (
    CLIENT,
    RECORD,
    Occasion,
    degrees_of,
    noised_of,
    sum_noise,
    swing_of,
)
from privacy.dp_events import from_dp_event
from privacy.dpsgd_cost import error_feedback_event, round_event, schedule
from privacy.events import Event, Protects
from privacy.gnmax import ConfidentGNMax
from privacy.ledger import Sensitivity, What
from privacy.mechanisms import Cost
from privacy.sensitivity import Neighbours, SoftLabels

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
NO_ROWS = Claim("none", "no sample was answered")


def claim_of_mask(scenario: Scenario) -> Claim | None:
    """What the accept mask costs; None where it tells nothing of the client's private records."""
    if not needs_scores(scenario.method.gate):
        return None
    row = scenario.privacy.filter
    if isinstance(row, protection.PlainFilter):
        return Claim("none", "the filter is fitted on raw data")
    return Claim("proved", f"{row.name} filter", private_filter.cost(row, scenario.privacy.delta))


def what_mask_is(scenario: Scenario) -> What:
    """The ledger's name for what a gate says of the proxy samples."""
    return "sample weights" if isinstance(scenario.method.gate, Soft) else "accept mask"


def claim_of_training(row: protection.TrainingRow, n_records: int, phase: Phase) -> Claim:
    """What one round of local training costs a record, whatever is asked of the model after it.

    Args: row: with its noise, as `dp_sgd_of` gives it.
    Guarantee: proved for DP-SGD with noise, and for it alone: one record added or removed.
    """
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


def claim_of_rows(privacy: Privacy, occasion: Occasion, rows: int, n_classes: int) -> Claim:
    """What one release of `rows` answers costs by itself, whatever the model is.

    Of a Swing with public degrees, `occasion` holds those of just these rows.
    """
    match privacy.release:
        case protection.TopOne():
            return Claim("empirical", "top-1")
        case protection.GaussianRelease() | protection.LaplaceRelease() as row:
            return _claim(noised_of(row, occasion, n_classes).cost(rows, n_classes), row.name)
        case protection.SampledLabel(bound=bound):
            drawn = mechanisms.HardLabels(SoftLabels(bound, occasion.temperature))
            return _claim(drawn.cost(rows, n_classes), "sampled label")
        case protection.RandomisedResponse(epsilon=epsilon):
            response = mechanisms.RandomisedResponse(epsilon, n_classes)
            return _claim(response.cost(rows), "randomised response")
        case protection.Swing() as row:
            cost = swing_of(row, occasion.origin).cost(degrees_of(row, occasion), n_classes)
            return _claim(cost, f"swing by {row.degree}, a {occasion.origin} degree")
        case _:
            return NOTHING


def claim_of_model(row: protection.TrainingRow) -> Claim:
    """What may be claimed of anything that is computed from the client's model alone."""
    match row:
        case protection.DpSgd(noisy=True):
            return Claim("proved", "of a model trained with DP-SGD", derived_from=("training",))
        case protection.Nfdp():
            return Claim("empirical", "of a model trained on a part of the records (NFDP)")
        case _:
            return NOTHING


OF_LABELS = Claim("none", "means over the private records of a label")
"""Of what FD sends: it depends on the records themselves, and says which labels there are."""


def claim_of_summary(row: protection.SummaryRelease, delta: float) -> Claim:
    """What the summary costs a record, once and for all answers: one added or removed."""
    event = private_filter.summary_event(row.made_as, delta)
    return Claim("proved", f"{row.by} summary", (event,))


def claim_of_release(privacy: Privacy, occasion: Occasion, rows: int, n_classes: int) -> Claim:
    """What may be claimed of answers, by how the model was trained and how they are released.

    The release's own claim, for the client; and the model's, for a record, where nothing but the
    model and what is public goes into the release. Temperatures by density read the records.
    """
    if isinstance(privacy.release, protection.SummaryRelease):
        return Claim("proved", "of a private summary", derived_from=("summary",))
    model = claim_of_model(privacy.training)
    if isinstance(privacy.release, protection.PlainRelease):
        return model
    claim = claim_of_rows(privacy, occasion, rows, n_classes)
    reads = isinstance(privacy.release, protection.Swing) and privacy.release.reads_records
    if model.guarantee != "proved" or reads:
        return claim
    if claim.guarantee != "proved":
        return model._replace(reason=f"{claim.reason}, {model.reason}")
    return claim._replace(derived_from=model.derived_from)


def claim_of_sum(scenario: Scenario, claim: Claim, n_samples: int) -> Claim:
    """What may be claimed of answers, given their own claim: more, if the sum is noisy.

    For a whole client the noise is enough. For a record it adds nothing that is known: there the
    table is as safe as the model, or the summary, and the mask that it is made of.
    """
    std = sum_noise(scenario.privacy)
    if not std:
        return claim
    event = secagg.sum_event(std, n_samples, "replace")
    made_of = claim.derived_from
    if made_of and claim_of_mask(scenario) is not None:
        made_of = (*made_of, "accept mask")
    moved = Sensitivity(norm="l2", bound=(2 * n_samples) ** 0.5)
    return Claim("proved", "noise on the sum over clients", (event,), made_of, moved)


def claim_of_labels(row: protection.GnMax, n: int) -> Claim:
    """What one round of `clear_labels` costs, of n proxy samples, whatever the votes are."""
    mechanism = ConfidentGNMax(row.threshold, row.sigma_threshold, row.sigma)
    return _claim(mechanism.cost(n, n), "Confident-GNMax")


def _claim(cost: Cost, reason: str) -> Claim:
    if isinstance(cost.event, NonPrivateDpEvent):
        return Claim("empirical", reason)
    events = from_dp_event(cost.event, OF[cost.neighbours])
    if not events:
        return Claim("none", f"{reason}, of no sample")
    return Claim("proved", reason, events)

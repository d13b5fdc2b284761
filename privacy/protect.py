"""From a scenario's settings (`fedkd.protection`) to what a client releases, and what it may claim.

`answers` does what the rows of `privacy.release` say. The `claim_of_…` functions say what each part
costs before anything is computed, so that a budget can be asked first, and a whole run forecast.
`consensus_of` and `clear_labels` are what the server does before it tells a consensus.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from dp_accounting import NonPrivateDpEvent
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from fedkd import protection
from fedkd.config import Phase, Scenario, Training
from fedkd.errors import FedkdError
from fedkd.exchange.combine import Consensus
from fedkd.exchange.gate import needs_scores
from fedkd.protection import Privacy
from privacy import mechanisms, nfdp, private_filter, secagg, swing
from privacy.accounting import from_dp_event, least_gaussian, quiet
from privacy.degrees import Origin
from privacy.dpsgd_cost import (
    error_feedback_event,
    noise_multiplier,
    paid_rounds,
    round_event,
    schedule,
)
from privacy.events import Event, Protects
from privacy.gnmax import ConfidentGNMax
from privacy.ledger import SeenBy, Sensitivity, What
from privacy.mechanisms import Cost
from privacy.sensitivity import Neighbours, SoftLabels, project
from privacy.totals import Budget

CLIENT = Protects("client", "replace")
RECORD = private_filter.RECORD
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


def budget_of(privacy: Privacy) -> Budget | None:
    """A client's budget; None if it may spend without end."""
    return None if privacy.budget_is_the_server_s else _budget(privacy)


def server_budget_of(privacy: Privacy) -> Budget | None:
    """The budget of the server's own ledger; None if it may spend without end, or has none."""
    return _budget(privacy) if privacy.budget_is_the_server_s else None


def _budget(privacy: Privacy) -> Budget | None:
    if privacy.budget is None:
        return None
    protects = {"record": RECORD, "client": CLIENT}[privacy.unit]
    return Budget(**protects._asdict(), epsilon=privacy.budget, delta=privacy.delta)


def mask_changes(scenario: Scenario) -> bool:
    """Whether the accept mask is made anew in each round, as where a score looks by the model.

    A private filter never looks at a model, so it is asked, and paid for, once.
    """
    method = scenario.method
    plain = isinstance(scenario.privacy.filter, protection.PlainFilter)
    return plain and needs_scores(method.gate) and method.score.space != "pixels"


def readers(privacy: Privacy) -> SeenBy:
    """Who sees a client's answers, and which samples it answered."""
    secure = isinstance(privacy.server, protection.SecureAggregation)
    return "sum only" if secure else "server"


def readers_of_mask(privacy: Privacy) -> SeenBy:
    """As `readers`, of the mask by itself: a noisy sum holds it, and the answers' entry says so."""
    return "no one" if _sum_noise(privacy) else readers(privacy)


def _sum_noise(privacy: Privacy) -> float:
    """The standard deviation of the noise that clients make together; 0 if there is none."""
    row = privacy.server
    return row.sigma if isinstance(row, protection.SecureAggregation) else 0.0


def claim_of_mask(scenario: Scenario) -> Claim | None:
    """What the accept mask costs; None where it tells nothing of the client's private records."""
    if not needs_scores(scenario.method.gate):
        return None
    row = scenario.privacy.filter
    if isinstance(row, protection.PlainFilter):
        return Claim("none", "the filter is fitted on raw data")
    return Claim("proved", f"{row.name} filter", private_filter.cost(row, scenario.privacy.delta))


def dp_sgd_of(
    row: protection.DpSgd, n_records: int, n_clients: int, training: Training, delta: float
) -> protection.DpSgd:
    """The row with its noise: calibrated once for the whole run, where it names an epsilon.

    Guarantee: that epsilon at `delta` for a client that trains in `most_rounds` rounds at most.
    """
    if row.epsilon is None:
        return row
    with quiet():
        noise = noise_multiplier(
            n_records,
            training.local,
            rounds=training.rounds,
            participation=training.rate(n_clients),
            epsilon=row.epsilon,
            delta=delta,
            accountant=RdpAccountant,  # the ledger shows the larger of PLD and RDP: that is RDP
        )
    return row.model_copy(update={"noise_multiplier": noise})


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
    pooled: tuple[int, ...] = ()
    """For Swing: the classes that answers do not tell apart."""


def most_rounds(training: Training, n_clients: int) -> int:
    """Rounds of one client in a whole run: what its noise is calibrated for."""
    return paid_rounds(training.rounds, training.rate(n_clients))


def counts_rounds(privacy: Privacy) -> bool:
    """Whether noise is calibrated to a number of rounds, so that a client abstains from more."""
    training, release = privacy.training, privacy.release
    calibrated = isinstance(training, protection.DpSgd) and training.epsilon is not None
    return calibrated or isinstance(release, protection.GaussianRelease | protection.LaplaceRelease)


def answers(
    privacy: Privacy, logits: Tensor, occasion: Occasion, generator: torch.Generator
) -> tuple[Tensor, Claim]:
    """What leaves for logits [m, classes]: float32 [m, classes], and what may be claimed of it.

    Not for the row `plain`, whose answers are those of the method's own release stage.
    Guarantee: where it is `proved`, for all data of the client replaced by others; the rows
    `gaussian` and `laplace` keep their epsilon for `occasion.most_rows` rows. Of a single record
    nothing is claimed here, since no bound is known for how far one moves logits.
    Raises: FedkdError for logits that are not finite, or for Swing without degrees.
    """
    n_classes = logits.shape[1]
    claim = claim_of_rows(privacy, occasion, len(logits), n_classes)
    match privacy.release:
        case protection.TopOne():
            return mechanisms.TopOne().release(logits, generator), claim
        case protection.GaussianRelease() | protection.LaplaceRelease() as row:
            return _calibrated(row, occasion, n_classes).release(logits, generator), claim
        case protection.SampledLabel(bound=bound):
            drawn = mechanisms.HardLabels(SoftLabels(bound, occasion.temperature))
            return drawn.release(logits, generator), claim
        case protection.RandomisedResponse(epsilon=epsilon):
            response = mechanisms.RandomisedResponse(epsilon, n_classes)
            return response.release(logits, generator), claim
        case protection.Swing() as row:
            swung = swing_of(row, occasion.origin, occasion.pooled)
            return swung.release(logits, _degrees(row, occasion), generator).values, claim
        case other:
            raise FedkdError("no mechanism of this name releases answers", value=other.name)


def claim_of_rows(privacy: Privacy, occasion: Occasion, rows: int, n_classes: int) -> Claim:
    """What one release of `rows` answers costs by itself, whatever the model is.

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
        case protection.Swing() as row:
            cost = swing_of(row, occasion.origin).cost(_degrees(row, occasion), n_classes)
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
    std = _sum_noise(scenario.privacy)
    if not std:
        return claim
    event = secagg.sum_event(std, n_samples, "replace")
    made_of = claim.derived_from
    if made_of and claim_of_mask(scenario) is not None:
        made_of = (*made_of, "accept mask")
    moved = Sensitivity(norm="l2", bound=(2 * n_samples) ** 0.5)
    return Claim("proved", "noise on the sum over clients", (event,), made_of, moved)


def _degrees(row: protection.Swing, occasion: Occasion) -> Tensor:
    if occasion.degrees is None:
        raise FedkdError("swing needs a degree for each position", value=row.degree)
    return occasion.degrees


def consensus_of(privacy: Privacy, consensus: Consensus) -> Consensus:
    """What the server tells of the clients' mean answers: without the bias of randomised response.

    The mean of answers that are partly drawn at random is that of the true ones, pulled to 1 / C.
    That is undone, and the nearest distributions are told, since an estimate may leave [0, 1].
    Guarantee: post-processing of what the clients have charged, so no event.
    """
    row = privacy.release
    if not isinstance(row, protection.RandomisedResponse):
        return consensus
    mean = torch.from_numpy(consensus.values).double()
    unbiased = mechanisms.RandomisedResponse(row.epsilon, mean.shape[1]).unbias(mean)
    return Consensus(consensus.ids, project(unbiased).float().numpy())


def clear_labels(
    row: protection.GnMax, votes: NDArray[np.float64], generator: torch.Generator
) -> tuple[Consensus, Claim]:
    """The winners, one-hot, of the vote sums [n, classes] that are clear, and what that costs.

    Guarantee: replace one client, for all who read the consensus; the server is trusted. Each of
    the n sums is a query, those of samples that nobody answered too, since which these are is
    private. All are charged as if they had been answered: how many are is known only afterwards,
    and a cost that depends on the data is no epsilon. (PATE charges the answered ones alone.)
    """
    mechanism = ConfidentGNMax(row.threshold, row.sigma_threshold, row.sigma)
    clear = mechanism.release(torch.from_numpy(votes), generator)
    labels = one_hot(clear.labels, votes.shape[1]).float().numpy()
    consensus = Consensus(clear.rows.numpy().astype(np.int32), labels)
    return consensus, claim_of_labels(row, len(votes))


def claim_of_labels(row: protection.GnMax, n: int) -> Claim:
    """What one round of `clear_labels` costs, of n proxy samples, whatever the votes are."""
    mechanism = ConfidentGNMax(row.threshold, row.sigma_threshold, row.sigma)
    return _claim(mechanism.cost(n, n), "Confident-GNMax")


def swing_of(row: protection.Swing, origin: Origin, pooled: tuple[int, ...] = ()) -> swing.Swing:
    """The Swing that a scenario asks for; `pooled` are the classes of `row.pooled`."""
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
        noise_from=row.noise_from,
        pooled=pooled,
    )


def _calibrated(
    row: protection.GaussianRelease | protection.LaplaceRelease,
    occasion: Occasion,
    n_classes: int,
) -> mechanisms.Noised:
    """The noise that keeps `most_rows` answers within the row's epsilon, as a ledger adds it up."""
    labels = SoftLabels(row.bound, occasion.temperature)
    noise: mechanisms.Noise
    if isinstance(row, protection.GaussianRelease):
        one = labels.sensitivity(2, "replace one client", n_classes)
        whole = one * occasion.most_rows**0.5
        least = least_gaussian(row.epsilon, CLIENT, occasion.delta)
        noise = mechanisms.Gaussian(least.noise_multiplier * whole)
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

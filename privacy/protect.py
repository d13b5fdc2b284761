"""From a scenario's settings (`fedkd.protection`) to what a client releases, and what it may claim.

`answers` does what the rows of `privacy.release` say. `claim_of_training` and `claim_of_mask` say
what the other two parts cost, before anything is computed, so that a budget can be asked first.
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
from privacy import mechanisms, nfdp, private_filter, swing
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
from privacy.ledger import Sensitivity, What
from privacy.mechanisms import Cost
from privacy.sensitivity import Neighbours, SoftLabels, project

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
    """The row with its noise: calibrated once for the whole run, where it names an epsilon.

    Guarantee: that epsilon at `delta` for a client that trains in `paid_rounds` rounds at most.
    """
    if row.epsilon is None:
        return row
    with quiet():
        noise = noise_multiplier(
            n_records,
            training.local,
            rounds=training.rounds,
            participation=training.participation,
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


def most_rows(scenario: Scenario, n_samples: int) -> int:
    """Rows of one client in a whole run, at so many a round: what its noise is calibrated for."""
    training = scenario.training
    return n_samples * paid_rounds(training.rounds, training.participation)


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
    match privacy.release:
        case protection.TopOne():
            return mechanisms.TopOne().release(logits, generator), Claim("empirical", "top-1")
        case protection.GaussianRelease() | protection.LaplaceRelease() as row:
            noised = _calibrated(row, occasion, n_classes)
            cost = noised.cost(len(logits), n_classes)
            return noised.release(logits, generator), _claim(cost, row.name)
        case protection.SampledLabel(bound=bound):
            drawn = mechanisms.HardLabels(SoftLabels(bound, occasion.temperature))
            cost = drawn.cost(len(logits), n_classes)
            return drawn.release(logits, generator), _claim(cost, "sampled label")
        case protection.RandomisedResponse(epsilon=epsilon):
            response = mechanisms.RandomisedResponse(epsilon, n_classes)
            cost = response.cost(len(logits))
            return response.release(logits, generator), _claim(cost, "randomised response")
        case protection.Swing() as row:
            if occasion.degrees is None:
                raise FedkdError("swing needs a degree for each position", value=row.degree)
            swung = swing_of(row, occasion.origin, occasion.pooled)
            values = swung.release(logits, occasion.degrees, generator).values
            return values, _claim(swung.cost(occasion.degrees, n_classes), f"swing by {row.degree}")
        case other:
            raise FedkdError("no mechanism of this name releases answers", value=other.name)


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
    claim = _claim(mechanism.cost(len(votes), len(votes)), "Confident-GNMax")
    return Consensus(clear.rows.numpy().astype(np.int32), labels), claim


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

"""What a scenario's privacy settings (`fedkd.protection`) ask for: budgets, readers, mechanisms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dp_accounting.rdp import RdpAccountant
from torch import Tensor

from fedkd import protection
from fedkd.config import Scenario
from fedkd.config_sections import Training
from fedkd.errors import FedkdError
from fedkd.exchange.gate import needs_scores
from fedkd.protection import Privacy
from privacy import mechanisms, private_filter, swing
from privacy.accounting import least_gaussian, quiet
from privacy.degrees import Origin
from privacy.dpsgd_cost import noise_multiplier, paid_rounds
from privacy.events import Protects
from privacy.ledger import SeenBy
from privacy.sensitivity import SoftLabels
from privacy.totals import Budget

CLIENT = Protects("client", "replace")
RECORD = private_filter.RECORD


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
    return "no one" if sum_noise(privacy) else readers(privacy)


def sum_noise(privacy: Privacy) -> float:
    """The standard deviation of the noise that clients make together; 0 if there is none."""
    row = privacy.server
    return row.sigma if isinstance(row, protection.SecureAggregation) else 0.0


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


def degrees_of(row: protection.Swing, occasion: Occasion) -> Tensor:
    """The degrees [m] of a release by Swing. Raises: FedkdError where the occasion has none."""
    if occasion.degrees is None:
        raise FedkdError("swing needs a degree for each position", value=row.degree)
    return occasion.degrees


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


def noised_of(
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

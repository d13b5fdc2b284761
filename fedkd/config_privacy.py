"""Whether a scenario's privacy settings fit its data and its method, before anything is run.

What is refused here would do something else than what its name says: protect nothing, fail in
every client, or stop every client before it has said a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd import protection
from fedkd.data.proxy import Contributed
from fedkd.data.text import Reading
from fedkd.errors import FedkdError
from fedkd.exchange.gate import needs_scores

if TYPE_CHECKING:
    from fedkd.config import Scenario

PROVED = (
    protection.GaussianRelease,
    protection.LaplaceRelease,
    protection.SampledLabel,
    protection.RandomisedResponse,
)
"""Releases that protect a whole client, whatever its model; swing does so where it has noise."""


def check_privacy(scenario: Scenario) -> None:
    """Raises: FedkdError for the first setting of `privacy` that the rest cannot go with."""
    _check_release(scenario)
    _check_combine(scenario)
    privacy = scenario.privacy
    if _asks_private_filter(scenario) and isinstance(scenario.data, Reading):
        raise FedkdError(
            "private filters look at pixels, and the data are text",
            value=privacy.filter.name,
            fix='method.gate.name = "open", or privacy.filter.name = "plain"',
        )
    if privacy.budget is not None:
        gap = _unproved(scenario)
        if gap is not None:
            lacking, fix = gap
            raise FedkdError(
                f"no client could stay within privacy.budget: for one {privacy.unit}, {lacking}",
                value=privacy.budget,
                fix=f"{fix}; or drop privacy.budget",
            )


def check_axes(scenario: Scenario, n_values: int) -> None:
    """Raises: FedkdError for a private summary of more axes than the records' `n_values` values."""
    asked: dict[tuple[str, str], int] = {}
    row, release = scenario.privacy.filter, scenario.privacy.release
    if not isinstance(row, protection.PlainFilter) and _asks_private_filter(scenario):
        asked["a private filter", "privacy.filter.axes"] = row.axes
    if isinstance(release, protection.SummaryRelease) and scenario.method.exchange == "soft-labels":
        asked["a private summary", "privacy.release.axes"] = release.axes
    for (who, key), axes in asked.items():
        if axes > n_values:
            raise FedkdError(
                f"{who} cannot look at more axes than a record has values",
                value=axes,
                allowed=f"1 to {n_values}",
                fix=f"lower {key}",
            )


def _asks_private_filter(scenario: Scenario) -> bool:
    asked = scenario.method.exchange == "soft-labels" and needs_scores(scenario.method.gate)
    return asked and not isinstance(scenario.privacy.filter, protection.PlainFilter)


def _check_release(scenario: Scenario) -> None:
    row, method = scenario.privacy.release, scenario.method
    if isinstance(row, protection.PlainRelease):
        return
    if method.exchange in ("weights", "label-means"):
        raise FedkdError(
            f"{method.name} sends {method.exchange}, which no row of privacy.release protects",
            value=row.name,
            fix='privacy.training.name = "dp-sgd", or a method that exchanges soft labels',
        )
    if not method.release.simplex:
        raise FedkdError(
            "privacy.release stands in for method.release, and makes probabilities",
            value=f"{method.release.name} with {row.name}",
            fix='method.release.name = "probabilities", or privacy.release.name = "plain"',
        )
    if isinstance(row, protection.SummaryRelease):
        _check_summary(scenario)
    if isinstance(row, protection.Swing) and method.distill.name != "kl":
        raise FedkdError(
            "swing's students learn by a KL of its own, weighed by the samples' temperatures",
            value=f"method.distill.name = {method.distill.name!r}",
            fix='method.distill.name = "kl", or another privacy.release.name',
        )
    if isinstance(row, protection.Swing) and row.degree != "classes":
        is_text = isinstance(scenario.data, Reading)
        if is_text != (row.degree in protection.TEXT_DEGREES):
            raise FedkdError(
                f"this degree of privacy is not one of {'text' if is_text else 'images'}",
                value=row.degree,
                allowed=f"{', '.join(protection.TEXT_DEGREES) if is_text else 'density'}, classes",
                fix="set privacy.release.degree",
            )


def _check_combine(scenario: Scenario) -> None:
    """Sums of answers, and means that are cleared of randomised response, leave no choice."""
    privacy, rule = scenario.privacy, scenario.method.combine
    for key, row in (("server", privacy.server), ("release", privacy.release)):
        takes_the_mean = isinstance(
            row,
            protection.SecureAggregation | protection.GnMax | protection.RandomisedResponse,
        )
        if takes_the_mean and rule.name != "mean":
            raise FedkdError(
                f"privacy.{key}.name = {row.name!r} works on the mean of the answers",
                value=f"method.combine.name = {rule.name!r}",
                allowed="mean",
                fix='method.combine.name = "mean"',
            )


def _check_summary(scenario: Scenario) -> None:
    if isinstance(scenario.data, Reading):
        raise FedkdError(
            "private summaries look at pixels, and the data are text",
            value=scenario.privacy.release.name,
            fix="choose another privacy.release.name",
        )
    training = scenario.privacy.training
    if not isinstance(training, protection.PlainTraining):
        raise FedkdError(
            "answers come from the summary, so nothing that a model has learnt leaves the client",
            value=f"privacy.training.name = {training.name!r}",
            fix='privacy.training.name = "plain", or another privacy.release.name',
        )


def _unproved(scenario: Scenario) -> tuple[str, str] | None:
    """What would leave a client without a proof for the budget's unit, and what helps.

    The ledger decides in each round; this finds what it can never accept.
    """
    exchange = scenario.method.exchange
    if exchange in ("none", "proxy-labels"):
        return None
    if exchange == "label-means":
        return ("means over private records leave as they are", "another method.name")
    if scenario.privacy.unit == "record":
        return _unproved_for_records(scenario)
    return _unproved_for_clients(scenario)


def _unproved_for_records(scenario: Scenario) -> tuple[str, str] | None:
    privacy, method = scenario.privacy, scenario.method
    summary = isinstance(privacy.release, protection.SummaryRelease) and (
        method.exchange == "soft-labels"
    )
    noisy = isinstance(privacy.training, protection.DpSgd) and privacy.training.noisy
    if not noisy and not summary:
        return (
            f"the training {privacy.training.name} proves nothing",
            'privacy.training.name = "dp-sgd" with noise, or privacy.release.name = "summary"',
        )
    if method.exchange == "weights":
        return None
    if needs_scores(method.gate) and isinstance(privacy.filter, protection.PlainFilter):
        return (
            f"the gate {method.gate.name} tells of raw data",
            'privacy.filter.name = "dp-kmeans", or method.gate.name = "open"',
        )
    if isinstance(privacy.release, protection.Swing) and privacy.release.reads_records:
        return ("temperatures by density tell of raw data", "another privacy.release.degree")
    return None


def _unproved_for_clients(scenario: Scenario) -> tuple[str, str] | None:
    privacy, method = scenario.privacy, scenario.method
    if isinstance(scenario.proxy, Contributed) and scenario.uses_pool:
        return ("contributed samples leave in the clear", 'proxy.name = "public" or "foreign"')
    if privacy.budget_is_the_server_s:
        return None
    if method.exchange == "weights":
        return ("weights leave as they are", "a method that exchanges soft labels")
    if isinstance(privacy.server, protection.SecureAggregation) and privacy.server.sigma > 0:
        return None  # answers and masks are in one noised sum
    if needs_scores(method.gate):
        return (
            f"the gate {method.gate.name} tells of all that a client has",
            'method.gate.name = "open"',
        )
    release = privacy.release
    if isinstance(release, protection.Swing):
        proved = release.noise != "none" and release.noise_from == 0
    else:
        proved = isinstance(release, PROVED)
    if not proved:
        return (
            f"the release {release.name} proves nothing",
            'privacy.release.name = "gaussian", "laplace", "sampled-label" or '
            '"randomised-response", or swing with noise everywhere',
        )
    return None

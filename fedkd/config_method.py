"""Whether the stages of a scenario's method go together, before anything is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd import protection
from fedkd.errors import FedkdError, did_you_mean
from fedkd.models.zoo import MODELS

if TYPE_CHECKING:
    from fedkd.config import Scenario


def check_method(scenario: Scenario) -> None:
    """Raises: FedkdError for the first stage of `method` that the rest cannot go with."""
    _check_answers(scenario)
    _check_regulariser(scenario)
    _check_student(scenario)


def _check_answers(scenario: Scenario) -> None:
    method = scenario.method
    release, distill = method.release, method.distill
    if release.temperature != distill.temperature:
        raise FedkdError(
            "answers and students must use one temperature, else the student is matched "
            "against a distribution that nobody gave",
            value=(release.temperature, distill.temperature),
            fix="set method.release.temperature and method.distill.temperature to the same",
        )
    if method.combine.simplex and not release.simplex:
        raise FedkdError(
            "this method.combine.name combines distributions, and the answers are raw logits",
            value=method.combine.name,
            allowed="mean, geometric-median",
            fix='set that, or method.release.name = "probabilities"',
        )
    if distill.raw and release.simplex:
        raise FedkdError(
            "this objective learns from raw logits, and the answers are distributions",
            value=f"method.distill.name = {distill.name!r} and "
            f"method.release.name = {release.name!r}",
            allowed='method.release.name = "logits"',
            fix="set that, or choose another method.distill.name (or its space, if it has one)",
        )


def _check_regulariser(scenario: Scenario) -> None:
    row, training = scenario.method.regulariser, scenario.privacy.training
    if row.name != "none" and not isinstance(training, protection.PlainTraining):
        raise FedkdError(
            "private training has a loss of its own, without a second term",
            value=f"method.regulariser.name = {row.name!r} and "
            f"privacy.training.name = {training.name!r}",
            fix='method.regulariser.name = "none", or privacy.training.name = "plain"',
        )


def _check_student(scenario: Scenario) -> None:
    row = scenario.method.student
    if row.name == "none":
        return
    if scenario.method.exchange != "soft-labels":
        raise FedkdError(
            "the server's model learns a consensus of soft labels, and this method has none",
            value=f"method.name = {scenario.method.name!r}",
            fix='method.student.name = "none"',
        )
    if row.model and row.model not in MODELS:
        raise FedkdError(
            "unknown model in method.student.model",
            value=row.model,
            allowed=", ".join(MODELS),
            fix=did_you_mean(row.model, MODELS),
        )
    if isinstance(scenario.privacy.release, protection.Swing):
        raise FedkdError(
            "swing's students learn by temperatures of the clients', which the server's does not",
            value=f"method.student.name = {row.name!r}",
            fix='method.student.name = "none", or another privacy.release.name',
        )

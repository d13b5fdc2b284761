"""Whether the stages of a scenario's method go together, before anything is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd import protection
from fedkd.data.text import Reading
from fedkd.errors import FedkdError
from fedkd.exchange.combine import Summed
from fedkd.exchange.gate import Oracle, Soft
from fedkd.exchange.selection import All
from fedkd.models.zoo import check_names

if TYPE_CHECKING:
    from fedkd.config import Scenario


def check_method(scenario: Scenario) -> None:
    """Raises: FedkdError for the first stage of `method` that the rest cannot go with."""
    _check_answers(scenario)
    _check_regulariser(scenario)
    _check_student(scenario)
    _check_weights(scenario)
    _check_select(scenario)
    _check_labels(scenario)
    _check_beginning(scenario)
    _check_truth(scenario)


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
    check_names([row.model] if row.model else [], "method.student.model")
    if isinstance(scenario.privacy.release, protection.Swing):
        raise FedkdError(
            "swing's students learn by temperatures of the clients', which the server's does not",
            value=f"method.student.name = {row.name!r}",
            fix='method.student.name = "none", or another privacy.release.name',
        )


SQUASHES = {"odds": ("logistic",), "ratio": ("kulsif", "ulsif")}
"""The scores that a soft gate's way to a probability is for; what is not named is for any."""


def _check_weights(scenario: Scenario) -> None:
    method, privacy = scenario.method, scenario.privacy
    if method.weighed and not isinstance(method.combine, Summed):
        raise FedkdError(
            "this rule takes each answer for one vote, and the gate gives them weights",
            value=f"method.combine.name = {method.combine.name!r}",
            allowed="mean, variance, era, power",
            fix="set that, or a method.gate.name other than soft",
        )
    if not isinstance(method.gate, Soft):
        return
    fitting = SQUASHES.get(method.gate.by, (method.score.name,))
    if method.score.name not in fitting:
        raise FedkdError(
            f"method.gate.by = {method.gate.by!r} reads the score as what it is not",
            value=f"method.score.name = {method.score.name!r}",
            allowed=", ".join(fitting),
            fix='set that, or method.gate.by = "spread"',
        )
    for key, value, fine in (
        ("privacy.server.name", privacy.server.name, "plain"),
        ("privacy.filter.name", privacy.filter.name, "plain"),
        ("audit", scenario.audit, False),
    ):
        if value != fine:
            raise FedkdError(
                "the weights of a soft gate are sent and counted as they are, and not recorded",
                value=f"{key} = {value!r}",
                allowed=str(fine),
                fix=f"set {key} to that, or a method.gate.name other than soft",
            )


def _check_select(scenario: Scenario) -> None:
    select = scenario.method.select
    name = select.name
    if isinstance(select, All):
        return
    what = f"method.select.name = {name!r}"
    if scenario.method.exchange != "soft-labels":
        raise FedkdError(
            "a draw of the pool is for answers about it, and this method has none",
            value=what,
            fix='method.select.name = "all"',
        )
    if isinstance(scenario.privacy.server, protection.SecureAggregation):
        raise FedkdError(
            "tables under a mask are of the whole pool",
            value=what,
            fix='method.select.name = "all", or privacy.server.name = "plain"',
        )
    if select.cache and scenario.method.student.name != "none":
        raise FedkdError(
            "clients keep what they were told, and the server's model would have to as well",
            value=f"method.select.cache = {select.cache}",
            fix='method.select.cache = 0, or method.student.name = "none"',
        )
    if name == "coverage" and isinstance(scenario.data, Reading):
        raise FedkdError(
            "a text has no class that could be covered", value=what, allowed="random, entropy"
        )


def _check_labels(scenario: Scenario) -> None:
    """Means by label are one way of their own: what is for answers about a pool is not for them."""
    method = scenario.method
    by_label, learns = method.exchange == "label-means", method.regulariser.name == "labels"
    if by_label != learns:
        raise FedkdError(
            "means by label are what the second term of the private loss learns from",
            value=f"method.name = {method.name!r} and "
            f"method.regulariser.name = {method.regulariser.name!r}",
            fix='method.name = "fd" and method.regulariser.name = "labels", or neither',
        )
    if not by_label:
        return
    coded = method.release.coding is not None
    for key, value, wrong, fine in (
        ("method.combine.name", method.combine.name, method.combine.name != "mean", "mean"),
        ("method.release.name", method.release.name, coded, "logits, probabilities"),
        ("wire.up", scenario.wire.up, scenario.wire.up != "float32", "float32"),
        ("wire.down", scenario.wire.down, scenario.wire.down != "float32", "float32"),
        ("audit", scenario.audit, scenario.audit, False),
    ):
        if wrong:
            raise FedkdError(
                "means by label are summed as they are, and not recorded",
                value=f"{key} = {value!r}",
                allowed=str(fine),
                fix=f"set {key} to that, or another method.name",
            )


def _check_beginning(scenario: Scenario) -> None:
    """What comes before the first round."""
    run, private = scenario.training, scenario.privacy.training
    if run.warmup and not isinstance(private, protection.PlainTraining):
        raise FedkdError(
            "private training accounts for the rounds, and not for passes before them",
            value=f"training.warmup = {run.warmup:g} and privacy.training.name = {private.name!r}",
            fix="training.warmup = 0",
        )
    if run.pretrain is not None and not (scenario.uses_pool and scenario.proxy.name == "public"):
        raise FedkdError(
            "only a public proxy set has labels that clients could begin with",
            value=f"method.name = {scenario.method.name!r}, proxy.name = {scenario.proxy.name!r}",
            fix='proxy.name = "public" and a method with a proxy set, or drop [training.pretrain]',
        )


def _check_truth(scenario: Scenario) -> None:
    """What reads the proxy set's true labels, which only whoever deals the data out knows."""
    method = scenario.method
    oracle = isinstance(method.gate, Oracle)
    what = "method.gate.name" if oracle else "method.combine.name"
    if oracle and not isinstance(scenario.privacy.filter, protection.PlainFilter):
        raise FedkdError(
            "the oracle is for analysis, and what it answers is no private filter's answer",
            value=f"privacy.filter.name = {scenario.privacy.filter.name!r}",
            allowed="plain",
            fix='set that, or a method.gate.name other than "oracle"',
        )
    reads = oracle or (isinstance(method.combine, Summed) and method.combine.told_labels)
    if method.exchange != "soft-labels" or not reads:
        return
    for key, name, unknown in (
        ("partition.name", scenario.partition.name, "own"),
        ("proxy.name", scenario.proxy.name, "foreign"),
    ):
        if name == unknown:
            raise FedkdError(
                f"{what} reads the proxy set's true labels, and nobody knows them",
                value=f"{key} = {name!r}",
                fix="a simulation with a contributed or public proxy set, or another row",
            )

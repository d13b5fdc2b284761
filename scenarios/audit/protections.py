"""What a comparison can name: each protection is a few `--set`s on a scenario that has no other.

What the scenario protects with is taken off first, with its budget: who falls silent is another
question. `privacy.delta` and all else stay. Names joined by `+` come on top of each other:
`dpsgd:6+filter:2`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from fedkd import config
from fedkd.config import Scenario
from fedkd.config_overrides import apply
from fedkd.data.text import Reading
from fedkd.errors import FedkdError, did_you_mean
from fedkd.exchange.gate import needs_scores
from fedkd.protection import Swing
from scenarios.budget import on_target

Kind = Literal["nothing", "baseline", "empirical", "hidden in a sum", "proved"]
"""What a protection is meant to be, weakest first. Whether it is proved, the ledgers say."""
KINDS: tuple[Kind, ...] = get_args(Kind)
BASELINE = "dpsgd-weak"
"""Beside every heuristic (Aerni, Zhang, Tramer 2024): training with so little noise that its
epsilon says next to nothing often leaks no more, at the same accuracy."""
TEXT_SWING = Swing(
    degree="patterns",
    bound=15.0,
    t_max=100.0,
    sharpness=0.25,
    noise="gaussian",
    scale=0.05,
    noise_from=0.25,
    pooled="0123456789",
)
"""That of scenarios/swing-pydoc.toml, where it was measured."""
IMAGE_SWING = Swing(degree="density")
LARGEST_BATCH, FEWEST_EPOCHS = 500, 2


class Protection(NamedTuple):
    """A row: `change` says which `--set`s a value stands for, in a scenario."""

    line: str
    kind: Kind
    change: Callable[[Scenario, float], list[str]]
    takes: str = ""
    """What follows the colon; empty where nothing does."""
    on_target: bool = False
    """Whether noise is then calibrated until all answers of a client cost the value."""

    def named(self, name: str) -> str:
        """The name with what it takes, as `dpsgd:E`."""
        return f"{name}:{self.takes}" if self.takes else name


@dataclass(frozen=True)
class Chosen:
    """A protection as a comparison names it, and the scenario that it makes."""

    name: str
    kind: Kind
    scenario: Scenario

    @property
    def line(self) -> str:
        """What its parts are, in words."""
        return "; ".join(PROTECTIONS[part.partition(":")[0]].line for part in self.name.split("+"))

    @property
    def folder(self) -> str:
        """The name as one for a folder."""
        return self.name.replace(":", "-")


def chosen(scenario: Scenario, name: str) -> Chosen:
    """The scenario under the protection of that name.

    Raises: FedkdError for an unknown name or a wrong value, and where the scenario cannot go
        with it.
    """
    parts = [_parsed(part.strip()) for part in name.split("+")]
    what = bare(scenario)
    for key, value in parts:
        row = PROTECTIONS[key]
        what = _set(what, row.change(scenario, value))
        if row.on_target:
            what = on_target(what, value)
    return Chosen(
        name="+".join(
            f"{key}:{value:g}" if PROTECTIONS[key].takes else key for key, value in parts
        ),
        kind=max((PROTECTIONS[key].kind for key, _ in parts), key=KINDS.index),
        scenario=what,
    )


def offered() -> dict[str, str]:
    """A line for every name that a comparison takes."""
    return {row.named(name): row.line for name, row in PROTECTIONS.items()}


def bare(scenario: Scenario) -> Scenario:
    """The scenario without protection, budget and reference rows."""
    privacy = {"delta": scenario.privacy.delta}
    return config.parse({**scenario.model_dump(), "privacy": privacy, "references": ()})


def differences(before: Scenario, after: Scenario) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by dotted key: before and after, None where there is none."""
    old, new = (_flat(what.model_dump(mode="json")) for what in (before, after))
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        path = prefix + key
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _set(scenario: Scenario, changes: Iterable[str]) -> Scenario:
    table = scenario.model_dump()
    apply(table, changes)
    return config.parse(table)


def _parsed(part: str) -> tuple[str, float]:
    """The key of PROTECTIONS, and the value; NaN where it takes none."""
    key, colon, text = part.partition(":")
    row = PROTECTIONS.get(key)
    if row is None:
        raise FedkdError(
            "unknown protection in --compare",
            value=part,
            allowed=", ".join(offered()),
            fix=did_you_mean(key, PROTECTIONS),
        )
    if not row.takes:
        if colon:
            raise FedkdError(f"{key} takes no value", value=part, fix=key)
        return key, math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise FedkdError(
            f"{key} needs a number above 0 after a colon", value=part, fix=f"{key}:8, for example"
        )
    return key, value


def _temperature(scenario: Scenario, value: float) -> list[str]:
    if not scenario.method.release.simplex:
        raise FedkdError(
            "logits leave as they are, whatever the temperature",
            value=scenario.method.release.name,
            fix='method.release.name = "probabilities"',
        )
    return [f"method.{stage}.temperature={value}" for stage in ("release", "distill")]


def _top_k(scenario: Scenario, value: float) -> list[str]:
    if value % 1:
        raise FedkdError("K of top-k must be a whole number", value=value)
    return ["method.release.name=top-k", f"method.release.k={value:.0f}"]


def _swing(scenario: Scenario, _: float) -> list[str]:
    row = scenario.privacy.release
    if not isinstance(row, Swing):
        row = TEXT_SWING if isinstance(scenario.data, Reading) else IMAGE_SWING
    settings = row.model_dump(mode="json")
    return [f"privacy.release.{key}={json.dumps(value)}" for key, value in settings.items()]


def _dp_sgd(scenario: Scenario, batches: int, *settings: str) -> list[str]:
    """DP-SGD; of images with the training that clipped and noised gradients call for.

    That is SGD, learning rate 1, and `batches` batches an epoch. On digits (10 clients of 140
    images, Dirichlet 0.5, 6 rounds, seed 1) two of them give an accuracy of 70 % at epsilon 8 where
    the scenario's own Adam with batches of 32 gives 24 %.
    """
    changes = ["privacy.training.name=dp-sgd"]
    changes += [f"privacy.training.{setting}" for setting in settings]
    if isinstance(scenario.data, Reading):
        return changes
    world = scenario.world(scenario.seeds[0])
    size = len(world.train) // (batches * world.n_clients)
    return [
        *changes,
        "training.local.optimizer=sgd",
        "training.local.learning_rate=1.0",
        "training.local.momentum=0.0",
        f"training.local.batch_size={min(max(size, 1), LARGEST_BATCH)}",
        f"training.local.epochs={max(scenario.training.local.epochs, FEWEST_EPOCHS)}",
    ]


def _weak(scenario: Scenario, _: float) -> list[str]:
    """As much noise as cost no accuracy on the validation data of digits, see
    docs/results-privacy.md; of texts, with which nothing was tuned, next to none.
    """
    noise = 0.1 if isinstance(scenario.data, Reading) else 0.8
    return _dp_sgd(scenario, 4, "clip=1.0", f"noise_multiplier={noise}")


def _filter(scenario: Scenario, value: float) -> list[str]:
    method = scenario.method
    if method.exchange != "soft-labels" or not needs_scores(method.gate):
        raise FedkdError(
            "this method has no filter that could be made private",
            value=f"{method.name}, gate {method.gate.name}",
            fix='method.name = "edgefd", for example',
        )
    return ["privacy.filter.name=dp-kmeans", f"privacy.filter.epsilon={value}"]


def _release(name: str, takes_epsilon: bool = False) -> Callable[[Scenario, float], list[str]]:
    """A release that protects a whole client."""

    def change(_: Scenario, value: float) -> list[str]:
        epsilon = [f"privacy.release.epsilon={value}"] if takes_epsilon else []
        return [f"privacy.release.name={name}", *epsilon, "privacy.unit=client"]

    return change


PROTECTIONS: dict[str, Protection] = {
    "none": Protection("no protection", "nothing", lambda _, __: []),
    "temperature": Protection(
        "soft labels of a higher temperature", "empirical", _temperature, "T"
    ),
    "top-1": Protection(
        "the likeliest class alone", "empirical", lambda _, __: ["privacy.release.name=top-1"]
    ),
    "top-k": Protection("the K likeliest classes", "empirical", _top_k, "K"),
    "swing": Protection(
        "the scenario's own Swing, or what was found good for its kind of data",
        "empirical",
        _swing,
    ),
    "nfdp": Protection(
        "training on half of the records (FedMD-NFDP)",
        "empirical",
        lambda _, __: ["privacy.training.name=nfdp"],
    ),
    BASELINE: Protection(
        "DP-SGD with little noise, whose epsilon says next to nothing: what a heuristic must beat",
        "baseline",
        _weak,
    ),
    "dpsgd": Protection(
        "DP-SGD at epsilon E of a record; the filter tells of records all the same",
        "proved",
        lambda scenario, epsilon: _dp_sgd(scenario, 2, f"epsilon={epsilon}"),
        "E",
    ),
    "filter": Protection(
        "which samples a client answers, at epsilon E of a record", "proved", _filter, "E"
    ),
    "summary": Protection(
        "answers of a private summary of the records in place of a model, E of a record",
        "proved",
        lambda _, epsilon: [
            "privacy.release.name=summary",
            f"privacy.release.epsilon={epsilon}",
        ],
        "E",
    ),
    "gaussian": Protection(
        "Gaussian noise on answers, E of a client", "proved", _release("gaussian", True), "E"
    ),
    "laplace": Protection(
        "Laplace noise on answers, E of a client", "proved", _release("laplace", True), "E"
    ),
    "sampled-label": Protection(
        "one label drawn for each answer, E of a client",
        "proved",
        _release("sampled-label"),
        "E",
        on_target=True,
    ),
    "response": Protection(
        "randomised response, E of a client",
        "proved",
        _release("randomised-response"),
        "E",
        on_target=True,
    ),
    "secagg": Protection(
        "secure aggregation: the server sees the sum alone",
        "hidden in a sum",
        lambda _, __: ["privacy.server.name=secure-aggregation"],
    ),
}
"""By name, in the order that `allowed` lists them."""

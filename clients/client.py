"""One client in one round, and the proxy set as it computes on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkd import training
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.models.zoo import Classifier, Shape, build
from fedkd.payload import Pool
from fedkd.rng import stream, torch_stream

OPEN = frozenset(
    {"abstained", "n_private", "filter_s", "answer_s"}
    | {f"{phase}_samples" for phase in ("pretrain", "warmup", "train", "distill")}
    | {f"{phase}_s" for phase in ("pretrain", "warmup", "train", "distill")}
)
"""Metrics of every client: sizes, which the accounting takes as public, and times."""

Told = dict[str, int | float | list[int] | list[float]]
"""What Flower's MetricRecord takes."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client in one round. `metrics` and `by_class` collect what it reports."""

    scenario: Scenario
    seed: int
    id: int
    round: int
    world: Federation
    device: torch.device
    secret: int | None = None
    """What is drawn in private comes from it, see `clients.place`; None: from the seed."""
    tells: bool = True
    """Whether it reports what it measures on its private data; else counts and times only."""
    announces: bool = False
    """Whether it says, by a hash, which model answers."""
    metrics: dict[str, float] = field(default_factory=dict)
    by_class: dict[str, list[int]] = field(default_factory=dict)
    """Counts, one for each class."""

    def took(self, phase: str, seconds: float) -> None:
        """Add wall time to the metric `phase_s`."""
        key = f"{phase}_s"
        self.metrics[key] = self.metrics.get(key, 0.0) + seconds

    @property
    def told(self) -> Told:
        """The metrics that leave: all that are finite, or the `OPEN` ones alone."""
        found: Told = {
            key: float(value)
            for key, value in self.metrics.items()
            if np.isfinite(value) and (self.tells or key in OPEN)
        }
        if self.tells:
            found.update(self.by_class)
        return found

    def draws(self, purpose: str) -> np.random.Generator:
        """This client's stream of this round for one purpose."""
        return stream(self.seed, "client", self.round, self.id, purpose)

    def noise(self, purpose: str, round_: int | None = None) -> torch.Generator:
        """The stream of the noise of one purpose, of this round unless another is named."""
        at = self.round if round_ is None else round_
        return torch_stream(self._hidden, "client", at, self.id, purpose)

    def private_draws(self, purpose: str) -> np.random.Generator:
        """As `draws`, of what nobody else may guess."""
        return stream(self._hidden, "client", self.round, self.id, purpose)

    @property
    def _hidden(self) -> int:
        return self.seed if self.secret is None else self.secret

    @property
    def hostile(self) -> bool:
        """Whether it lies, as some clients of a simulation are told to."""
        return self.id in self.scenario.hostile.clients(self.world.n_clients, self.seed)

    @property
    def architecture(self) -> str:
        """The name of the client's model."""
        names = self.scenario.model.names
        return names[self.id % len(names)]

    @property
    def n_records(self) -> int:
        """How many private records the client holds, its canaries' included."""
        copies = sum(canary.copies(self.id) for canary in self.world.canaries)
        return len(self.world.private[self.id]) + copies

    def model(self, state: Mapping[str, Tensor] | None) -> Classifier:
        """The client's model: new, or with a copy of the weights of its state."""
        train = self.world.train
        channels, height, width = train.x.shape[1:]
        kind = (self.architecture, (channels, height, width), train.n_classes)
        if state is None:
            init = torch_stream(self.seed, "client", 0, self.id, "init")
            return build(*kind, init, train.x.dtype).to(self.device)
        model = _twin(_skeleton(*kind, train.x.dtype))
        weights = {name: self._own(weight) for name, weight in model_part(state).items()}
        model.load_state_dict(weights, assign=True)
        return model

    def _own(self, weight: Tensor) -> Tensor:
        """A copy on the client's device, in the memory layout that `zoo.build` gives."""
        layout = torch.channels_last if weight.ndim == 4 else torch.preserve_format
        return weight.to(self.device, memory_format=layout, copy=True)


@lru_cache(maxsize=8)
def _skeleton(name: str, shape: Shape, n_classes: int, dtype: torch.dtype) -> Classifier:
    """A model without weights: drawing some for each message, to be replaced, would take longer."""
    with torch.device("meta"):
        return build(name, shape, n_classes, torch.Generator(), dtype)


def _twin(module: Model) -> Model:
    """A module like this one, with the same parameters; a deep copy takes 13 times as long."""
    twin = module.__class__.__new__(module.__class__)
    for name, value in module.__dict__.items():
        twin.__dict__[name] = value.copy() if isinstance(value, dict | list) else value
    for name, child in module.named_children():
        twin._modules[name] = _twin(child)
    return twin


@dataclass(frozen=True, eq=False)
class ProxySet:
    """The proxy pool as the clients of a process compute on it: converted once, on the device."""

    x: Tensor
    """As `training.inputs` gives it, [n, c, h, w]."""
    contributor: NDArray[np.int32]
    """[n] the client that gave the record, or -1."""
    positions: int
    """How many samples a record is: 1, or L tokens. Position l of record r has id r * L + l."""
    labels: Tensor | None = None
    """int64 [n] or [n, L], where clients are to learn them."""

    @classmethod
    def of(cls, pool: Pool, device: torch.device) -> ProxySet:
        """The set on a device."""
        positions = pool.x.shape[3] if pool.x.dtype == np.int16 else 1
        x = training.inputs(torch.from_numpy(pool.x).to(device))
        labels = None if pool.labels is None else torch.from_numpy(pool.labels).long().to(device)
        return cls(x, pool.contributor, positions, labels)

    @property
    def n_samples(self) -> int:
        """What soft labels are given for: images, or token positions."""
        return len(self.x) * self.positions


def model_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors of a state."""
    return {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}


def with_model(state: Mapping[str, Tensor], model: Classifier) -> dict[str, Tensor]:
    """A state with the model's tensors replaced."""
    rest = {k: v for k, v in state.items() if not k.startswith("model.")}
    return rest | {f"model.{k}": v.detach().cpu() for k, v in model.state_dict().items()}

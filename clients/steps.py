"""What a client does in each step of a round: pure functions from its state to a new one.

A client's view of the world is its own private data, the proxy pool without labels, and the test
set that a simulation lends it to be measured by.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd import training
from fedkd.config import Scenario
from fedkd.data.dataset import as_input
from fedkd.data.federation import Federation
from fedkd.exchange.combine import Consensus
from fedkd.exchange.gate import accept
from fedkd.models.zoo import Classifier, build
from fedkd.payload import Pool
from fedkd.rng import stream, torch_stream


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client in one round. `metrics` collects what it reports; `seconds` its time by phase."""

    scenario: Scenario
    seed: int
    id: int
    round: int
    world: Federation
    device: torch.device
    metrics: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to the metric `phase_s`."""
        start = time.perf_counter()
        yield
        key = f"{phase}_s"
        self.metrics[key] = self.metrics.get(key, 0.0) + time.perf_counter() - start

    def draws(self, purpose: str) -> np.random.Generator:
        """This client's stream of this round for one purpose."""
        return stream(self.seed, "client", self.round, self.id, purpose)

    def model(self, state: Mapping[str, Tensor] | None) -> Classifier:
        """The client's model: new, or with the weights of its state."""
        names = self.scenario.model.names
        train = self.world.train
        name = names[self.id % len(names)]
        init = torch_stream(self.seed, "client", 0, self.id, "init")
        channels, height, width = train.x.shape[1:]
        model = build(name, (channels, height, width), train.n_classes, init)
        if state is not None:
            model.load_state_dict(model_part(state))
        return model.to(self.device)


def model_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors of a state."""
    return {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}


def with_model(state: Mapping[str, Tensor] | None, model: Classifier) -> dict[str, Tensor]:
    """A state with the model's tensors replaced."""
    rest = {k: v for k, v in (state or {}).items() if not k.startswith("model.")}
    return rest | {f"model.{k}": v.detach().cpu() for k, v in model.state_dict().items()}


def learn_private(client: Client, model: Classifier) -> None:
    """Train the model in place on the client's private data."""
    x, y = (tensor.to(client.device) for tensor in client.world.client(client.id))
    with client.timed("train"):
        loss = training.fit(
            model,
            x,
            y,
            training.cross_entropy,
            client.scenario.training.local,
            client.draws("train"),
        )
    client.metrics["train_loss"] = loss
    client.metrics["n_private"] = len(x)


def filter_pool(client: Client, model: Classifier, pool: Pool) -> Tensor:
    """The mask [n] of pool samples that the client answers; the score is fitted here."""
    method = client.scenario.method
    x, y = client.world.client(client.id)
    n_heldout = min(max(1, round(client.scenario.training.heldout * len(x))), len(x) - 1)
    order = stream(client.seed, "client", 0, client.id, "heldout").permutation(len(x))
    heldout, fitted = torch.from_numpy(order[:n_heldout]), torch.from_numpy(order[n_heldout:])

    def look(samples: Tensor) -> Tensor:
        samples = samples.to(client.device)
        if method.score.space == "features":
            return training.features(model, samples)
        return as_input(samples).flatten(1)

    with client.timed("filter"):
        draws = torch_stream(client.seed, "client", client.round, client.id, "score")
        state = method.score.fit(look(x[fitted]), y[fitted].to(client.device), draws)
        mask, threshold = accept(
            method.gate,
            method.score.score(state, look(x[heldout])).cpu(),
            method.score.score(state, look(torch.from_numpy(pool.x))).cpu(),
            torch.from_numpy(pool.contributor == client.id),
        )
    if np.isfinite(threshold):
        client.metrics["threshold"] = threshold
    return mask


def answer(
    client: Client, model: Classifier, pool: Pool, mask: Tensor
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The ids [m] and released values [m, classes] of the pool samples under `mask`."""
    ids = mask.nonzero().squeeze(1)
    with client.timed("answer"):
        samples = torch.from_numpy(pool.x)[ids].to(client.device)
        model.eval()
        values = client.scenario.method.release.release(training.predict(model, samples))
    return ids.numpy().astype(np.int32), values.cpu().numpy()


def learn_consensus(client: Client, model: Classifier, pool: Pool, consensus: Consensus) -> None:
    """Distil the consensus into the model in place; nothing to learn leaves it as it is."""
    method = client.scenario.method
    x = torch.from_numpy(pool.x)[torch.from_numpy(consensus.ids).long()].to(client.device)
    target = method.release.target(torch.from_numpy(consensus.values)).to(client.device)
    with client.timed("distill"):
        loss = training.fit(
            model,
            x,
            target,
            method.distill.loss,
            client.scenario.training.distill,
            client.draws("distill"),
        )
    if len(x):
        client.metrics["distill_loss"] = loss


def measure(client: Client, model: Classifier) -> None:
    """Accuracy on the test set, on the client's own mix of classes, and on the validation set.

    `own_accuracy` weighs the test set's per-class accuracy by the client's class shares.
    """
    world, train = client.world, client.world.train
    with client.timed("evaluate"):
        per_class = training.class_accuracy(
            model, world.test.x.to(client.device), world.test.y.to(client.device), train.n_classes
        )
        n_test = np.bincount(world.test.y.numpy(), minlength=train.n_classes)
        n_own = np.where(n_test > 0, world.class_counts[client.id], 0)
        client.metrics["accuracy"] = float(np.nansum(per_class * n_test) / n_test.sum())
        if n_own.sum():
            client.metrics["own_accuracy"] = float(np.nansum(per_class * n_own) / n_own.sum())
        ids = torch.from_numpy(world.validation_ids)
        if len(ids):
            x, y = train.x[ids].to(client.device), train.y[ids].to(client.device)
            model.eval()
            hits = (training.predict(model, x).argmax(dim=1) == y).double()
            client.metrics["validation_accuracy"] = float(hits.mean())

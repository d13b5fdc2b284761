"""What a client does in each step of a round: pure functions from its state to a new one.

A client's view of the world is its own private data, the proxy pool without labels, and the test
set that a simulation lends it to be measured by.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd import cohort, training
from fedkd.config import Phase, Scenario
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
        self.took(phase, time.perf_counter() - start)

    def took(self, phase: str, seconds: float) -> None:
        """Add to the metric `phase_s`."""
        key = f"{phase}_s"
        self.metrics[key] = self.metrics.get(key, 0.0) + seconds

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


def with_model(state: Mapping[str, Tensor], model: Classifier) -> dict[str, Tensor]:
    """A state with the model's tensors replaced."""
    rest = {k: v for k, v in state.items() if not k.startswith("model.")}
    return rest | {f"model.{k}": v.detach().cpu() for k, v in model.state_dict().items()}


def learn_private(clients: Sequence[Client], models: Sequence[Classifier]) -> None:
    """Train each model in place on its client's private data."""
    data = [client.world.client(client.id) for client in clients]
    losses = _fit(
        "train",
        clients,
        models,
        [x.to(client.device) for client, (x, _) in zip(clients, data, strict=True)],
        [y.to(client.device) for client, (_, y) in zip(clients, data, strict=True)],
        training.cross_entropy,
        clients[0].scenario.training.local,
    )
    for client, (x, _), loss in zip(clients, data, losses, strict=True):
        client.metrics["train_loss"] = loss
        client.metrics["n_private"] = len(x)


def _fit(
    phase_name: str,
    clients: Sequence[Client],
    models: Sequence[Classifier],
    xs: Sequence[Tensor],
    targets: Sequence[Tensor],
    loss: training.Loss,
    phase: Phase,
) -> list[float]:
    """As `training.fit` for each client; `grid.block` clients together where that is above one."""
    losses = [math.nan] * len(clients)
    learning = [i for i, x in enumerate(xs) if len(x)]
    at_most = clients[0].scenario.grid.block
    sizes = [len(xs[i]) for i in learning]
    for block in cohort.blocks([models[i] for i in learning], sizes, at_most):
        ids = [learning[i] for i in block]
        draws = [clients[i].draws(phase_name) for i in ids]
        start = time.perf_counter()
        if len(ids) == 1:
            (i,) = ids
            losses[i] = training.fit(models[i], xs[i], targets[i], loss, phase, draws[0])
        else:
            together = cohort.Cohort([models[i] for i in ids])
            found = together.fit(
                [xs[i] for i in ids], [targets[i] for i in ids], loss, phase, draws
            )
            for i, value in zip(ids, found, strict=True):
                losses[i] = value
        for i in ids:
            clients[i].took(phase_name, (time.perf_counter() - start) / len(ids))
            clients[i].metrics[f"{phase_name}_samples"] = training.n_learnt(len(xs[i]), phase)
    return losses


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


def learn_consensus(
    clients: Sequence[Client], models: Sequence[Classifier], pool: Pool, consensus: Consensus
) -> None:
    """Distil the consensus into each model in place; nothing to learn leaves it as it is."""
    first = clients[0]
    method = first.scenario.method
    x = torch.from_numpy(pool.x)[torch.from_numpy(consensus.ids).long()].to(first.device)
    target = method.release.target(torch.from_numpy(consensus.values)).to(first.device)
    losses = _fit(
        "distill",
        clients,
        models,
        [x] * len(clients),
        [target] * len(clients),
        method.distill.loss,
        first.scenario.training.distill,
    )
    for client, loss in zip(clients, losses, strict=True):
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
        n_own = np.where(n_test > 0, world.counts(client.id), 0)
        client.metrics["accuracy"] = float(np.nansum(per_class * n_test) / n_test.sum())
        if n_own.sum():
            client.metrics["own_accuracy"] = float(np.nansum(per_class * n_own) / n_own.sum())
        ids = torch.from_numpy(world.validation_ids)
        if len(ids):
            x, y = train.x[ids].to(client.device), train.y[ids].to(client.device)
            model.eval()
            hits = (training.predict(model, x).argmax(dim=1) == y).double()
            client.metrics["validation_accuracy"] = float(hits.mean())

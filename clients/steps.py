"""What a client does in each step of a round: pure functions from its state to a new one.

A client's view of the world is its own private data, the proxy pool without labels, and the test
set that a simulation lends it to be measured by. What a scenario's privacy settings change in it is
in `clients.guard`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients import guard, labels
from clients.client import Client, ProxySet
from fedkd import cohort, protection, quality, training
from fedkd.config_sections import Phase
from fedkd.data.federation import Federation
from fedkd.errors import PayloadError
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.label_means import Peers
from fedkd.lesson import lesson, target_of
from fedkd.models.zoo import Classifier
from privacy import swing
from privacy.audit.exposure import exposures


def _blocks(
    phase: str, clients: Sequence[Client], sizes: Sequence[int]
) -> Iterator[tuple[list[int], list[Client]]]:
    """Indices and clients that one call serves; each takes an equal part of the block's time.

    Args: sizes: how many records each client looks at; those with none are left out.
    """
    some = [i for i, size in enumerate(sizes) if size]
    kinds = [clients[i].architecture for i in some]
    at_most = clients[0].scenario.blocks
    for block in cohort.blocks(kinds, [sizes[i] for i in some], at_most):
        ids = [some[i] for i in block]
        start = time.perf_counter()
        yield ids, [clients[i] for i in ids]
        seconds = (time.perf_counter() - start) / len(ids)
        for i in ids:
            clients[i].took(phase, seconds)


def begin(clients: Sequence[Client], models: Sequence[Classifier], proxy: ProxySet | None) -> None:
    """What new models learn before their first round, in place: public labels, then private data.

    Args: proxy: with the labels, where `training.pretrain` says that they are learnt.
    Raises: PayloadError for a label that is no class.
    """
    run, loss = clients[0].scenario.training, training.cross_entropy
    known = clients[0].world.train.n_classes
    if run.pretrain is not None:
        if proxy is None or proxy.labels is None or int(proxy.labels.max()) >= known:
            raise PayloadError("the proxy pool came without labels of the known classes")
        x, y = [proxy.x] * len(clients), [proxy.labels] * len(clients)
        _fit("pretrain", clients, models, x, y, loss, run.pretrain)
    if run.warmup:
        xs, ys = _private(clients)
        phase = run.local.model_copy(update={"epochs": run.warmup})
        _fit("warmup", clients, models, xs, ys, loss, phase)


def learn_private(
    clients: Sequence[Client], models: Sequence[Classifier], others: Sequence[Peers] = ()
) -> None:
    """Train each model in place on its client's private data, as the privacy settings say.

    Args: others: what each client's peers say of its labels, where the second term is of that.
    """
    xs, ys = _private(clients)
    scenario = clients[0].scenario
    phase = scenario.training.local
    if isinstance(scenario.privacy.training, protection.PlainTraining):
        pull = scenario.method.regulariser.mu
        loss: training.Loss = training.cross_entropy
        if others:
            loss, ys = labels.lesson(clients, ys, others)
        losses = _fit("train", clients, models, xs, ys, loss, phase, pull=pull)
        for client, value in zip(clients, losses, strict=True):
            client.metrics["train_loss"] = value
    else:
        for client, model, x, y in zip(clients, models, xs, ys, strict=True):
            start = time.perf_counter()
            client.metrics["train_samples"] = guard.learn(client, model, x, y)
            client.took("train", time.perf_counter() - start)
    for client, x in zip(clients, xs, strict=True):
        client.metrics["n_private"] = len(x)


def _private(clients: Sequence[Client]) -> tuple[list[Tensor], list[Tensor]]:
    """Each client's private records and labels, on its device."""
    data = [client.world.client(client.id) for client in clients]
    xs = [x.to(client.device) for client, (x, _) in zip(clients, data, strict=True)]
    ys = [y.to(client.device) for client, (_, y) in zip(clients, data, strict=True)]
    return xs, ys


def _fit(
    phase_name: str,
    clients: Sequence[Client],
    models: Sequence[Classifier],
    xs: Sequence[Tensor],
    targets: Sequence[Tensor],
    loss: training.Loss,
    phase: Phase,
    rows: Tensor | None = None,
    weight: Tensor | None = None,
    pull: float = 0.0,
) -> list[float]:
    """As `training.fit` for each client; `grid.block` clients together where that is above one."""
    losses = [math.nan] * len(clients)
    for ids, block in _blocks(phase_name, clients, [len(mine) for mine in targets]):
        draws = [client.draws(phase_name) for client in block]
        if len(ids) == 1:
            (i,) = ids
            losses[i] = training.fit(
                models[i],
                xs[i],
                targets[i],
                loss,
                phase,
                draws[0],
                rows=rows,
                weight=weight,
                pull=pull,
            )
        else:
            found = cohort.Cohort([models[i] for i in ids]).fit(
                [xs[i] for i in ids],
                [targets[i] for i in ids],
                loss,
                phase,
                draws,
                rows=rows,
                weight=weight,
                pull=pull,
            )
            for i, value in zip(ids, found, strict=True):
                losses[i] = value
        for i in ids:
            learnt = training.n_learnt(len(targets[i]), phase)
            clients[i].metrics[f"{phase_name}_samples"] = learnt
    return losses


def answer(
    clients: Sequence[Client],
    models: Sequence[Classifier],
    proxy: ProxySet,
    masks: Sequence[Tensor],
    release: Callable[[int, Tensor, Tensor], Tensor],
) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Each client's ids [m * L] and released values [m * L, classes] of the m records it answers.

    Ids are those of positions, and every position of a record is answered; of images, L is 1.
    Args: release: what leaves, of the client's place among `clients`, the ids of its records [m]
        and its logits [m * L, classes].
    """
    rows = [mask.nonzero().squeeze(1) for mask in masks]
    n_classes = clients[0].world.train.n_classes
    values = [np.empty((0, n_classes), dtype=np.float32) for _ in clients]
    for ids, _ in _blocks("answer", clients, [len(mine) for mine in rows]):
        block = [models[i].eval() for i in ids]
        everything = all(len(rows[i]) == len(proxy.x) for i in ids)
        if len(ids) == 1:
            x = proxy.x if everything else proxy.x[rows[ids[0]].to(proxy.x.device)]
            found = [training.predict(block[0], x)]
        elif everything:
            found = list(cohort.Cohort(block).predict(proxy.x))
        else:
            mine = [rows[i].to(proxy.x.device) for i in ids]
            found = cohort.Cohort(block).predict_rows(proxy.x, mine)
        for i, logits in zip(ids, found, strict=True):
            values[i] = release(i, rows[i], logits.flatten(0, -2)).cpu().numpy()
    within = np.arange(proxy.positions, dtype=np.int32)
    positions = [
        (mine.numpy().astype(np.int32)[:, None] * proxy.positions + within).reshape(-1)
        for mine in rows
    ]
    return list(zip(positions, values, strict=True))


def learn_consensus(
    clients: Sequence[Client],
    models: Sequence[Classifier],
    proxy: ProxySet,
    consensus: Consensus,
) -> None:
    """Distil the consensus into each model in place; nothing to learn leaves it as it is."""
    first = clients[0]
    method = first.scenario.method
    ids, loss = torch.from_numpy(consensus.ids).long(), method.distill.loss
    target = target_of(method, consensus)
    if isinstance(first.scenario.privacy.release, protection.Swing):
        target, loss = guard.lesson(first, proxy, ids, target), swing.loss
    rows, targets, weight = lesson(ids, target, proxy.positions)
    targets = targets.to(first.device)
    losses = _fit(
        "distill",
        clients,
        models,
        [proxy.x] * len(clients),
        [targets] * len(clients),
        loss,
        first.scenario.training.distill,
        rows.to(first.device),
        None if weight is None else weight.to(first.device),
    )
    for client, value in zip(clients, losses, strict=True):
        client.metrics["distill_loss"] = value


def measure(clients: Sequence[Client], models: Sequence[Classifier]) -> None:
    """Accuracy on the test set, on the client's own mix of strata, and on the validation set.

    `own_accuracy` weighs the test set's accuracy within each stratum (of images, the class) by the
    client's shares of them. Of texts, accuracy is over positions, and `perplexity` is e to the
    mean cross-entropy of the test set's positions in nats. In the last round, also the quality of
    the answers: Brier score and, of images, calibration and records found by class.
    """
    world, device = clients[0].world, clients[0].device
    x, y = _test_set(world, device)
    validation_x, validation_y = _validation_set(world, device)
    strata, n_strata = world.test.strata, world.test.n_strata
    for ids, block in _blocks("evaluate", clients, [len(x)] * len(clients)):
        learnt = [models[i].eval() for i in ids]
        for client, graded in zip(block, _grades(learnt, x, y), strict=True):
            hits, nats, positions, confidence, brier = (
                column.double().cpu().numpy() for column in graded
            )
            client.metrics["accuracy"] = float(hits.sum() / positions.sum())
            right, of = (np.bincount(strata, by, n_strata) for by in (hits, positions))
            own = np.where(of > 0, world.counts(client.id), 0)
            if own.sum():
                share = own / own.sum()
                client.metrics["own_accuracy"] = float((right / np.maximum(of, 1)) @ share)
            if y.ndim == 2:
                client.metrics["perplexity"] = math.exp(nats.sum() / positions.sum())
            if client.round < client.scenario.training.rounds:
                continue
            client.metrics["brier"] = float(brier.sum() / positions.sum())
            if y.ndim == 1:
                found = quality.calibration(confidence, hits)
                client.metrics.update(zip(("ece", "ece_low", "ece_high"), found, strict=True))
                client.by_class["class_hits"] = right.astype(int).tolist()
                client.by_class["class_seen"] = of.astype(int).tolist()
        if len(validation_x):
            for client, graded in zip(
                block, _grades(learnt, validation_x, validation_y), strict=True
            ):
                share_right = graded.hits.sum().double() / graded.positions.sum()
                client.metrics["validation_accuracy"] = float(share_right)
        if world.canaries and world.tokens and block[0].round == block[0].scenario.training.rounds:
            for client, model in zip(block, learnt, strict=True):
                client.metrics.update(_exposure(client, model))


def _exposure(client: Client, model: Classifier) -> dict[str, float]:
    """Mean exposure in bits under a client's model, empirical: of its own canaries, of those that
    others hold (each that is repeated most), and of the controls that nobody holds.
    """
    canaries, tokens = client.world.canaries, client.world.tokens
    assert tokens is not None
    most = max(canary.repetitions for canary in canaries)
    groups = {
        "exposure_own": [c for c in canaries if c.copies(client.id) == most],
        "exposure_peers": [c for c in canaries if c.repetitions == most > c.copies(client.id)],
        "exposure_controls": [c for c in canaries if c.repetitions == 0],
    }
    return {
        name: float(np.mean([found.bits for found in exposures(model, group, tokens)]))
        for name, group in groups.items()
        if group
    }


def _grades(models: Sequence[Classifier], x: Tensor, y: Tensor) -> list[training.Grades]:
    if len(models) == 1:
        return [training.grades(models[0], x, y)]
    return cohort.Cohort(models).grades(x, y)


@lru_cache(maxsize=4)
def _test_set(world: Federation, device: torch.device) -> tuple[Tensor, Tensor]:
    """The test set as models eat it, once a process and not once a client."""
    return training.inputs(world.test.x.to(device)), world.test.y.to(device)


@lru_cache(maxsize=4)
def _validation_set(world: Federation, device: torch.device) -> tuple[Tensor, Tensor]:
    x, y = world.train.rows(world.validation_ids)
    return training.inputs(x.to(device)), y.to(device)

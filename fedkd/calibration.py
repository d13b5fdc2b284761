"""How many clients of one architecture should be advanced together, here and now? Measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedkd.cohort import Cohort
from fedkd.config_sections import Phase
from fedkd.models.zoo import Classifier
from fedkd.training import (
    cross_entropy,
    evaluation_batch,
    fit,
    inputs,
    predict,
    record_losses,
)

CANDIDATES = (1, 8, 32, 128)
STEPS = 6


def calibrate(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    phase: Phase,
    *,
    n_steps: int,
    n_predicted: int,
    most: int,
    budget_bytes: int,
) -> int:
    """The candidate that spends the least time a client on a round's steps and predictions.

    Args: model: on the device; only copies of it are trained. x and y: one batch of records there
        and their labels. n_steps and n_predicted: batches learnt and records predicted by a client
        in a round. most: no more clients than this. budget_bytes: no block that needs more memory,
        except that one client alone is always allowed.
    What caches make of a larger block shows in the times.
    """
    need = bytes_a_client(model, x, y, phase)
    fitting = [n for n in CANDIDATES if n <= most and n * need <= budget_bytes]
    seconds = {
        n: _seconds_a_client(model, x, y, phase, n, n_steps, n_predicted) for n in fitting or [1]
    }
    return min(seconds, key=lambda n: seconds[n])


def bytes_a_client(model: Classifier, x: Tensor, y: Tensor, phase: Phase) -> int:
    """About how much memory a client takes up in a block, in bytes.

    Its weights are held in its model and in the stack, beside gradients and the optimiser's
    moments. What the backward pass keeps of a batch is measured, and counted twice for the
    gradients that pass through it; a block of predictions keeps at most as much of each record.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        record_losses(cross_entropy, model(inputs(x)), y)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    moments = 2 if phase.optimizer == "adam" else int(phase.momentum > 0)
    passing = sum(kept.values()) * max(2.0, evaluation_batch(model, x) / len(x))
    return int(weights * (3 + moments) + passing)


def _seconds_a_client(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    phase: Phase,
    n_clients: int,
    n_steps: int,
    n_predicted: int,
) -> float:
    steps = phase.model_copy(update={"epochs": STEPS, "batch_size": len(x)})
    together = [copy.deepcopy(model) for _ in range(n_clients)]
    draws = [np.random.default_rng(0) for _ in together]
    looked_at = evaluation_batch(model, x)
    pool = x.repeat(-(-looked_at // len(x)), 1, 1, 1)[:looked_at]

    def learn() -> None:
        if n_clients == 1:
            fit(together[0], x, y, cross_entropy, steps, draws[0])
        else:
            Cohort(together).fit([x] * n_clients, [y] * n_clients, cross_entropy, steps, draws)

    def look() -> None:
        if n_clients == 1:
            predict(together[0], pool)
        else:
            Cohort(together).predict(pool)

    spent = _seconds(learn, x.device) * n_steps / STEPS
    if n_predicted:
        spent += _seconds(look, x.device) * n_predicted / len(pool)
    return spent / n_clients


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Wall time of the second of two times."""
    for _ in ("warm-up", "counted"):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    return seconds

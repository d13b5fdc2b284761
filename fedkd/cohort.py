"""Many clients of one architecture, trained together: their weights stacked, one kernel for all.

What one client learns is what `fedkd.training` teaches it alone, up to rounding: the same batches
in the same order, the same losses, and an optimiser that works element by element, so that one
over stacked weights is one for each client.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from fedkd.config import Phase
from fedkd.data.dataset import as_input
from fedkd.models.zoo import Classifier, Shape
from fedkd.training import EVALUATION_BATCH, Loss, batches, cross_entropy, fit, optimizer


class Cohort:
    """Clients' models of one architecture as one stacked model; `models` get its weights back."""

    def __init__(self, models: Sequence[Classifier]) -> None:
        self._models = models
        stacked, buffers = stack_module_state(list(models))
        if buffers:
            raise ValueError("a model with buffers (such as BatchNorm) cannot join a cohort")
        self._weights = {name: weight.detach().requires_grad_() for name, weight in stacked.items()}
        self._shell = copy.deepcopy(models[0]).to("meta")

    def logits(self, x: Tensor) -> Tensor:
        """Logits [clients, b, classes] of inputs [clients, b, c, h, w]."""

        def one(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
            out: Tensor = functional_call(self._shell, weights, (inputs,))
            return out

        return torch.vmap(one)(self._weights, x)

    def fit(
        self,
        x: Sequence[Tensor],
        targets: Sequence[Tensor],
        loss: Loss,
        phase: Phase,
        draws: Sequence[np.random.Generator],
    ) -> list[float]:
        """As `training.fit` for each client i on x[i] [n_i, c, h, w] and targets[i] [n_i, …].

        Batches of clients with fewer samples are padded with samples of weight zero; a client that
        has had all its batches keeps the weights that it had then.
        Returns: each client's mean loss over all samples seen.
        """
        plans = [list(batches(len(mine), phase, draw)) for mine, draw in zip(x, draws, strict=True)]
        n_steps = [len(plan) for plan in plans]
        step_with = optimizer(list(self._weights.values()), phase)
        device = x[0].device
        totals = torch.zeros(len(x), device=device)
        done: dict[int, dict[str, Tensor]] = {}
        for step in range(max(n_steps)):
            ids, weight = _padded(plans, step)
            inputs = torch.stack([mine[i] for mine, i in zip(x, ids, strict=True)])
            wanted = torch.stack([mine[i] for mine, i in zip(targets, ids, strict=True)])
            weight = weight.to(device)
            logits = self.logits(as_input(inputs))
            each = loss(logits.flatten(0, 1), wanted.flatten(0, 1)).view_as(weight) * weight
            totals += each.detach().sum(dim=1)
            per_client = each.sum(dim=1) / weight.sum(dim=1).clamp_min(1)
            step_with.zero_grad(set_to_none=True)
            per_client.sum().backward()  # type: ignore[no-untyped-call]
            step_with.step()
            for client in (i for i, n in enumerate(n_steps) if n == step + 1 < max(n_steps)):
                done[client] = {k: w[client].detach().clone() for k, w in self._weights.items()}
        self._hand_back(done)
        seen = [sum(map(len, plan)) for plan in plans]
        return [float(total) / n if n else math.nan for total, n in zip(totals, seen, strict=True)]

    def _hand_back(self, done: dict[int, dict[str, Tensor]]) -> None:
        with torch.no_grad():
            for client, weights in done.items():
                for name, weight in weights.items():
                    self._weights[name][client] = weight
            for client, model in enumerate(self._models):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self._weights[name][client])

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits [clients, n, classes] of samples [n, c, h, w] that all clients look at."""
        n_clients = len(self._models)
        blocks = [
            self.logits(as_input(block).expand(n_clients, *block.shape))
            for block in torch.split(x, EVALUATION_BATCH)
        ]
        return torch.cat(blocks, dim=1)


def _padded(plans: Sequence[Sequence[NDArray[np.int64]]], step: int) -> tuple[list[Tensor], Tensor]:
    """Each client's batch of a step as ids [b] of one length, and weights [clients, b]."""
    taken = [plan[step] if step < len(plan) else plan[0][:0] for plan in plans]
    size = max(map(len, taken))
    weight = torch.zeros(len(plans), size)
    ids = []
    for client, batch in enumerate(taken):
        weight[client, : len(batch)] = 1
        ids.append(torch.from_numpy(np.pad(batch, (0, size - len(batch)))))
    return ids, weight


def blocks(models: Sequence[nn.Module], sizes: Sequence[int], at_most: int) -> list[list[int]]:
    """Clients by architecture, then by size, `at_most` a block: so little padding is wasted."""
    kinds: dict[str, list[int]] = {}
    for client, model in enumerate(models):
        shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        kinds.setdefault(f"{model} {shapes}", []).append(client)
    cut: list[list[int]] = []
    for alike in kinds.values():
        by_size = sorted(alike, key=lambda client: (-sizes[client], client))
        cut += [by_size[i : i + at_most] for i in range(0, len(by_size), at_most)]
    return cut


CANDIDATES = (1, 8, 32, 128)
CALIBRATION_STEPS = 6


def calibrate(models: Sequence[Classifier], shape: Shape, phase: Phase, most: int) -> int:
    """How many clients should learn together: what trained most samples a second just now.

    Args: models: one of each architecture, on the device; shape: of a sample [c, h, w]; most: no
        block above this many clients. Each candidate trains copies of the models for a few steps.
    """
    found = {n: _seconds_a_client(models, shape, phase, n) for n in CANDIDATES if n <= max(most, 1)}
    return min(found, key=lambda n: found[n])


def _seconds_a_client(
    models: Sequence[Classifier], shape: Shape, phase: Phase, n_clients: int
) -> float:
    n = phase.batch_size
    steps = phase.model_copy(update={"epochs": CALIBRATION_STEPS})
    total = 0.0
    for model in models:
        device = next(model.parameters()).device
        x = torch.zeros(n, *shape, device=device)
        y = torch.zeros(n, dtype=torch.int64, device=device)
        together = [copy.deepcopy(model) for _ in range(n_clients)]
        draws = [np.random.default_rng(0) for _ in together]
        for _ in ("warm-up", "counted"):
            start = time.perf_counter()
            if n_clients == 1:
                fit(together[0], x, y, cross_entropy, steps, draws[0])
            else:
                cohort = Cohort(together)
                cohort.fit([x] * n_clients, [y] * n_clients, cross_entropy, steps, draws)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
        total += seconds / n_clients
    return total

"""How many clients of each model a grid advances together, where it may choose."""

from __future__ import annotations

from statistics import mean

import numpy as np
import torch

from fedkd import device
from fedkd.calibration import calibrate
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.models import zoo
from fedkd.training import n_steps
from scenarios.grids.workers import n_processes

CLIENTS_LOOKED_AT = 20


def calibrated(scenario: Scenario) -> Scenario:
    """The scenario with measured blocks where it asks for them; kept with the run from then on."""
    if all(scenario.blocks.values()):
        return scenario
    world, training = scenario.world(scenario.seeds[0]), scenario.training
    n_private, n_proxy = _sizes(world)
    steps = n_steps(n_private, training.local)
    if n_proxy:
        steps += n_steps(n_proxy, training.distill)
    target = device.resolve(scenario.device)
    torch.set_num_threads(scenario.threads)
    train = world.train
    batch = np.arange(min(training.local.batch_size, len(train)))
    x, y = (tensor.to(target) for tensor in train.rows(batch))
    channels, height, width = train.x.shape[1:]
    shape = (channels, height, width)

    most = world.n_clients
    if scenario.grid.name != "cohort":  # each worker gets two blocks or more
        most = max(1, most // (2 * n_processes(scenario.grid, most)))

    def measured(name: str) -> int:
        model = zoo.build(name, shape, train.n_classes, torch.Generator(), train.x.dtype)
        return calibrate(
            model.to(target),
            x,
            y,
            training.local,
            n_steps=steps,
            n_predicted=n_proxy,
            most=most,
            budget_bytes=device.budget_bytes(target),
        )

    blocks = {name: given or measured(name) for name, given in scenario.blocks.items()}
    block = tuple(blocks[name] for name in scenario.model.names)
    return scenario.on(scenario.grid.model_copy(update={"block": block}))


def _sizes(world: Federation) -> tuple[int, int]:
    """About how many private and proxy records a client looks at, from the first few clients."""
    first = range(min(world.n_clients, CLIENTS_LOOKED_AT))
    n_private = max(1, round(mean(len(world.private[i]) for i in first)))
    if world.public_x is not None:
        return n_private, len(world.public_x)
    return n_private, round(mean(len(world.contributed[i]) for i in first) * world.n_clients)

"""A plain loop over clients, as a first script has it: DataLoader, contiguous memory, no tuning.

`python benchmarks/rivals/plain_loop.py FOLDER`, where FOLDER is a work of `scenarios.bench.work`.
The same arithmetic as the grids: an epoch of SGD, then answers and two batches of distillation,
or the average of the weights.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from work import Clock, network, parts, settings


def learn(model: nn.Module, loader: DataLoader, rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def answer(model: nn.Module, pool: Tensor) -> Tensor:
    with torch.no_grad():
        loader = DataLoader(TensorDataset(pool), batch_size=512)
        return torch.cat([torch.softmax(model(images), dim=1) for (images,) in loader])


def main(folder: str) -> None:
    torch.set_num_threads(1)
    work = settings(folder)
    x, y, pool = parts(folder)
    torch.manual_seed(work.seed)
    server = network(work.model, tuple(x.shape[2:]))
    clock = Clock()
    clock.tick()
    for _ in range(work.rounds):
        total: dict[str, Tensor] = {}
        for client in range(work.clients):
            data = TensorDataset(x[client], y[client])
            model = network(work.model, tuple(x.shape[2:]))
            model.load_state_dict(server.state_dict())
            learn(model, DataLoader(data, batch_size=work.batch, shuffle=True), work.rate)
            if work.average:
                for name, weight in model.state_dict().items():
                    total[name] = total.get(name, 0) + weight / work.clients
                continue
            answers = answer(model, pool)
            total["answers"] = total.get("answers", 0) + answers / work.clients
            first = TensorDataset(pool[: 2 * work.batch], answers[: 2 * work.batch])
            learn(model, DataLoader(first, batch_size=work.batch), work.rate)
        if work.average:
            server.load_state_dict(total)
        clock.tick()
    print(clock.report(work.clients))


if __name__ == "__main__":
    main(*sys.argv[1:])

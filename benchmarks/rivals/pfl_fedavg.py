"""FedAvg in Apple's pfl 0.6.0, as its PyTorch tutorials write it: one model a process, in place.

`python benchmarks/rivals/pfl_fedavg.py FOLDER`, where FOLDER is a work of `scenarios.bench.work`;
two processes: `python -m torch.distributed.run --nproc_per_node 2 benchmarks/rivals/pfl_fedavg.py
FOLDER`. The same data, model, optimiser and batches as the other engines, every client in every
round. pfl takes a client's samples in the same order in every round and keeps its batches; the
datasets are made once, which is to pfl's advantage.
"""

from __future__ import annotations

import itertools
import logging
import sys

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import get_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from work import Clock, network, parts, settings


class Classifier(nn.Module):
    """What pfl wants of a model: a loss and metrics."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.net.train()
        return F.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        self.net.eval()
        loss = F.cross_entropy(self.net(x), y, reduction="sum").item()
        return {"loss": Weighted(loss, len(y))}


class Ticks(TrainingProcessCallback):
    """Tells the clock of every round."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self._clock.tick()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self._clock.tick()
        return False, Metrics()


def main(folder: str) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    work, clock = settings(folder), Clock()
    x, y, _ = parts(folder)
    users = {
        client: Dataset((x[client], y[client]), user_id=client) for client in range(work.clients)
    }
    everyone = itertools.cycle(range(work.clients))
    data = FederatedDataset(users.__getitem__, lambda: next(everyone))
    torch.manual_seed(work.seed)
    net = Classifier(network(work.model, tuple(x.shape[2:])))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds,  # round 0 only, which is not counted
            train_cohort_size=work.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=work.batch, local_num_epochs=1, local_learning_rate=work.rate
        ),
        NNEvalHyperParams(local_batch_size=512),
        [Ticks(clock)],
        send_metrics_to_platform=False,
    )
    if get_ops().distributed.global_rank == 0:
        print(clock.report(work.clients))


if __name__ == "__main__":
    main(*sys.argv[1:])

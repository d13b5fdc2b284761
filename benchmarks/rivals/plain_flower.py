"""FedAvg as Flower's tutorials write it: NumPyClient, DataLoader, one message a client and round.

`python benchmarks/rivals/plain_flower.py FOLDER`, where FOLDER is a work of `scenarios.bench.work`.
Runs on Flower's simulation engine with one CPU a client. The same data, model, optimiser and
batches as the other engines; an actor reads the data once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import torch
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from torch.utils.data import DataLoader, TensorDataset
from work import Clock, network, parts, settings


def client_app(folder: str) -> ClientApp:
    """The tutorial's client: loads its part, trains with a DataLoader, returns its weights."""

    def client_fn(context: Context) -> Any:
        torch.set_num_threads(1)
        work = settings(folder)
        x, y, _ = parts(folder)
        client = int(context.node_config["partition-id"])
        data = TensorDataset(x[client], y[client])
        loader = DataLoader(data, batch_size=work.batch, shuffle=True)
        net = network(work.model, tuple(x.shape[2:]))

        class Client(NumPyClient):
            def fit(self, parameters: Any, config: Any) -> Any:
                names = net.state_dict().keys()
                tensors = {k: torch.tensor(v) for k, v in zip(names, parameters, strict=True)}
                net.load_state_dict(tensors)
                optimizer = torch.optim.SGD(net.parameters(), lr=work.rate)
                for images, labels in loader:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(images), labels).backward()
                    optimizer.step()
                return [v.numpy() for v in net.state_dict().values()], len(data), {}

        return Client().to_client()

    return ClientApp(client_fn=client_fn)


def main(folder: str) -> None:
    work, clock = settings(folder), Clock()
    x, _, _ = parts(folder)
    torch.manual_seed(work.seed)
    net = network(work.model, tuple(x.shape[2:]))
    start = ndarrays_to_parameters([v.numpy() for v in net.state_dict().values()])

    def note(server_round: int, parameters: Any, config: Any) -> None:
        clock.tick()

    def server_fn(context: Context) -> ServerAppComponents:
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=work.clients,
            min_available_clients=work.clients,
            initial_parameters=start,
            evaluate_fn=note,
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=work.rounds))

    logging.getLogger("flwr").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(
            ServerApp(server_fn=server_fn),
            client_app(folder),
            num_supernodes=work.clients,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0},
                "init_args": {"log_to_driver": False, "logging_level": logging.ERROR},
            },
        )
    print(clock.report(work.clients))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""FedAvg as Flower's tutorials write it: NumPyClient, DataLoader, one message a client and round.

Runs on Flower's simulation engine with one CPU a client. The same data, model, optimiser and
batches as `benchmarks/rounds.py`.
"""

from __future__ import annotations

import logging
import time
import warnings
from itertools import pairwise
from typing import Any

from scenarios import quiet  # noqa: F401  # before flwr

from flwr.app import Context  # isort: skip
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


def client_app(model: str, clients: int) -> ClientApp:
    """The tutorial's client: loads its part, trains with a DataLoader, returns its weights."""

    def client_fn(context: Context) -> Any:
        import torch
        from rounds import GRIDS, scenario
        from torch.utils.data import DataLoader, TensorDataset

        from fedkd.data.dataset import as_input
        from fedkd.models import zoo

        torch.set_num_threads(1)
        work = {"mlp": "W1", "cnn": "W2"}[model]
        world = scenario(work, clients, 1, "no-filter", GRIDS["inline"]).world(1)
        x, y = world.client(int(context.node_config["partition-id"]))
        loader = DataLoader(TensorDataset(as_input(x), y), batch_size=64, shuffle=True)
        net = zoo.build(model, (1, 28, 28), 10, torch.Generator())

        class Client(NumPyClient):
            def fit(self, parameters: Any, config: Any) -> Any:
                names = net.state_dict().keys()
                tensors = {k: torch.tensor(v) for k, v in zip(names, parameters, strict=True)}
                net.load_state_dict(tensors)
                optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
                for images, labels in loader:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(images), labels).backward()
                    optimizer.step()
                return [v.numpy() for v in net.state_dict().values()], len(y), {}

        return Client().to_client()

    return ClientApp(client_fn=client_fn)


def rounds_of(model: str, clients: int, rounds: int) -> list[float]:
    """Seconds of each round."""
    import torch
    from flwr.common import ndarrays_to_parameters
    from flwr.simulation import run_simulation

    from fedkd.models import zoo

    logging.getLogger("flwr").setLevel(logging.ERROR)
    ends: list[float] = []

    def note(server_round: int, parameters: Any, config: Any) -> None:
        ends.append(time.perf_counter())

    net = zoo.build(model, (1, 28, 28), 10, torch.Generator())
    start = ndarrays_to_parameters([v.numpy() for v in net.state_dict().values()])

    def server_fn(context: Context) -> ServerAppComponents:
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=clients,
            min_available_clients=clients,
            initial_parameters=start,
            evaluate_fn=note,
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(
            ServerApp(server_fn=server_fn),
            client_app(model, clients),
            num_supernodes=clients,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0},
                "init_args": {"log_to_driver": False, "logging_level": logging.ERROR},
            },
        )
    return [after - before for before, after in pairwise(ends)]

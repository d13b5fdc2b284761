"""Flower's own simulation engine: Ray actors carry out the messages.

It runs what `flwr run` runs, with the same engine, in this process. Clients keep their state in a
folder, since any actor may serve any client.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedkd.config_sections import Grid
from fedkd.errors import FedkdError


def run(server_app: ServerApp, client_app: ClientApp, n_clients: int, settings: Grid) -> None:
    """Run a ServerApp against a ClientApp on Flower's simulation engine.

    Raises: FedkdError if Ray is not installed; whatever the ServerApp raises.
    """
    try:
        import ray
    except ImportError:
        raise FedkdError(
            "the flower grid needs Ray", fix='pip install "fedkd[ray]", or grid.name = "inline"'
        ) from None
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)  # importing it sets the level back
    resources: Any = {"num_cpus": settings.client_cpus, "num_gpus": settings.client_gpus}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Ray's notice about accelerators
            run_simulation(
                server_app,
                client_app,
                num_supernodes=n_clients,
                backend_config={
                    "client_resources": resources,
                    "init_args": {"log_to_driver": False, "logging_level": logging.ERROR},
                },
            )
    finally:
        ray.shutdown()

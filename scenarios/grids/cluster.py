"""The Ray cluster of a run: attached to, or started on this machine, and left as it was found."""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clients
import fedkd
import privacy
import scenarios
import server
from fedkd.config_sections import Grid
from fedkd.errors import FedkdError
from scenarios.grids.workers import import_path, process_variables

ROOMS = (fedkd, privacy, clients, server, scenarios)
CONNECT_S = 5.0


@contextmanager
def attached(settings: Grid, threads: int) -> Iterator[None]:
    """Ray for the block: the cluster at `settings.address`, or one of this machine if empty.

    Our own code is shipped to the other machines, which need the same Python, Ray and packages.
    A Ray that was started here is ended with the block, also by Ctrl-C.
    Raises: FedkdError if Ray is not installed, or no cluster of its version is there.
    """
    try:
        import ray
    except ImportError:
        raise FedkdError(
            "the ray grid needs Ray", fix='pip install "fedkd[ray]", or grid.name = "workers"'
        ) from None
    variables = process_variables(threads)
    code: dict[str, Any] = {"env_vars": variables}
    if settings.address:
        _look_up(settings.address)
        code["py_modules"] = [str(Path(str(room.__file__)).parent) for room in ROOMS]
    else:
        variables |= import_path()
    try:
        _init(settings.address, code)
        yield
    finally:
        ray.shutdown()


def _init(address: str, code: dict[str, Any]) -> None:
    import ray

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Ray's notice about accelerators
            ray.init(
                address=address or "local",
                runtime_env=code,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if address else False,
            )
    except (ConnectionError, ValueError) as error:
        raise _nobody(address, error) from None
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        raise FedkdError(
            "the Ray cluster runs another version of Python or Ray",
            value=" ".join(str(error).split()),
            fix="install the same versions on all machines",
        ) from None


def _look_up(address: str) -> None:
    """Ray itself waits for minutes, and then ends the process, if nobody is at HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "://" in host:
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _nobody(address, error) from None


def _nobody(address: str, error: Exception) -> FedkdError:
    return FedkdError(
        f"no Ray cluster answers there ({error})",
        value=address,
        allowed='HOST:PORT, or "auto" for the one of this machine',
        fix="ray start --head, or leave grid.address empty",
    )


def n_rooms(settings: Grid) -> int:
    """How many workers the machines of the cluster can hold, others' work aside.

    Raises: FedkdError if that is none.
    """
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    most = sum(_fit(machine, settings) for machine in machines)
    if most < 1:
        sizes = [f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines]
        raise FedkdError(
            "no machine of the Ray cluster has room for a worker",
            value=", ".join(sizes),
            allowed=f"at least {settings.client_cpus} CPUs and {settings.client_gpus:g} GPUs",
            fix="lower grid.client_cpus or grid.client_gpus",
        )
    return most


def _fit(machine: dict[str, float], settings: Grid) -> int:
    """How many workers one machine can hold; a little more than exact, as 0.3 / 0.1 is less."""
    shares = [machine.get("CPU", 0.0) / settings.client_cpus]
    if settings.client_gpus:
        shares.append(machine.get("GPU", 0.0) / settings.client_gpus)
    return int(min(shares) + 1e-6)

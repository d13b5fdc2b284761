"""`fedkd track`: a run's rounds in TensorBoard, from its event logs, while it goes on or after."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedkd.files import is_locked, write
from scenarios.follow import follow
from scenarios.metrics import logs_of
from server.app import DONE

TOLD = "told"
"""In the folder of a cell: the newest round that was written, so that none is written twice."""


def track(run: Path, out: Path, *, wait: bool) -> int:
    """Write every number of every round that is new to `out`. Returns: how many rounds that were.

    Args: wait: whether to go on until the run is over. Raises: FedkdError for no run folder.
    """
    n_rounds = 0
    for (row, seed), log in logs_of(run).items():
        cell = out / row / f"seed-{seed}"

        def is_over(log: Path = log) -> bool:
            return not wait or (log.parent / DONE).exists() or not is_locked(run)

        done = int((cell / TOLD).read_text()) if (cell / TOLD).exists() else 0
        with SummaryWriter(str(cell)) as writer:
            for event in follow(log, is_over):
                if event["event"] != "round" or event["round"] <= done:
                    continue
                for key, value in event.items():
                    if isinstance(value, int | float) and key not in ("round", "event"):
                        writer.add_scalar(key, value, event["round"])
                writer.flush()
                write(cell / TOLD, str(event["round"]).encode())
                n_rounds += 1
    return n_rounds

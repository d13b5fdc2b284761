"""A process that runs cells: it gets them from a connection, and tells each round and the end.

Started as `python -m scenarios.compare.worker FD` by `scenarios.compare.run`; ends with it.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from fedkd.errors import FedkdError
from fedkd.processes import die_with_parent
from scenarios.simulate import Plan, run_cell
from server.events import Event


def main() -> None:
    """Serve until the other end closes the connection."""
    die_with_parent(signal.SIGKILL)
    connection = Connection(int(sys.argv[1]))
    with suppress(EOFError, ConnectionError):
        while True:
            plan, folder = connection.recv()
            connection.send(_carried_out(plan, folder, connection.send))


def _carried_out(plan: Plan, folder: Path, tell: Callable[[Event], None]) -> str:
    """Run a cell in its run folder; returns why it failed, or ""."""

    def listener(row: str, seed: int, event: Event) -> None:
        if event["event"] == "round":
            tell(event)

    try:
        plan.check()
        run_cell(plan, folder, listener)
        return ""
    except (EOFError, ConnectionError):
        raise
    except FedkdError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()

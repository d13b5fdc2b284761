"""A worker process: takes blocks of messages from a connection and sends the replies back.

Started as `python -m scenarios.grids.worker FD` by `scenarios.grids.workers`; ends with its server.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from scenarios import quiet  # noqa: F401  # before anything that imports flwr

from flwr.app import RecordDict  # isort: skip

from scenarios.grids.carrier import Carrier, problem_of


def main() -> None:
    """Serve until the other end closes the connection."""
    connection = Connection(int(sys.argv[1]))
    try:
        try:
            carrier = Carrier(connection.recv())
        except Exception as error:
            connection.send(problem_of(error))
            return
        connection.send("")
        content = RecordDict()
        while True:
            metadata, new_content = connection.recv()
            content = content if new_content is None else new_content
            connection.send(carrier.carry_out(metadata, content))
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main()

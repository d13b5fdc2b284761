"""A worker process: takes messages from a connection, carries them out, sends the replies back.

Started as `python -m scenarios.grids.worker FD` by `scenarios.grids.workers`; ends with its server.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from scenarios import quiet  # noqa: F401  # before anything that imports flwr

from flwr.app import RecordDict  # isort: skip
from flwr.app.message.message import make_message

from scenarios.grids.nodes import Nodes, app_at


def main() -> None:
    """Serve until the other end closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    connection = Connection(int(sys.argv[1]))
    try:
        app, n_clients = connection.recv()
        nodes = Nodes(app_at(app), n_clients)
        content = RecordDict()
        while True:
            metadata, new_content = connection.recv()
            content = content if new_content is None else new_content
            connection.send(nodes.carry_out(make_message(metadata, content)))
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main()

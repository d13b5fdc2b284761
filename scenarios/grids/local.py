"""What our two grids on one machine share: numbering, waiting messages, Flower's abstract parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from scenarios.grids.nodes import FIRST_NODE_ID, RUN_ID, identify
from server.plain_grid import PlainGrid


class LocalGrid(PlainGrid):
    """A Flower Grid of nodes that are always there. A subclass carries the messages."""

    def __init__(self, n_clients: int) -> None:
        identify()
        self._run = Run.create_empty(RUN_ID)
        self._nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + n_clients)
        self._numbers = itertools.count(1)

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._run = run

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._run

    def get_node_ids(self) -> Sequence[int]:
        """All nodes; none ever leaves. A range says that node i of it holds partition i."""
        return self._nodes

    def _number(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = f"m{next(self._numbers)}"
        return message.metadata.message_id


def serve(server_app: ServerApp, grid: Grid) -> None:
    """Run a ServerApp on a grid, in this thread."""
    server_app(
        grid,
        Context(
            run_id=RUN_ID,
            node_id=SUPERLINK_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config={},
        ),
    )

"""Ray actors as workers: many machines, or GPUs shared in fractions.

Each content is put into Ray's object store once and fetched once by each machine. An actor that
dies, alone or with its machine, is replaced as soon as the cluster has room; until then the others
do its work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import ServerApp

from fedkd.config import Scenario
from scenarios.grids.carrier import Answer, Carrier, Greeting, problem_of
from scenarios.grids.cluster import attached, n_rooms
from scenarios.grids.dealer import Block
from scenarios.grids.pool import PoolGrid, Worker, WorkerDied, run_on


class Actor:
    """What runs in the actor's process: a carrier, and nothing else."""

    def greet(self, greeting: Greeting) -> str:
        """Why this process cannot work, or ""."""
        try:
            self._carrier = Carrier(greeting)
        except Exception as error:
            return problem_of(error)
        return ""

    def carry_out(self, metadata: Sequence[Any], content: RecordDict) -> Answer:
        """See `Carrier`."""
        return self._carrier.carry_out(metadata, content)


class ActorsGrid(PoolGrid[Any]):
    """Carries messages out in Ray actors; a link is an actor's handle."""

    def __init__(
        self, app: str, n_clients: int, n_workers: int, folder: Path, scenario: Scenario
    ) -> None:
        """As `PoolGrid`. Needs `ray.init` to have been called."""
        import ray

        super().__init__(app, n_clients, n_workers, folder, scenario.at_once)
        settings = scenario.grid
        self._ray = ray
        options = {"num_cpus": settings.client_cpus, "num_gpus": settings.client_gpus}
        self._make = ray.remote(Actor).options(**options)
        self._words: dict[Any, list[Any]] = {}
        self._put: tuple[RecordDict | None, Any] = (None, None)

    def _start(self, greeting: Greeting) -> Any:
        actor: Any = self._make.remote()
        self._words[actor] = [actor.greet.remote(greeting)]
        return actor

    def _send(self, worker: Worker[Any], block: Block, *, new_content: bool) -> None:
        content = block[0].content
        if self._put[0] is not content:
            self._put = (content, self._ray.put(content))
        metadata = [message.metadata for message in block]
        self._words[worker.link].append(worker.link.carry_out.remote(metadata, self._put[1]))

    def _heard(self, timeout_s: float) -> Iterable[Worker[Any]]:
        oldest = {self._words[w.link][0]: w for w in self._workers if self._words[w.link]}
        if not oldest:
            return []
        first, rest = self._ray.wait(list(oldest), timeout=timeout_s, fetch_local=False)
        more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
        return [oldest[word] for word in first + more]

    def _welcome(self, worker: Worker[Any]) -> str:
        problem: str = self._hear(worker)
        return problem

    def _receive(self, worker: Worker[Any]) -> Answer:
        answer: Answer = self._hear(worker)
        return answer

    def _hear(self, worker: Worker[Any]) -> Any:
        try:
            return self._ray.get(self._words[worker.link].pop(0))
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(str(error).strip().splitlines()[-1]) from None

    def _end(self, link: Any) -> None:
        self._ray.kill(link)
        del self._words[link]


def run(server_app: ServerApp, app: str, n_clients: int, folder: Path, scenario: Scenario) -> None:
    """Run a ServerApp against the ClientApp at an address, in actors of a Ray cluster.

    Raises: FedkdError if Ray is not installed, or the cluster is not there or has no room.
    """
    settings = scenario.grid
    with attached(settings, scenario.threads):
        n_workers = min(settings.workers or n_clients, n_rooms(settings), n_clients)
        run_on(ActorsGrid(app, n_clients, n_workers, folder, scenario), server_app)

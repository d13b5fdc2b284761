"""What travels in a round, seen from the server: one small class for each kind of exchange.

Each kind says what goes down with `train`, takes what comes up, and says what goes down with
`evaluate`. Methods that exchange soft labels differ in their stages, not here.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd import payload
from fedkd.errors import FedkdError, PayloadError
from fedkd.exchange.combine import GRID, Summed, WeightAverage
from fedkd.exchange.consensus import Consensus
from fedkd.models.zoo import build
from fedkd.protection import GnMax, PlainServer, SecureAggregation
from fedkd.rng import torch_stream
from privacy import asked, claims, protect
from privacy.audit.recording import SERVER, START, About
from privacy.ledger import Ledger, Release
from privacy.totals import affords
from server import measures
from server.calls import Talk
from server.hearing import Hearing, Single, Sizes
from server.job import Job, Roster
from server.labels import ByLabel
from server.picker import Picker
from server.recorder import Recorder
from server.secure import SecureSum
from server.student import student_of
from server.telling import told

Arrays = dict[str, NDArray[Any]]
Told = tuple[payload.Bytes | None, dict[str, Any]]
SILENT = "the server is silent: what it would tell is above its budget: no consensus"


class Exchange(Protocol):
    """One round after the other: `ask`, then `hear` each client in order, then `tell`.

    Before and after the answers, an exchange may `talk` to the clients of the round.
    """

    def ask(self, round_: int, talk: Talk) -> payload.Bytes | None:
        """What every participant gets with `train`."""

    def hear(self, round_: int, client: int, data: payload.Bytes | None) -> dict[str, Any]:
        """Take one client's reply; return what it says about the client.

        Raises: PayloadError if the reply breaks the contract; it is then as if it never came.
        """

    @property
    def sums(self) -> Sizes | None:
        """What a worker must know to add answers up itself; None if each one is needed here."""

    def hear_sum(self, round_: int, data: payload.Bytes) -> list[int]:
        """Take the sum of some clients' answers; return the clients. Raises: PayloadError."""

    def tell(self, round_: int, talk: Talk) -> Told:
        """What every participant gets with `evaluate`, and what to log about it."""

    def arrays(self) -> Arrays:
        """What a checkpoint must keep."""

    def restore(self, arrays: Arrays) -> None:
        """Go back to a checkpoint."""


class Nothing(Single):
    """Clients learn alone."""

    def ask(self, round_: int, talk: Talk) -> payload.Bytes | None:
        """Nothing."""
        return None

    def hear(self, round_: int, client: int, data: payload.Bytes | None) -> dict[str, Any]:
        """Nothing is expected."""
        return {}

    def tell(self, round_: int, talk: Talk) -> Told:
        """Nothing."""
        return None, {}

    def arrays(self) -> Arrays:
        """Nothing."""
        return {}

    def restore(self, arrays: Arrays) -> None:
        """Nothing."""


class ProxyLabels(Nothing):
    """The reference row that teaches the proxy set's true labels."""

    def __init__(self, job: Job, roster: Roster) -> None:
        if roster.truth is None:
            raise FedkdError(
                "the proxy set has no labels to teach",
                fix='drop "proxy-labels" from references, or use a contributed or public proxy',
            )
        labels, _ = roster.truth
        known = np.flatnonzero(labels >= 0).astype(np.int32)  # a text's padding has none
        onehot = np.eye(roster.n_classes, dtype=np.float32)[labels[known]]
        self._truth = Consensus(known, onehot)
        self._job, self._sizes = job, Sizes(len(labels), roster.n_classes, roster.positions)

    def tell(self, round_: int, talk: Talk) -> Told:
        """The labels as one-hot rows, which no codec changes."""
        data, _ = told(self._job.scenario, self._job.seed, round_, self._truth, self._sizes)
        return data, {}


class SoftLabels:
    """Answers up, their consensus down."""

    def __init__(self, job: Job, roster: Roster, ledger: Ledger, recorder: Recorder) -> None:
        assert roster.pool is not None  # every method of this exchange uses a pool
        self._truth = roster.truth
        self._ledger = ledger
        self._recorder = recorder
        self._scenario = job.scenario
        self._seed = job.seed
        self._sizes = Sizes(
            len(roster.pool.x) * roster.positions, roster.n_classes, roster.positions
        )
        labels, strata = (None, None) if roster.truth is None else roster.truth
        self._start = partial(Hearing, job.scenario, self._sizes, job.world, strata, labels)
        self._hearing = self._start()
        self._belief: dict[int, float] = {}
        self._after: tuple[int, dict[int, float]] = (0, {})
        """What the rule thinks of clients after a round, and which."""
        self._rule = job.scenario.method.combine
        self._student = student_of(job, roster)
        self._picker = Picker(job, self._sizes)
        self._consensus = self._hearing.consensus()

    def ask(self, round_: int, talk: Talk) -> payload.Bytes | None:
        """Which records the round is about, unless it is all. Last round's votes are cleared."""
        self._hearing = self._start()
        told_in, belief = self._after
        if told_in < round_:  # else the round is played again, and begins with what it began with
            self._belief = belief
        self._hearing.believe(self._belief)
        self._recorder.start(round_, About("soft labels", *self._sizes))
        return self._picker.ask(round_)

    def hear(self, round_: int, client: int, data: payload.Bytes | None) -> dict[str, Any]:
        """Check the answers, add them to the votes, and measure the client's filter."""
        if data is None:
            raise PayloadError("no answers in the reply")
        answer = self._hearing.check(round_, client, data)
        self._picker.check(round_, answer.ids)
        for block in answer.blocks():
            self._recorder.add("answers", client, block.ids, block.values)
        return self._hearing.take(answer)

    @property
    def sums(self) -> Sizes | None:
        """The sizes where the rule needs the sum alone, and the sum has the same bits in any
        grouping: logits have no bound, so theirs might not, and weighted sums have not. None where
        each answer is recorded."""
        method = self._scenario.method
        adds_up = isinstance(self._rule, Summed) and method.release.simplex and not method.weighed
        plain = isinstance(self._scenario.privacy.server, PlainServer)
        return self._sizes if adds_up and plain and not self._scenario.audit else None

    def hear_sum(self, round_: int, data: payload.Bytes) -> list[int]:
        """Check the sum and add it to the votes."""
        return self._hearing.hear_sum(round_, data, self._picker.check)

    def tell(self, round_: int, talk: Talk) -> Told:
        """The consensus; nothing if no sample was answered by anyone, or none clearly enough, or if
        the server's budget does not bear what it would tell.
        """
        privacy = self._scenario.privacy
        if isinstance(privacy.server, GnMax):
            self._consensus, silence = self._clear(privacy.server, round_)
        else:
            self._consensus = protect.consensus_of(privacy, self._hearing.consensus())
            silence = "no client accepted any proxy sample: no consensus"
        taught: dict[str, Any] = {}
        if self._student is not None:
            self._consensus, taught = self._student.learn(round_, self._consensus)
        data, self._consensus = told(
            self._scenario,
            self._seed,
            round_,
            self._consensus,
            self._sizes,
            recalls=self._picker.recalls,
        )
        self._picker.learn(round_, self._consensus)
        self._recorder.add("answers", SERVER, *self._consensus)
        said = measures.of_consensus(self._consensus, self._sizes.n_samples, self._truth)
        said |= taught | self._hearing.trust()
        self._after = round_, self._hearing.belief
        return data, said if data is not None else {**said, "note": silence}

    def _clear(self, row: GnMax, round_: int) -> tuple[Consensus, str]:
        """The labels that are told, charged to whichever client an attacker is after; and why, if
        there are none. Whether the budget bears them depends on no vote, so silence tells nothing.
        """
        noise = torch_stream(self._seed, "server", round_, purpose="gnmax")
        votes = self._hearing.sums.total / GRID
        consensus = protect.clear_labels(row, votes, noise)
        entry = Release(
            client=-1,
            round=round_,
            what="soft labels",
            rows=len(consensus.ids),
            seen_by="server and all clients",
            **claims.claim_of_labels(row, len(votes))._asdict(),
        )
        budget = asked.server_budget_of(self._scenario.privacy)
        if budget is not None and not affords(self._ledger, budget, entry):
            return Consensus(consensus.ids[:0], consensus.values[:0]), SILENT
        self._ledger.record(entry)
        return consensus, "the votes on no proxy sample were clear: no consensus"

    def arrays(self) -> Arrays:
        """What was told, for whoever reads the folder; what rule, draw and student remember."""
        kept: Arrays = {"ids": self._consensus.ids, "values": self._consensus.values}
        kept |= self._picker.arrays()
        _, belief = self._after
        if belief:
            kept["believed"] = np.array(sorted(belief), np.int64)
            kept["belief"] = np.array([belief[client] for client in sorted(belief)])
        return kept if self._student is None else kept | self._student.arrays()

    def restore(self, arrays: Arrays) -> None:
        """Take all back."""
        self._consensus = Consensus(arrays["ids"], arrays["values"])
        if "belief" in arrays:
            pairs = zip(arrays["believed"].tolist(), arrays["belief"].tolist(), strict=True)
            self._after = 0, dict(pairs)
        self._picker.restore(arrays)
        if self._student is not None:
            self._student.restore(arrays)


class Weights(Single):
    """Model weights up, their average down: FedAvg."""

    def __init__(self, job: Job, roster: Roster, recorder: Recorder) -> None:
        names = set(job.scenario.model.names)
        if len(names) > 1:
            raise FedkdError(
                f"{job.scenario.method.name} needs one model for all clients",
                value=sorted(names),
                fix='name one model in model.names, or drop "fedavg" from references',
            )
        init = torch_stream(job.seed, "server", purpose="init")
        model = build(names.pop(), roster.shape, roster.n_classes, init, roster.dtype)
        # Torch's parameters_to_vector refuses weights in channels-last memory.
        self._weights = torch.cat([w.detach().flatten() for w in model.parameters()]).numpy()
        self._average = WeightAverage()
        self._scenario = job.scenario
        self._recorder = recorder
        self._about = About("weights", 0, roster.n_classes, roster.positions)

    def ask(self, round_: int, talk: Talk) -> payload.Bytes | None:
        """The weights so far."""
        self._average = WeightAverage()
        self._recorder.start(round_, self._about)
        self._record(START, self._weights)
        return payload.encode_weights(self._weights, -1, round_)

    def hear(self, round_: int, client: int, data: payload.Bytes | None) -> dict[str, Any]:
        """Add one client's weights."""
        if data is None:
            raise PayloadError("no weights in the reply")
        weights, n_samples = payload.decode_weights(
            data, client=client, round_=round_, size=len(self._weights)
        )
        self._average.add(weights, n_samples)
        self._record(client, weights, n_samples)
        return {}

    def tell(self, round_: int, talk: Talk) -> Told:
        """The new average, or the old one if nobody answered; nothing if nobody is to measure it.

        The next round starts from it in any case.
        """
        average = self._average.finish()
        if average is not None:
            self._weights = average
        self._record(SERVER, self._weights)
        if not self._scenario.measures(round_):
            return None, {}
        return payload.encode_weights(self._weights, -1, round_), {}

    def _record(self, client: int, weights: NDArray[np.float32], n_records: int = 0) -> None:
        self._recorder.add("weights", client, np.array([n_records], np.int32), weights[None])

    def arrays(self) -> Arrays:
        """The weights."""
        return {"weights": self._weights}

    def restore(self, arrays: Arrays) -> None:
        """Take the weights back."""
        self._weights = arrays["weights"]


def exchange_of(job: Job, roster: Roster, ledger: Ledger, recorder: Recorder) -> Exchange:
    """The exchange of a job's method. Args: ledger: the server's own, of what it tells."""
    match job.scenario.method.exchange:
        case "none":
            return Nothing()
        case "proxy-labels":
            return ProxyLabels(job, roster)
        case "soft-labels":
            if isinstance(job.scenario.privacy.server, SecureAggregation):
                return SecureSum(job, roster, recorder)
            return SoftLabels(job, roster, ledger, recorder)
        case "label-means":
            return ByLabel(job, roster)
        case "weights":
            return Weights(job, roster, recorder)

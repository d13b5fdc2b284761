"""Soft labels under secure aggregation: the server adds blinded tables and learns their sum alone.

    query.keys    -> everyone             <- a public key each, made for this round
    train         -> all keys             <- a table under a mask that cancels in the sum
    query.reveal  -> whose table came     <- only if others were lost: the secrets shared with those

A client is lost whose table does not come, is refused, or is held back for its budget. A second
loss, while the first is repaired, costs the round its consensus; the next round has fresh keys.
What is known of one client elsewhere, such as the quality of its filter, cannot be known here.

Guarantee and limits: see `privacy.secagg`. Answers are combined to their mean, since a
sum is all there is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd import payload, payload_secure
from fedkd.errors import FedkdError, PayloadError
from fedkd.exchange.consensus import Consensus
from fedkd.protection import SecureAggregation
from privacy import protect, secagg
from privacy.audit.recording import SERVER, About
from privacy.secagg import Blinded, Cohort
from privacy.sensitivity import project
from server import measures
from server.calls import Talk
from server.hearing import Single, Sizes
from server.job import Job, Roster
from server.recorder import Recorder
from server.student import student_of
from server.telling import told

CLEAR = 2.0
"""Standard deviations of the noise above which a count says that somebody answered. Ours."""


class SecureSum(Single):
    """Blinded tables up, the consensus of their sum down."""

    def __init__(self, job: Job, roster: Roster, recorder: Recorder) -> None:
        row = job.scenario.privacy.server
        assert isinstance(row, SecureAggregation)
        assert roster.pool is not None  # every method of this exchange uses a pool
        n_taking_part = job.scenario.training.taking_part(len(roster.clients))
        if n_taking_part < 2:
            raise FedkdError(
                "secure aggregation hides a client among the others of its round",
                value=f"{n_taking_part} client a round",
                allowed="2 or more",
                fix="raise partition.clients or training.participation",
            )
        self._scenario, self._seed = job.scenario, job.seed
        self._std = row.sigma
        self._truth = roster.truth
        self._shape = (len(roster.pool.x) * roster.positions, roster.n_classes + 1)
        self._recorder = recorder
        self._about = About("soft labels", self._shape[0], roster.n_classes, roster.positions)
        self._cohort: Cohort | None = None
        self._total: Blinded = np.zeros(self._shape, np.uint64)
        self._present: set[int] = set()
        self._open = False
        self._student = student_of(job, roster)
        self._consensus = Consensus(
            np.empty(0, np.int32), np.empty((0, roster.n_classes), np.float32)
        )

    def ask(self, round_: int, talk: Talk) -> payload.Bytes | None:
        """All public keys; nothing if fewer than two clients gave one, and then nobody answers."""

        def read(client: int, data: payload.Bytes) -> bytes:
            return payload_secure.decode_key(data, client=client, round_=round_)

        public = talk("keys", None, read)
        self._cohort = secagg.cohort(round_, public) if len(public) > 1 else None
        self._total = np.zeros(self._shape, np.uint64)
        self._present = set()
        self._open = True
        self._recorder.start(round_, self._about)
        return None if self._cohort is None else payload_secure.encode_cohort(public, (), round_)

    def hear(self, round_: int, client: int, data: payload.Bytes | None) -> dict[str, Any]:
        """Add one client's blinded table to the sum; of the client itself it says nothing."""
        if self._cohort is None or client not in self._cohort.public:
            return {}
        if data is None:
            raise PayloadError("no table in the reply")
        table = payload_secure.decode_blinded(data, client=client, round_=round_, shape=self._shape)
        if not self._open or client in self._present:
            raise PayloadError(
                "a table that comes late or twice is thrown away: beside the secrets that the "
                "others have revealed, it could be read"
            )
        self._total += table
        self._present.add(client)
        return {}

    def tell(self, round_: int, talk: Talk) -> tuple[payload.Bytes | None, dict[str, Any]]:
        """The consensus; nothing, with a note, if the sum is lost or nobody answered."""
        sums, note = self._sums(round_, talk)
        self._consensus = self._mean(sums)
        taught: dict[str, Any] = {}
        if self._student is not None:
            self._consensus, taught = self._student.learn(round_, self._consensus)
        if len(sums):
            self._recorder.add("sum", SERVER, np.arange(len(sums), dtype=np.int32), sums)
            self._recorder.summed(self._present)
        sizes = Sizes(self._shape[0], self._about.n_classes, self._about.positions)
        data, self._consensus = told(self._scenario, self._seed, round_, self._consensus, sizes)
        self._recorder.add("answers", SERVER, *self._consensus)
        said = measures.of_consensus(self._consensus, self._shape[0], self._truth)
        said |= {**taught, "n_summed": len(self._present)}
        if data is None:
            note = note or "no client accepted any proxy sample"
            return None, {**said, "note": f"{note}: no consensus"}
        return data, said

    def _sums(self, round_: int, talk: Talk) -> tuple[NDArray[np.float64], str]:
        """The sum of the tables, without rows if it is lost, and then why."""
        self._open = False
        cohort, present = self._cohort, frozenset(self._present)
        none = np.empty((0, self._shape[1]))
        if cohort is None:
            return none, "fewer than two clients gave a key"
        lost = frozenset(cohort.public) - present

        def read(client: int, data: payload.Bytes) -> dict[int, bytes]:
            return payload_secure.decode_secrets(data, client=client, round_=round_, lost=lost)

        revealed = {}
        if lost and len(present) >= cohort.least:
            question = payload_secure.encode_cohort(cohort.public, lost, round_)
            revealed = talk("reveal", question, read, present)
        try:
            return secagg.unblind(self._total, cohort, present, revealed, self._std), ""
        except FedkdError as error:
            return none, str(error)

    def _mean(self, sums: NDArray[np.float64]) -> Consensus:
        """The mean of the answers to each sample, with the bits of the plain mean without noise.

        With noise, samples are left out whose count is lost in it, and the others' means are moved
        to the nearest distributions: post-processing of the noisy sum.
        """
        counts = sums[:, -1]
        std = 0.0
        if self._cohort is not None:
            std = self._std * (len(self._present) / self._cohort.least) ** 0.5
        ids = np.flatnonzero(counts > CLEAR * std).astype(np.int32)
        mean = sums[ids, :-1] / counts[ids, None]
        if std:
            mean = project(torch.from_numpy(mean)).numpy()
        return protect.consensus_of(self._scenario.privacy, Consensus(ids, mean.astype(np.float32)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was told, for whoever reads the run folder, and the student."""
        kept = {"ids": self._consensus.ids, "values": self._consensus.values}
        return kept if self._student is None else kept | self._student.arrays()

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take both back."""
        self._consensus = Consensus(arrays["ids"], arrays["values"])
        if self._student is not None:
            self._student.restore(arrays)

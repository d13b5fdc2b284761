"""FD seen from the server: means by label up, and with the next round their sums down."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd import payload, payload_answers
from fedkd.errors import PayloadError
from fedkd.exchange.label_means import LabelMeans
from server.calls import Talk
from server.hearing import Single
from server.job import Job, Roster

KEPT = "said."
"""Of the sums in a checkpoint."""


class ByLabel(Single):
    """Sums in float64, in the clients' order; each client takes its own share out of them."""

    def __init__(self, job: Job, roster: Roster) -> None:
        self._n_classes = roster.n_classes
        self._simplex = job.scenario.method.release.simplex
        self._round = 0
        self._heard: list[int] = []
        self._sums = self._nothing()
        self._last = self._nothing()
        self._new: tuple[int, LabelMeans] = (0, self._last)
        """What was said in a round, and which: the next one begins with it."""

    def _nothing(self) -> LabelMeans:
        n, none = self._n_classes, np.empty(0, np.int32)
        return LabelMeans(
            none, np.arange(n, dtype=np.int32), np.zeros((n, n)), np.zeros(n, np.int32)
        )

    def ask(self, round_: int, talk: Talk) -> payload.Bytes | None:
        """What was said in the round before; nothing if nobody said anything."""
        said_in, said = self._new
        if said_in < round_:  # else the round is played again, and begins with what it began with
            self._last = said
        self._round, self._heard, self._sums = round_, [], self._nothing()
        some = self._last.voters > 0
        if not some.any():
            return None
        _, ids, total, voters = self._last
        last = self._last._replace(ids=ids[some], total=total[some], voters=voters[some])
        return payload.encode_label_means(last, round_)

    def hear(self, round_: int, client: int, data: payload.Bytes | None) -> dict[str, Any]:
        """Check a client's means and add them to the sums."""
        if data is None or round_ != self._round:
            raise PayloadError("no means of this round in the reply")
        n = self._n_classes
        said = payload_answers.decode_answer(
            data, client=client, round_=round_, n_samples=n, n_classes=n, simplex=self._simplex
        )
        self._heard.append(client)
        self._sums.total[said.ids] += said.values
        self._sums.voters[said.ids] += 1
        return {"labels": len(said.ids) / n}

    def tell(self, round_: int, talk: Talk) -> tuple[payload.Bytes | None, dict[str, Any]]:
        """Nothing now: what was said goes down with the next round."""
        clients = np.array(sorted(self._heard), np.int32)
        self._new = round_, self._sums._replace(clients=clients)
        return None, {"labels": float((self._sums.voters > 0).mean())}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was said."""
        return {KEPT + key: array for key, array in self._new[1]._asdict().items()}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take it back."""
        self._new = 0, LabelMeans(*(arrays[KEPT + key].copy() for key in LabelMeans._fields))

"""Hearing answers: decode, check, add to the votes, measure. The server does it, or a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkd import payload, payload_answers
from fedkd.config import Scenario
from fedkd.data.federation import Federation
from fedkd.errors import PayloadError
from fedkd.exchange.combine import Summed, Votes, Weighed
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.every_vote import Ballots, EveryVote
from fedkd.exchange.gate import Soft
from server import measures

AnyAnswer = payload_answers.Answer | payload_answers.CodedAnswer


class Sizes(NamedTuple):
    """Of a run's answers; a message can carry them."""

    n_samples: int
    n_classes: int
    positions: int
    """Samples that a proxy record is: 1 image, or L tokens."""


class Hearing:
    """The votes of one round, and what is said about each client that gave some."""

    def __init__(
        self,
        scenario: Scenario,
        sizes: Sizes,
        world: Federation | None,
        strata: NDArray[np.int64] | None,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        """No votes yet.

        Args: world, strata: of the clients and of the proxy records, to measure by; None if they
            are unknown. labels: of the proxy samples, for a rule that is told them.
        """
        self._rule = scenario.method.combine
        self._coding = scenario.coding_up
        self._simplex = scenario.method.release.simplex
        self._sent = isinstance(scenario.method.gate, Soft)
        self._sizes = sizes
        self._most_rows = int(scenario.limits.rows * sizes.n_samples)
        self._world = world
        self._strata = strata
        shape = sizes.n_samples, sizes.n_classes
        self.votes: Votes | Weighed | Ballots
        if scenario.method.weighed:
            assert isinstance(self._rule, Summed)  # the scenario was checked
            told = labels if self._rule.told_labels else None
            self.votes = self._rule.start_weighed(*shape, told)
        else:
            self.votes = self._rule.start(*shape)

    def check(self, round_: int, client: int, data: payload.Bytes) -> AnyAnswer:
        """One client's answers, decoded. Raises: PayloadError if they break the contract, or
        are more than `limits.rows` allows."""
        of = {"client": client, "round_": round_, "n_samples": self._sizes.n_samples}
        of["n_classes"] = self._sizes.n_classes
        answer: AnyAnswer
        if self._coding is None:
            answer = payload_answers.decode_answer(
                data, simplex=self._simplex, weighed=self._sent, **of
            )
        else:
            answer = payload_answers.decode_coded_answer(
                data, coding=self._coding, weighed=self._sent, **of
            )
        if len(answer.ids) > self._most_rows:
            raise PayloadError(
                "answers more samples than limits.rows allows",
                value=len(answer.ids),
                allowed=f"{self._most_rows} of {self._sizes.n_samples}",
            )
        return answer

    def take(self, answer: AnyAnswer) -> dict[str, Any]:
        """Add a checked answer to the votes, and measure the client's filter."""
        for block in answer.blocks():
            if isinstance(self._rule, EveryVote):
                assert isinstance(self.votes, Ballots)
                self._rule.add(self.votes, block.ids, block.values, answer.client)
            elif isinstance(self.votes, Weighed):
                self._rule.add_weighed(self.votes, block.ids, block.values, block.weights)
            else:
                self._rule.add(self.sums, block.ids, block.values)
        if self._strata is None or self._world is None:
            return {"accepted": len(answer.ids) / self._sizes.n_samples}
        records, weights = answer.ids, answer.weights
        if self._sizes.positions > 1:  # every position of a record is answered, by one weight
            records, first = np.unique(records // self._sizes.positions, return_index=True)
            weights = None if weights is None else weights[first]
        counts = self._world.counts(answer.client)
        return measures.filter_quality(records, self._strata, counts, weights)

    @property
    def sums(self) -> Votes:
        """The votes of a rule that needs no more than their sum."""
        assert isinstance(self.votes, Votes)
        return self.votes

    def believe(self, belief: dict[int, float]) -> None:
        """Begin with what the rule thought of clients, if it remembers that."""
        if isinstance(self.votes, Ballots):
            self.votes.belief.update(belief)

    @property
    def belief(self) -> dict[int, float]:
        """What the rule thinks of clients now; nothing for a rule without a memory."""
        return dict(self.votes.belief) if isinstance(self.votes, Ballots) else {}

    def trust(self) -> dict[str, Any]:
        """For the log, once there is a consensus: how far each client is to be believed."""
        if not isinstance(self._rule, EveryVote):
            return {}
        assert isinstance(self.votes, Ballots)
        found = self._rule.trust(self.votes)
        return {"trusted": list(found), "trust": list(found.values())} if found else {}

    def consensus(self) -> Consensus:
        """What the clients that were heard say together."""
        if isinstance(self._rule, EveryVote):
            assert isinstance(self.votes, Ballots)
            return self._rule.finish(self.votes)
        if isinstance(self.votes, Weighed):
            return self._rule.finish_weighed(self.votes)
        return self._rule.finish(self.sums)

    def hear_sum(
        self, round_: int, data: payload.Bytes, check: Callable[[int, NDArray[np.int32]], None]
    ) -> list[int]:
        """Check a sum of clients' answers and add it to the votes; return the clients.

        Args: check: raises a PayloadError for a round and ids that it was not to be about.
        Raises: PayloadError as `check`.
        """
        sizes = {"n_samples": self._sizes.n_samples, "n_classes": self._sizes.n_classes}
        partial = payload_answers.decode_partial(data, round_=round_, **sizes)
        assert isinstance(self._rule, Summed)  # else nobody was asked for a sum
        check(round_, partial.ids)
        self._rule.merge(self.sums, partial.ids, partial.votes)
        return [int(client) for client in partial.clients]

    def sum_bytes(self, answers: Iterable[AnyAnswer]) -> int:
        """The most that a sum of these answers takes, headers aside; told before it is made."""
        asked = np.zeros(self._sizes.n_samples, bool)
        for answer in answers:
            asked[answer.ids] = True
        return int(asked.sum()) * (8 * self._sizes.n_classes + 8)

    def sum_of(self, round_: int, clients: list[int]) -> payload.Bytes:
        """The votes so far as bytes, given by `clients`."""
        votes = self.sums
        ids = np.flatnonzero(votes.voters).astype(np.int32)
        if len(ids) < len(votes.voters):
            votes = Votes(votes.total[ids], votes.voters[ids])
        given_by = np.array(clients, np.int32)
        return payload_answers.encode_partial(payload_answers.Partial(round_, given_by, ids, votes))


class Single:
    """An exchange whose replies are heard one by one."""

    sums: Sizes | None = None

    def hear_sum(self, round_: int, data: payload.Bytes) -> list[int]:
        """Nobody was asked for one."""
        raise PayloadError("a sum of answers that nobody asked for")

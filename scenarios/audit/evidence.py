"""What an audit knows of a cell: its answers as they were recorded, and what can be learnt of them.

What a part may use of it is the part's business: that is where observers are kept apart. Everything
here is read; nothing of a run is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from scenarios import quiet  # noqa: F401  # before anything that imports flwr

from clients import degrees  # isort: skip
from clients.client import ProxySet
from fedkd import protection, training
from fedkd.errors import FedkdError
from fedkd.exchange.distill import KL
from fedkd.models.zoo import Classifier
from privacy import asked
from privacy.audit.canary_readout import undo_temperature
from privacy.audit.recording import SERVER, Recording
from privacy.audit.signals import Doubles
from privacy.audit.students import SHARE, Students, distilled
from privacy.audit.uploads import Answer, mean_rows, rows_at
from scenarios.audit.opened import CPU, Opened

STUDENTS = 2
"""Of each source of answers, to ask about records that the proxy set does not hold."""
STUDENT_STEPS = 300
"""Batches that each learns from, within 5 to 30 passes."""
PEER = 1_000_000
"""What numbers of streams begin with where a peer's own answers are taken out."""


Way = Literal["told", "averaged", "undone"]
"""How answers are taken: the last round's as they are; the mean of all rounds; or by an attack that
knows how they are made: temperatures undone, and rounds averaged where noise can be taken off."""


@dataclass(frozen=True)
class Source:
    """Whose answers: one client's (`of`), or all clients' together (SERVER), without those of one.

    >>> Source(3), Source(SERVER, without=2)
    (Source(of=3, without=None), Source(of=-1, without=2))
    """

    of: int
    without: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell(Opened):
    """One row with one seed of a run, finished or not, with what was recorded of it."""

    shadows: tuple[Cell, ...] = ()
    """The same row with other coins for its canaries."""
    alone: Cell | None = None
    """The row local-only of the same seed, if the run has it."""
    _taught: dict[Source, Students] = field(default_factory=dict)

    @property
    def listened(self) -> Recording:
        """The recording. Raises: FedkdError where there is none."""
        if self.recording is None:
            raise FedkdError("nothing was recorded", value=str(self.folder), fix="audit = true")
        return self.recording

    @property
    def soft(self) -> bool:
        """Whether clients exchange soft labels, and they were recorded."""
        return self.recording is not None and self.recording.what == "soft labels"

    @property
    def summed(self) -> bool:
        """Whether the server saw sums alone."""
        return isinstance(self.scenario.privacy.server, protection.SecureAggregation)

    @cached_property
    def proxy(self) -> ProxySet:
        """The proxy set as it was sent. Raises: FedkdError where it was not recorded."""
        pool = self.listened.pool()
        if pool is None:
            raise FedkdError("the proxy set was not recorded", fix="raise audit_mb")
        return ProxySet.of(pool, CPU)

    @property
    def n_samples(self) -> int:
        """Of the proxy set."""
        return self.listened.n_samples

    def answer(self, source: Source, round_: int) -> Answer | None:
        """What a source says in a round, as soft labels; None for nothing.

        Without one client, it is the mean of the others: what that client works out from the
        consensus and its own answers where the consensus is a mean, else the consensus itself.
        """
        log = self.listened
        if source.of != SERVER:
            return self._softened(log.answer(round_, source.of))
        if source.without is None or not self.takes_out:
            return self._softened(log.consensus(round_))
        others = [client for client in log.heard(round_) if client != source.without]
        total = np.zeros((log.n_samples, log.n_classes))
        voters = np.zeros(log.n_samples)
        for client in others:
            found = log.answer(round_, client)
            if found is not None:
                total[found[0]] += found[1]
                voters[found[0]] += 1
        ids = np.flatnonzero(voters).astype(np.int32)
        return self._softened((ids, (total[ids] / voters[ids, None]).astype(np.float32)))

    @property
    def takes_out(self) -> bool:
        """Whether the consensus is the mean of answers that were recorded one by one."""
        privacy = self.scenario.privacy
        plain = isinstance(privacy.server, protection.PlainServer)
        mean = self.scenario.method.combine.name == "mean"
        unbiased = isinstance(privacy.release, protection.RandomisedResponse)
        return mean and plain and not unbiased

    def _softened(self, answer: Answer | None) -> Answer | None:
        if answer is None or self.scenario.method.release.simplex:
            return answer
        return answer[0], softmax(answer[1], axis=1)

    def told(self, source: Source, ids: NDArray[np.integer[Any]]) -> list[Doubles]:
        """A source's soft labels [k, classes] at proxy samples [k], of each round; NaN for none."""
        nothing = np.full((len(ids), self.listened.n_classes), np.nan)
        answers = [self.answer(source, round_) for round_ in self.listened.rounds]
        return [nothing if one is None else rows_at(one, ids) for one in answers]

    @cached_property
    def temperatures(self) -> Doubles:
        """Of each proxy sample [samples]: at what temperature its answers left, as all can know."""
        release, method = self.scenario.privacy.release, self.scenario.method.release
        if not isinstance(release, protection.Swing):
            return np.full(self.n_samples, method.temperature if method.simplex else 1.0)
        known = degrees.public(self.proxy, release, self.world.tokens)
        if known is None:
            return np.full(self.n_samples, release.t_min)
        return asked.swing_of(release, "public").temperatures(known).numpy()

    @property
    def hard(self) -> bool:
        """Whether an answer is a label, and no more."""
        labels = (
            protection.TopOne,
            protection.SampledLabel,
            protection.RandomisedResponse,
        )
        return isinstance(self.scenario.privacy.release, labels)

    @cached_property
    def defended(self) -> bool:
        """Whether answers leave otherwise than as a model makes them."""
        plain = isinstance(self.scenario.privacy.release, protection.PlainRelease)
        return not plain or bool((self.temperatures != 1).any())

    @cached_property
    def ways(self) -> tuple[Way, ...]:
        """The ways in which these answers can be taken that differ."""
        if self.defended:
            return ("told", "undone")
        return ("told", "averaged") if len(self.listened.rounds) > 1 else ("told",)

    def taken(
        self, source: Source, ids: NDArray[np.integer[Any]], way: Way
    ) -> tuple[Doubles, Doubles]:
        """A source's soft labels [k, classes] at proxy samples [k], and temperatures [k] to undo.

        Without noise the last round knows most, so no other is asked.
        """
        told = self.told(source, ids)
        noisy = self.hard or self.scenario.privacy.noised
        soft = mean_rows(told) if way == "averaged" or (way == "undone" and noisy) else told[-1]
        return soft, self.temperatures[ids] if way == "undone" else np.ones(len(ids))

    def students(self, source: Source) -> Students:
        """Models distilled from the mean of all that a source has said, temperatures undone.

        Raises: FedkdError for a source that said nothing.
        """
        if source not in self._taught:
            self._taught[source] = self.teach(source, STUDENTS)
        return self._taught[source]

    def teach(
        self, source: Source, n: int, share: float = SHARE, only: NDArray[np.int32] | None = None
    ) -> Students:
        """As `students`: `n`, each of a share of the answered samples, or of `only` these."""
        soft = self.soft_labels(source)
        if only is not None:
            soft[np.setdiff1d(np.arange(self.n_samples), only)] = np.nan
        return self.learnt(source, soft, n, share)

    def soft_labels(self, source: Source) -> Doubles:
        """The mean of all that a source has said [samples, classes], temperatures undone; NaN for
        what it never answered."""
        told = self.told(source, np.arange(self.n_samples))
        return undo_temperature(mean_rows(told), self.temperatures)

    def learnt(self, source: Source, soft: Doubles, n: int, share: float) -> Students:
        """`n` students of soft labels [samples, classes] in place of those of the source."""
        proxy = self.proxy
        shape = (len(proxy.x), proxy.positions, -1) if proxy.positions > 1 else (len(proxy.x), -1)
        phase = self.scenario.training.distill
        known = int((~np.isnan(soft[:, 0])).sum()) / proxy.positions
        passes = STUDENT_STEPS * phase.batch_size / max(known, 1)
        number = source.of if source.without is None else PEER + source.without
        return distilled(
            lambda generator: self.new_model(source.of, generator),
            proxy.x,
            soft.reshape(shape),
            KL().loss,
            phase.model_copy(update={"epochs": min(max(passes, 5.0), 30.0)}),
            n=n,
            seed=self.seed,
            client=number,
            share=share,
        )

    def population(self, most: int = 500) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """Public records with a label: x [z, c, h, w], y [z] or [z, L], and proxy ids [z, L].

        Evenly spread over the proxy set; empty where its labels mean nothing.
        """
        truth = self.proxy_truth()
        positions = self.proxy.positions
        if truth is None:
            return self.proxy.x[:0], np.empty(0, np.int64), np.empty((0, positions), np.int64)
        y = truth[0]
        labelled = np.flatnonzero((y >= 0).reshape(len(y), -1).any(axis=1))
        first = self.world.first_in_proxy
        rows = labelled if first is None else labelled[labelled < first]
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        ids = rows[:, None] * positions + np.arange(positions)
        return self.proxy.x[torch.from_numpy(rows)], y[rows], ids


def predicted(model: Classifier, x: Tensor) -> Doubles:
    """Logits float64 [n, classes] or [n, L, classes]."""
    return training.predict(model, x).double().numpy()


def softened(logits: Doubles) -> NDArray[np.float32]:
    """Soft labels of logits [..., classes]."""
    return np.asarray(softmax(logits, axis=-1), np.float32)


def sources(cell: Cell) -> Sequence[Source]:
    """The uploads of each client under attack that were recorded."""
    return [Source(client) for client in cell.clients if client in cell.listened.clients]

"""The part `canary-clients`: made-up clients, each joined alone to the last round's answers.

How well the consensus shows one more client's answers, whatever its data: cosines of its direction
with the consensus that it is in, against those of directions that are in no consensus.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd import protection
from fedkd.exchange.consensus import Consensus
from fedkd.rng import torch_stream
from privacy import asked, protect
from privacy.asked import CLIENT, Occasion
from privacy.audit.canary_clients import (
    as_logits,
    as_probabilities,
    cosine,
    direction,
    joined,
)
from privacy.audit.cosine import estimate
from privacy.audit.intervals import half_width
from privacy.audit.recording import Rows
from privacy.audit.roc import roc
from scenarios.audit.evidence import Cell
from scenarios.audit.findings import Finding, Found
from scenarios.audit.ledger import accounted
from scenarios.audit.membership import auc_error
from scenarios.audit.views import Views

MOST_NUMBERS = 2_000_000
"""Of one client's answers: more take too long for as many canaries."""
CANARIES = 32
"""Joined, and as many controls."""
PART, TARGET = "canary-clients", "canary clients"
Matrix = NDArray[np.float64]


def lacks(cell: Cell) -> str | None:
    """Why a cell's answers cannot be joined by a canary client."""
    release = cell.scenario.privacy.release
    if isinstance(release, protection.Swing | protection.SummaryRelease):
        return f"what {release.name} would let out of a client without data is not defined"
    if cell.scenario.method.combine.name != "mean":
        return "one more answer is joined to a mean only"
    if not isinstance(cell.scenario.privacy.server, protection.PlainServer):
        return "answers were not recorded one by one, or the server adds noise"
    if cell.listened.n_samples * cell.listened.n_classes > MOST_NUMBERS:
        return "the answers are too large for this part"
    return None


def canary_clients(views: Views, rng: np.random.Generator) -> Found:
    """AUC of joined canaries against controls, their mean cosine, and an estimate of epsilon."""
    cell, log = views.cell, views.cell.listened
    last = log.rounds[-1]
    answers = [found for i in log.heard(last) if (found := log.answer(last, i)) is not None]
    unit = [direction(log.n_samples, log.n_classes, cell.seed, i) for i in range(2 * CANARIES)]
    inside = [
        cosine(one, _with(cell, answers, one, number)) for number, one in enumerate(unit[:CANARIES])
    ]
    bare = joined(answers, [], log.n_samples, log.n_classes)
    outside = [cosine(one, bare) for one in unit[CANARIES:]]
    seen = np.array(inside)
    curve = roc(seen, np.array(outside))
    half = 1.96 * auc_error(curve.auc, CANARIES, CANARIES)
    mean, spread = float(seen.mean()), half_width(seen) or 0.0
    delta = cell.scenario.privacy.delta
    dim = len(bare.ids) * (log.n_classes - 1)
    guess = estimate(seen, dim, delta)
    promised = accounted(cell, "aggregate", CLIENT)
    said = f"each joined alone to {len(answers)} clients in round {last}"
    return Found(
        [
            _finding("auc", curve.auc, curve.auc - half, min(1.0, curve.auc + half), 0.5, said),
            _finding("cosine", mean, mean - spread, mean + spread, 0.0, said),
            Finding(
                part=PART,
                observer="aggregate",
                attack="cosine with the consensus",
                target=TARGET,
                measure="epsilon estimate",
                value=guess.epsilon if np.isfinite(guess.epsilon) else None,
                null=0.0,
                ceiling=None if promised is None else promised.epsilon,
                n=CANARIES,
                note=f"{guess}; of one round, which the ledger's total is not",
            ),
        ]
    )


def _finding(
    measure: str, value: float, low: float, high: float, null: float, note: str
) -> Finding:
    return Finding(
        part=PART,
        observer="aggregate",
        attack="cosine with the consensus",
        target=TARGET,
        measure=measure,
        value=value,
        low=low,
        high=high,
        null=null,
        most=1.0,
        n=2 * CANARIES if measure == "auc" else CANARIES,
        note=note,
    )


def _with(cell: Cell, answers: list[Rows], one: Matrix, number: int) -> Consensus:
    values = _let_out(cell, one, number)
    found = joined(answers, [values], cell.listened.n_samples, cell.listened.n_classes)
    return protect.consensus_of(cell.scenario.privacy, found)


def _let_out(cell: Cell, one: Matrix, number: int) -> NDArray[np.float32]:
    """What a client gives that wants to be seen: as far along its direction as answers may go."""
    privacy, method = cell.scenario.privacy, cell.scenario.method.release
    release = privacy.release
    if isinstance(release, protection.PlainRelease):
        if method.simplex:
            return as_probabilities(one)
        logits = [
            a[1]
            for i in cell.listened.heard(cell.listened.rounds[-1])
            if (a := cell.listened.answer(cell.listened.rounds[-1], i)) is not None
        ]
        return as_logits(one, float(np.mean([np.linalg.norm(a) for a in logits])))
    bound = getattr(release, "bound", 1.0)
    logits_of_one = torch.from_numpy(as_logits(one, bound / float(np.abs(one).max())))
    occasion = Occasion(
        temperature=method.temperature,
        most_rows=cell.n_samples * asked.most_rounds(cell.scenario.training, cell.n_clients),
        delta=privacy.delta,
    )
    noise = torch_stream(cell.seed, "canary", client=number, purpose="release noise")
    values = protect.answers(privacy, logits_of_one, occasion, noise)
    return np.asarray(values.numpy())

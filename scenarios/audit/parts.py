"""The table of parts: what each needs of a run, and what finds it. A new part is one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scenarios.audit import (
    canary_clients,
    epsilon,
    exchange,
    exposure,
    inversion,
    keys,
    membership,
    memorised,
    null,
)
from scenarios.audit.evidence import Cell
from scenarios.audit.findings import Found
from scenarios.audit.views import Views


@dataclass(frozen=True, kw_only=True)
class Part:
    """A row of the table."""

    line: str
    lacks: Callable[[Cell], str | None]
    """Why a cell whose clients' data are known cannot have it, or None if it can."""
    find: Callable[[Views, np.random.Generator], Found]
    shadowed: bool = False
    """Whether shadow federations add to it."""
    blind: bool = False
    """Whether it asks nothing of who holds what, so that a deployment's recording is enough."""

    def lacking(self, cell: Cell) -> str | None:
        """Why a cell cannot have it, or None if it can; of a deployment, without keys first."""
        if cell.owned and not cell.keys and not self.blind:
            return keys.MISSING
        return self.lacks(cell)


RECORDED = "nothing was recorded: run with audit = true"


def _soft(cell: Cell) -> str | None:
    if cell.recording is None:
        return RECORDED
    return None if cell.soft else "no soft labels are exchanged"


def _uploads(cell: Cell) -> str | None:
    lacking = _soft(cell)
    if lacking is None and not cell.listened.clients:
        return "the server saw sums alone"
    return lacking


def _images(cell: Cell) -> str | None:
    return "of images only: texts have no classes" if cell.world.train.is_text else None


def _text(cell: Cell) -> str | None:
    return None if cell.world.train.is_text else "of language models only"


def _canaries(cell: Cell) -> str | None:
    return None if cell.world.canaries else "the run has no canaries"


def _models(cell: Cell) -> str | None:
    return None if cell.models else "the models of clients are elsewhere"


def _bounded(cell: Cell) -> str | None:
    if epsilon.fair(cell) or epsilon.by_rank(cell):
        return None
    return "it needs canaries by coin, once or not at all, or secrets in texts that no proxy holds"


def _weights(cell: Cell) -> str | None:
    if cell.recording is None:
        return RECORDED
    return None if cell.recording.what == "weights" else "no weights are exchanged"


def _alone(cell: Cell) -> str | None:
    return None if inversion.alone(cell) else "no class is held by one client alone"


def _labelled(cell: Cell) -> str | None:
    if cell.untold:
        gave = ", ".join(map(str, cell.untold))
        return f"clients gave to the proxy set and handed in no key: {gave}"
    return None if cell.proxy_truth() is not None else "the proxy set has no labels"


def _seen(cell: Cell) -> str | None:
    return None if cell.models or cell.soft else RECORDED


def _lacks(*needs: Callable[[Cell], str | None]) -> Callable[[Cell], str | None]:
    def lacks(cell: Cell) -> str | None:
        return next((why for why in (need(cell) for need in needs) if why is not None), None)

    return lacks


PARTS: dict[str, Part] = {
    "exposure": Part(
        line="canaries: how many bits likelier than by chance",
        lacks=_lacks(_canaries, _seen),
        find=exposure.exposure,
    ),
    "membership": Part(
        line="who was trained on which record: AUC, and TPR at low FPR",
        lacks=_seen,
        find=membership.membership,
        shadowed=True,
    ),
    "label-distribution": Part(
        line="which classes each client holds, from its soft labels",
        lacks=_lacks(_soft, _images, _labelled),
        find=exchange.label_distribution,
    ),
    "mask": Part(
        line="who holds what, from which samples a client answers",
        lacks=_lacks(_uploads, _labelled),
        find=exchange.mask,
    ),
    "spectrum": Part(
        line="hidden width and head of a language model, from its answers",
        lacks=_lacks(_text, _soft, _models),
        find=exchange.hidden_width,
    ),
    "memorisation": Part(
        line="texts that models, and students of soft and of hard labels, continue word for word",
        lacks=_lacks(_text, _models),
        find=memorised.memorisation,
    ),
    "inversion": Part(
        line="what a class looks like that one client alone holds, from its soft labels",
        lacks=_lacks(_uploads, _images, inversion.lacks, _labelled, _alone),
        find=inversion.inversion,
    ),
    "gradient-inversion": Part(
        line="images from one client's weights, under FedAvg: the reference",
        lacks=_lacks(_weights, _images, inversion.lacks),
        find=inversion.from_weights,
    ),
    "epsilon": Part(
        line="how much privacy was lost at least, beside what the ledgers say",
        lacks=_lacks(_canaries, _seen, _bounded),
        find=epsilon.epsilon,
    ),
    "theft": Part(
        line="what a student of the answers is worth as a copy of the model",
        lacks=_lacks(_soft, _models),
        find=exchange.stolen,
    ),
    "canary-clients": Part(
        line="how well the consensus shows one more client's answers",
        lacks=_lacks(_uploads, canary_clients.lacks),
        find=canary_clients.canary_clients,
        blind=True,
    ),
    "null": Part(
        line="the same attacks where there is nothing to find: do they find nothing?",
        lacks=_lacks(_seen),
        find=null.null,
    ),
}

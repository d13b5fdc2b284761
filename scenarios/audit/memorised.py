"""The part `memorisation`: which of a client's texts models continue word for word.

The client's own model is the teacher, another client's the student. What the student continues and
would not have continued alone, by the row local-only where the run has it, came by the exchange.
What the server makes of a client's answers is in `inherited`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedkd.rng import stream
from privacy.audit.memorisation import foretold, inheritance, memorised, whole_texts
from scenarios.audit.evidence import Cell
from scenarios.audit.findings import Found
from scenarios.audit.inherited import SHOWN, inherited, share
from scenarios.audit.views import Views

MOST_TEXTS = 100
"""Of each client."""
WORDS = 50
"""Tokens shown and asked for, or half a record where that is shorter; and a quarter of either."""


def memorisation(views: Views, rng: np.random.Generator) -> Found:
    """The share of clients' texts that their own model and another client's continue."""
    cell = views.cell
    length = cell.world.train.x.shape[3] + 1
    whole = min(WORDS, length // 2)
    counts = {n: _Count() for n in dict.fromkeys((whole, max(1, whole // 4)))}
    models = list(cell.models)
    texts = {client: _texts(cell, client) for client in models}
    for place, client in enumerate(models):
        mine = texts[client]
        if not len(mine):
            continue
        reader = models[(place + 1) % len(models)]
        taught = views.can_stand("student")
        own = foretold(cell.models[client], mine)
        others = foretold(cell.models[reader], mine) if taught else None
        alone = None if cell.alone is None else cell.alone.models.get(reader)
        baseline = foretold(alone, mine) if alone is not None and taught else None
        for n, count in counts.items():
            count.texts += len(mine)
            known = memorised(own, n, n)
            count.own += int(known.sum())
            if others is not None:
                also = memorised(others, n, n)
                count.student += int(also.sum())
                if baseline is not None:
                    found = inheritance(known, also, memorised(baseline, n, n))
                    count.inherited += found.inherited
                    count.could += found.teacher_only
    findings = []
    for n, count in counts.items():
        name = SHOWN.format(n=n)
        findings.append(share("owner", name, "texts of clients", count.own, count.texts))
        if views.can_stand("student"):
            findings.append(share("student", name, "texts of clients", count.student, count.texts))
        if cell.alone is not None and count.could:
            target = "texts that the owner alone continues"
            findings.append(share("student", name, target, count.inherited, count.could))
    if views.can_stand("uploads"):
        findings += inherited(cell, texts, tuple(counts), rng)
    return Found(findings)


class _Count:
    texts = own = student = inherited = could = 0


def _texts(cell: Cell, client: int) -> Tensor:
    """Whole texts int64 [m, L + 1] of a client's own records, drawn at random."""
    x, y = cell.world.train.rows(np.asarray(cell.world.private[client]))
    texts, _ = whole_texts(x, y)
    rng = stream(cell.seed, "audit", client=client, purpose="texts")
    return texts[torch.from_numpy(np.sort(rng.permutation(len(texts))[:MOST_TEXTS]))]

"""The parts `inversion` and `gradient-inversion`: images from soft labels, and from weights.

Paired-logits inversion asks for the classes that one client alone holds, and is given no proxy
sample of these, nor has the server's student learnt any. Gradient inversion is for FedAvg, and
shows what soft labels take away.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from fedkd.rng import stream
from privacy.audit import gradient_inversion, paired_logits
from privacy.audit.images import class_means, pixels
from privacy.audit.recording import SERVER, START
from privacy.audit.uploads import Answer
from scenarios.audit.evidence import Cell, Source, predicted, softened
from scenarios.audit.exchange import over_clients
from scenarios.audit.findings import Found
from scenarios.audit.opened import CPU
from scenarios.audit.views import Views

MOST_CLIENTS = 2
"""That are attacked: a net is trained for each."""
MOST_HOLDERS = 1000
"""Of more clients, none is looked for that holds a class alone."""
IMAGES = 8
"""That are sought in one client's weights, or as many as taught it, if these are fewer."""
MOST_TRUE = 200
"""Of a client's images that found ones are held against."""

Ints = NDArray[np.int64]


def lacks(cell: Cell) -> str | None:
    """Why a cell has no images that could be found."""
    x = cell.world.train.x
    if find_spec("skimage") is None:
        return "it needs scikit-image: install fedkd[audit]"
    if x.dtype != torch.uint8 and not (0 <= float(x.min()) <= float(x.max()) <= 1):
        return "it needs images whose pixels lie in [0, 1]"
    return None if min(x.shape[2:]) >= 3 else "it needs images of at least 3x3"


def alone(cell: Cell) -> dict[int, Ints]:
    """The classes that only one client holds, of the first clients that have some."""
    if cell.world.n_clients > MOST_HOLDERS:
        return {}
    counts = np.stack([cell.world.counts(i) for i in range(cell.world.n_clients)])
    holders = paired_logits.private_classes(counts)
    wanted = sorted(set(holders.values()) & set(cell.listened.clients))[:MOST_CLIENTS]
    return {i: np.array([c for c in holders if holders[c] == i], np.int64) for i in wanted}


def inversion(views: Views, rng: np.random.Generator) -> Found:
    """How many private classes are recognised in what a client's answers are turned back into."""
    cell = views.cell
    found: dict[str, list[paired_logits.Scores]] = {"paired": [], "client-only": []}
    null = []
    for client, classes in alone(cell).items():
        null.append(_inverted(cell, "server-only", client, classes))
        for name, scores in found.items():
            scores.append(_inverted(cell, name, client, classes))
    findings = []
    for name, scores in found.items():
        for measure, chance in (("success", _mean(null, "success")), ("ssim", _mean(null, "ssim"))):
            values = np.concatenate([getattr(one, measure) for one in scores]).astype(np.float64)
            note = "null: the same without the client's answers"
            findings.append(
                over_clients(
                    "inversion",
                    "uploads",
                    f"PLI, {name}",
                    "classes that one client holds",
                    measure,
                    values.tolist(),
                    null=chance,
                    most=1.0,
                    note=note,
                )
            )
    return Found(findings)


def _mean(scores: Sequence[paired_logits.Scores], measure: str) -> float:
    return float(np.concatenate([getattr(one, measure) for one in scores]).mean())


def _inverted(cell: Cell, name: str, client: int, classes: Ints) -> paired_logits.Scores:
    world, log = cell.world, cell.listened
    truth = cell.proxy_truth()
    assert truth is not None
    # A canary in the proxy set has no label, and no class that a mean image could be of.
    labels, kept = truth[0], np.flatnonzero(truth[0] >= 0)
    last = [r for r in log.rounds if log.answer(r, client) is not None][-1]
    told = cell.answer(Source(client), last)
    assert told is not None
    unseen = np.flatnonzero(~np.isin(labels, classes) & (labels >= 0)).astype(np.int32)
    student = cell.teach(Source(SERVER), 1, 1.0, only=unseen).models[0]
    server: Answer = (unseen, softened(predicted(student, cell.proxy.x[unseen])))
    images = cell.proxy.x
    made = paired_logits.invert(
        name,
        images,
        labels,
        paired_logits.without(_labelled(told, labels), labels, classes),
        server,
        classes,
        cell.seed + client,
        device=CPU,
    )
    means = class_means(images[kept], labels[kept], world.train.n_classes)
    x, y = world.train.rows(np.asarray(world.private[client]))
    own = class_means(x, y.numpy(), world.train.n_classes)
    means[classes] = own[classes]
    return paired_logits.scores(made, classes, means)


def _labelled(answer: Answer, labels: Ints) -> Answer:
    kept = labels[answer[0]] >= 0
    return answer[0][kept], answer[1][kept]


def from_weights(views: Views, rng: np.random.Generator) -> Found:
    """How like images found in the first round's weights are to a client's own."""
    cell, log = views.cell, views.cell.listened
    start = log.weights(log.rounds[0], START)
    assert start is not None
    found, null, sizes = [], [], []
    for client in cell.clients[:MOST_CLIENTS]:
        weights, taught = log.weights(log.rounds[0], client), log.n_records(log.rounds[0], client)
        if weights is None or not taught:
            continue
        model = cell.new_model(client, torch.Generator())  # its weights are not read
        x, y = cell.world.client(client)
        n = min(IMAGES, len(x))
        channels, height, width = x.shape[1:]
        # Copies: a recording's arrays are read-only, which torch warns of.
        images = gradient_inversion.invert(
            model, start.copy(), weights.copy(), (channels, height, width), n, cell.seed + client
        )
        draws = stream(cell.seed, "audit", client=client, purpose="true images")
        true = torch.from_numpy(np.sort(draws.permutation(len(x))[:MOST_TRUE]))
        others = torch.from_numpy(draws.permutation(len(cell.world.test))[:n])
        of_test = gradient_inversion.Found(
            pixels(cell.world.test.x[others]), cell.world.test.y[others].numpy(), 1.0
        )
        found += _alike(images, x[true], y[true].numpy())
        null += _alike(of_test, x[true], y[true].numpy())
        sizes.append(taught)
    said = f"{IMAGES} sought among {', '.join(map(str, sizes))} that taught; null: test images"
    finding = over_clients(
        "gradient-inversion",
        "uploads",
        "inverting gradients",
        "images of clients",
        "ssim",
        found,
        null=float(np.mean(null)) if null else None,
        most=1.0,
        note=said,
    )
    return Found([finding])


def _alike(found: gradient_inversion.Found, x: torch.Tensor, y: Ints) -> list[float]:
    return [float(one) for one in gradient_inversion.matched(found, x, y).ssim]

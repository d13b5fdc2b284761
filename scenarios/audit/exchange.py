"""Parts that read the answers themselves: `label-distribution`, `mask`, `spectrum`, `theft`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedkd.rng import stream, torch_stream
from fedkd.training import inputs
from privacy.audit import label_inference, mask_inference
from privacy.audit.intervals import half_width
from privacy.audit.label_inference import ESTIMATES, Scores
from privacy.audit.recording import SERVER
from privacy.audit.spectrum import head_residual, logits, spectrum
from privacy.audit.students import Theft, theft
from privacy.audit.uploads import Answer
from scenarios.audit.evidence import Cell, Source, sources
from scenarios.audit.findings import Finding, Found
from scenarios.audit.views import Views

Floats = NDArray[np.float64]

NEAR = 0.01
"""The share of all distances from a proxy image to a client's nearest one that count as near."""
MOST_STOLEN = 3
"""Clients whose model is cloned."""
MOST_JUDGED = 2000
"""Records of the test set that a clone is judged by."""


def over_clients(
    part: str,
    observer: str,
    attack: str,
    target: str,
    measure: str,
    values: Sequence[float],
    *,
    null: float | None = None,
    most: float | None = None,
    adaptive: bool = False,
    note: str = "",
) -> Finding:
    """The mean over clients, with its 95 % interval by Student's t."""
    found = np.asarray(values, np.float64)
    n = len(found)
    mean, half = float(found.mean()) if n else None, half_width(found)
    return Finding(
        part=part,
        observer=observer,
        attack=attack,
        adaptive=adaptive,
        target=target,
        measure=measure,
        value=mean,
        low=None if mean is None or half is None else mean - half,
        high=None if mean is None or half is None else mean + half,
        null=null,
        most=most,
        n=n,
        note=note,
    )


def label_distribution(views: Views, rng: np.random.Generator) -> Found:
    """Each client's classes from its soft labels: mean KL and total variation over clients."""
    cell = views.cell
    labels = _labels(cell)
    counts = np.stack([cell.world.counts(client) for client in cell.clients])
    truth = counts / counts.sum(axis=1, keepdims=True)
    everyone = counts.sum(axis=0) / counts.sum()
    null = [label_inference.nulls(one, everyone)["population"] for one in truth]
    findings = []
    for observer in ("uploads", "aggregate"):
        if not views.can_stand(observer):
            continue
        answers = {
            i: _rounds(cell, Source(i if observer == "uploads" else SERVER), labels)
            for i in cell.clients
        }
        for name in ESTIMATES:
            found = [
                label_inference.scores(
                    one, label_inference.infer(name, answers[i], len(everyone), labels)
                )
                for i, one in zip(cell.clients, truth, strict=True)
            ]
            findings += _distances("label-distribution", observer, name, found, null)
    return Found(findings)


def _distances(
    part: str, observer: str, attack: str, found: Sequence[Scores], null: Sequence[Scores]
) -> list[Finding]:
    target, note = "classes of clients", "null: the guess that all clients are alike"
    pairs = [("kl", "kl_nats", None), ("tv", "total_variation", 1.0)]
    return [
        over_clients(
            part,
            observer,
            attack,
            target,
            measure,
            [getattr(one, key) for one in found],
            null=float(np.mean([getattr(one, key) for one in null])),
            most=most,
            note=note,
        )
        for measure, key, most in pairs
    ]


def _labels(cell: Cell) -> NDArray[np.int64]:
    """Labels of the proxy set, negative where there is none."""
    truth = cell.proxy_truth()
    assert truth is not None
    return truth[0]


def _rounds(cell: Cell, source: Source, labels: NDArray[np.int64]) -> list[Answer]:
    """A source's answers of each round, about samples that have a label."""
    found = [cell.answer(source, round_) for round_ in cell.listened.rounds]
    kept = []
    for answer in found:
        if answer is not None:
            labelled = labels[answer[0]] >= 0
            kept.append((answer[0][labelled], answer[1][labelled]))
    return kept


def mask(views: Views, rng: np.random.Generator) -> Found:
    """What the choice of samples tells, whatever was answered: classes, and single records."""
    cell = views.cell
    clients = [source.of for source in sources(cell)]
    truth = cell.proxy_truth()
    assert truth is not None
    strata = truth[1]
    shares_of = np.stack([_accepted(cell, client) for client in clients])
    if (shares_of == 1).all():
        return Found([], note="every client answers everything: there is no mask")
    shares = mask_inference.class_shares(shares_of, strata, cell.world.train.n_strata)
    counts = np.stack([cell.world.counts(client) for client in clients])
    held = counts > 0
    findings = []
    if held.any() and not held.all():
        findings.append(
            _one("holds the class", "auc", mask_inference.holding_auc(shares, held), held.size)
        )
    own = counts / counts.sum(axis=1, keepdims=True)
    everyone = counts.sum(axis=0) / counts.sum()
    guesses = mask_inference.label_distributions(shares)
    found = [label_inference.scores(t, g) for t, g in zip(own, guesses, strict=True)]
    null = [label_inference.nulls(one, everyone)["population"] for one in own]
    findings += _distances("mask", "uploads", "shares of classes", found, null)
    near = _near(cell, clients)
    value, note = None, "no client has samples of one class both near to its records and not"
    if any(
        near[i][strata == c].any() and not near[i][strata == c].all()
        for i in range(len(clients))
        for c in np.unique(strata)
    ):
        value, note = mask_inference.record_auc(shares_of, near, strata), ""
    findings.append(_one("holds a near-duplicate", "auc", value, int(near.sum()), note))
    return Found(findings)


def _one(target: str, measure: str, value: float | None, n: int, note: str = "") -> Finding:
    return Finding(
        part="mask",
        observer="uploads",
        attack="accepted or not",
        target=target,
        measure=measure,
        value=value,
        null=0.5,
        most=1.0,
        n=n,
        note=note,
    )


def _accepted(cell: Cell, client: int) -> Floats:
    """The share of the rounds in which a client was heard that it answered each record."""
    positions = cell.proxy.positions
    answers = [cell.listened.answer(round_, client) for round_ in cell.listened.rounds]
    masks = [mask_inference.mask(a, cell.n_samples)[::positions] for a in answers if a is not None]
    return np.asarray(np.mean(masks, axis=0))


def _near(cell: Cell, clients: Sequence[int]) -> NDArray[np.bool_]:
    """Which proxy records are a near-duplicate of one of each client's: [clients, records].

    What a client contributed itself; of a public set, the nearest of all by Euclidean distance.
    """
    contributor = cell.proxy.contributor
    if (contributor >= 0).any():
        return np.stack([contributor == client for client in clients])
    pool = cell.proxy.x.flatten(1).double().numpy()
    distances = np.stack(
        [mask_inference.nearest(pool, _pixels(cell, client)) for client in clients]
    )
    return np.asarray(distances <= np.quantile(distances, NEAR))


def _pixels(cell: Cell, client: int) -> Floats:
    x, _ = cell.world.train.rows(np.asarray(cell.world.private[client]))
    return inputs(x).flatten(1).double().numpy()


def hidden_width(views: Views, rng: np.random.Generator) -> Found:
    """The language model's hidden width and its head, from the last round's answers."""
    cell = views.cell
    last = cell.listened.rounds[-1]
    findings = []
    for observer, asked in (("uploads", sources(cell)), ("aggregate", [Source(SERVER)])):
        if not views.can_stand(observer):
            continue
        for source in asked[:MOST_STOLEN]:
            answer = cell.answer(source, last)
            if answer is None or not cell.models:
                continue
            owner = source.of if source.of in cell.models else min(cell.models)
            model = cell.model_that_answered(owner)
            true = model.head.in_features
            seen = spectrum(logits(answer[1]), true)
            head = model.head.weight.detach().double().numpy()
            target = "head of a client" if source.of != SERVER else f"head of client {owner}"
            known = seen.width is not None
            for measure, value, null in (
                ("hidden width", float(seen.width) if seen.width is not None else None, None),
                ("head residual", head_residual(seen.basis, head) if known else None, 1.0),
            ):
                findings.append(
                    Finding(
                        part="spectrum",
                        observer=observer,
                        attack="singular values",
                        target=target,
                        measure=measure,
                        value=value,
                        null=null,
                        most=float(true) if measure == "hidden width" else None,
                        n=len(answer[0]),
                        note=seen.reason,
                    )
                )
    return Found(findings)


def stolen(views: Views, rng: np.random.Generator) -> Found:
    """What a student of a client's answers is worth as a copy of its model."""
    cell, test = views.cell, views.cell.world.test
    judged = stream(cell.seed, "audit", purpose="judged").permutation(len(test))[:MOST_JUDGED]
    x, y = test.rows(np.sort(judged))
    victims = [i for i in cell.clients if i in cell.models][:MOST_STOLEN]
    found: dict[str, list[Theft]] = defaultdict(list)
    blank: list[Theft] = []
    for client in victims:
        new = cell.new_model(client, torch_stream(cell.seed, "audit", client=client, purpose="new"))
        blank.append(theft(new, cell.models[client], x, y))
        for observer in ("uploads", "aggregate"):
            source = Source(client if observer == "uploads" else SERVER)
            heard = source.of == SERVER or client in cell.listened.clients
            if views.can_stand(observer) and heard:
                copy = cell.students(source).models[0]
                found[observer].append(theft(copy, cell.models[client], x, y))
    findings = []
    for observer, thefts in found.items():
        for measure in ("agreement", "accuracy"):
            most = (
                1.0 if measure == "agreement" else np.mean([t.accuracy_of_client for t in thefts])
            )
            findings.append(
                over_clients(
                    "theft",
                    observer,
                    "a student of the answers",
                    "models of clients",
                    measure,
                    [getattr(one, measure) for one in thefts],
                    null=float(np.mean([getattr(one, measure) for one in blank])),
                    most=float(most),
                    adaptive=cell.defended,
                    note=f"each of {len(x)} test records",
                )
            )
    return Found(findings)

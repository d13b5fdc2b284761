"""Of the part `memorisation`: what students of one client's answers have of that client's texts.

Three students of the same proxy texts, from the same weights and in the same batches: of the
client's soft labels, of its likeliest tokens alone (hard labels), and of the texts as they are,
which is the baseline. What a student continues and the baseline does not, it has from the client.
Source: Memorization Dynamics in Knowledge Distillation (Borkar et al. 2026, arXiv:2601.15394), read
at second hand. Deviation: there a student learns on the texts that its teacher was trained on; here
on the proxy set, since no other answers are exchanged, so far less can be inherited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.models.zoo import Classifier
from privacy.audit.intervals import above, below
from privacy.audit.memorisation import foretold, inheritance, memorised, overlap
from privacy.audit.memorisation_predictor import foretell, text_features
from privacy.audit.signals import Doubles
from scenarios.audit.evidence import Cell, Source, sources
from scenarios.audit.findings import Finding

Bools = NDArray[np.bool_]

MOST_VICTIMS = 3
"""Clients whose answers are distilled, three times each."""
KINDS = ("soft", "hard", "texts")
"""What students learn from."""
PART = "memorisation"
SHOWN = "greedy, {n} tokens after {n}"
NAMES = {"soft": "a student of soft labels", "hard": "a student of hard labels"}


def inherited(
    cell: Cell, texts: Mapping[int, Tensor], windows: Iterable[int], rng: np.random.Generator
) -> list[Finding]:
    """Shares of clients' texts that students continue, how far they agree, and who foretells it.

    Args: texts: of each client, int64 [m, L + 1]; windows: tokens shown, and as many asked for.
    """
    victims = [one.of for one in sources(cell) if one.of in cell.models and len(texts[one.of])]
    known: list[Bools] = []
    told: dict[str, list[Bools]] = {kind: [] for kind in KINDS}
    features: list[Tensor] = []
    for client in victims[:MOST_VICTIMS]:
        students = taught(cell, client)
        known.append(foretold(cell.models[client], texts[client]))
        for kind, model in students.items():
            told[kind].append(foretold(model, texts[client]))
        tokens = cell.world.tokens
        assert tokens is not None  # of language models only
        pair = cell.models[client], students["texts"]
        features.append(text_features(*pair, texts[client], tokens))
    if not known:
        return []
    kinds = [kind for kind in KINDS if not (kind == "hard" and cell.hard)]
    findings: list[Finding] = []
    for n in windows:
        hits = {kind: memorised(np.concatenate(told[kind]), n, n) for kind in kinds}
        own = memorised(np.concatenate(known), n, n)
        findings += _of_window(own, hits, SHOWN.format(n=n), cell.defended)
        findings.append(_foretold(torch.cat(features), hits["soft"], SHOWN.format(n=n), rng))
    return findings


def taught(cell: Cell, client: int) -> dict[str, Classifier]:
    """The three students of a client's answers, by `KINDS`."""
    soft = cell.soft_labels(Source(client))
    answered = ~np.isnan(soft[:, 0])
    truth = cell.proxy_truth()
    assert truth is not None  # texts are their own labels
    labels = {"hard": _named(soft, answered), "texts": np.where(answered, truth[0].ravel(), -1)}
    targets = {"soft": soft, **{kind: one_hot(y, soft.shape[1]) for kind, y in labels.items()}}
    return {
        kind: cell.learnt(Source(client), values, 1, 1.0).models[0]
        for kind, values in targets.items()
    }


def _named(soft: Doubles, answered: Bools) -> NDArray[np.int64]:
    """The likeliest class [samples], -1 where there is no answer."""
    return np.where(answered, np.nan_to_num(soft).argmax(axis=1), -1)


def one_hot(labels: NDArray[np.int64], n_classes: int) -> Doubles:
    """Float64 [samples, classes] of labels [samples]; a row of NaN where one is below 0."""
    rows = np.eye(n_classes)[np.maximum(labels, 0)]
    rows[labels < 0] = np.nan
    return rows


def _of_window(
    own: Bools, hits: Mapping[str, Bools], shown: str, adaptive: bool
) -> Sequence[Finding]:
    baseline = hits["texts"]
    findings = []
    for kind, name in NAMES.items():
        if kind not in hits:
            continue
        attack = f"{name}, {shown}"
        found = inheritance(own, hits[kind], baseline)
        by_chance = float(baseline.mean())
        findings.append(
            share(
                "uploads", attack, "texts of clients", found.student, len(own), by_chance, adaptive
            )
        )
        if found.teacher_only:
            target = "texts that the owner continues and the baseline does not"
            could = found.teacher_only
            findings.append(share("uploads", attack, target, found.inherited, could, 0.0, adaptive))
    if "hard" in hits:
        both = overlap(hits["soft"], hits["hard"])
        either = both.both + both.first_only + both.second_only
        said = f"{both.both} by both, {both.first_only} soft only, {both.second_only} hard only"
        attack, target = f"soft and hard alike, {shown}", "texts that either student continues"
        alike = share("uploads", attack, target, both.both, either, None, adaptive)
        findings.append(replace(alike, measure="jaccard", note=said))
    return findings


def _foretold(features: Tensor, found: Bools, shown: str, rng: np.random.Generator) -> Finding:
    """How well a client could say beforehand which texts a student will continue."""
    value, note = None, ""
    try:
        prediction = foretell(features, found, rng)
        value = prediction.auc
        weights = zip(
            ("zlib", "baseline's perplexity", "owner's perplexity", "KL"),
            prediction.predictor.coefficients,
            strict=True,
        )
        note = "coefficients: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights)
    except FedkdError as error:
        note = str(error)
    return Finding(
        part=PART,
        observer="owner",
        attack=f"foretold by zlib, perplexities and KL, {shown}",
        target="texts that a student of soft labels continues",
        measure="auc",
        value=value,
        null=0.5,
        most=1.0,
        n=len(found),
        note=note,
    )


def share(
    observer: str,
    attack: str,
    target: str,
    hits: int,
    n: int,
    null: float | None = 0.0,
    adaptive: bool = False,
) -> Finding:
    """A share of n texts with its exact 95 % interval; None of none."""
    return Finding(
        part=PART,
        observer=observer,
        attack=attack,
        adaptive=adaptive,
        target=target,
        measure="share",
        value=hits / n if n else None,
        low=float(below(hits, n, 0.025)) if n else None,
        high=float(above(hits, n, 0.025)) if n else None,
        null=null,
        most=1.0,
        n=n,
    )

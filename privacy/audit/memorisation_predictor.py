"""Can memorisation be foretold, before distilling? A text's features, and a predictor of them.

Empirical. After Memorization Dynamics in Knowledge Distillation (Borkar et al. 2026,
arXiv:2601.15394), read at second hand: there such a predictor had an AUC of 0.9997.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from fedkd.data.tokens import Tokens, decode
from fedkd.errors import FedkdError
from fedkd.models.zoo import Classifier
from privacy.audit.memorisation import BLOCK, reader, text_logits
from privacy.degrees import Evidence, Memorization, features

Bools = NDArray[np.bool_]


@torch.no_grad()
def text_features(
    teacher: Classifier, baseline: Classifier, texts: Tensor, tokens: Tokens
) -> Tensor:
    """What foretells memorisation, float64 [n, 4], of texts int64 [n, k >= 2].

    `privacy.degrees.features`: zlib entropy, perplexity of the baseline and of the teacher, and
    KL(teacher || baseline), of every token after the first. The models are put into evaluation
    mode.
    """
    for model in (teacher, baseline):
        reader(model, texts.shape[1] - 1)
        model.eval()
    rows = []
    for block in torch.split(texts, BLOCK):
        spans = [[(at, at + 1) for at in range(1, block.shape[1])]] * len(block)
        evidence = Evidence(
            texts=[decode(text.numpy().astype(np.int16), tokens) for text in block],
            offsets=spans,
            tokens=block[:, 1:].flatten(),
            client_logits=text_logits(teacher, block[:, :-1]).flatten(0, 1),
            public_logits=text_logits(baseline, block[:, :-1]).flatten(0, 1),
        )
        rows.append(features(evidence))
    return torch.cat(rows)


@dataclass(frozen=True)
class Prediction:
    """How well memorisation can be foretold before distilling, on texts that were not fitted on."""

    auc: float
    """Mean over the folds."""
    folds: Sequence[float]
    predictor: Memorization
    """Fitted on all texts, ready for Swing's degrees."""


def foretell(
    known: Tensor, found: Bools, rng: np.random.Generator, *, folds: int = 5
) -> Prediction:
    """The predictor of Memorization Dynamics, judged by stratified cross-validation.

    `known` float64 [n, 4] of `text_features`; `found` bool [n], what the student memorised. The
    regression is `privacy.degrees.Memorization.fit`.
    Raises: FedkdError with fewer than `folds` texts that were memorised, or that were not.
    """
    fewest = int(min(found.sum(), (~found).sum()))
    if fewest < folds:
        raise FedkdError(
            "too few texts to judge a predictor of memorisation",
            value=f"{int(found.sum())} memorised, {int((~found).sum())} not",
            allowed=f"{folds} or more of each",
        )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=int(rng.integers(2**32)))
    aucs = []
    for fit, judge in splitter.split(known.numpy(), found):
        fitted = Memorization.fit(known[fit], torch.from_numpy(found[fit]))
        aucs.append(float(roc_auc_score(found[judge], fitted.of(known[judge]).numpy())))
    whole = Memorization.fit(known, torch.from_numpy(found))
    return Prediction(float(np.mean(aucs)), aucs, whole)

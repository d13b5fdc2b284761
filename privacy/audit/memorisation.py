"""Memorisation: which texts does a language model continue word for word, and from whom has it that?

Empirical, and about greedy extraction only: it is not membership, and a text that is not
continued is not thereby safe. Measure and sets after Memorization Dynamics in Knowledge
Distillation (Borkar et al. 2026, arXiv:2601.15394), read at second hand.
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

from fedkd.data.dataset import NO_LABEL
from fedkd.data.tokens import Tokens, decode
from fedkd.errors import FedkdError
from fedkd.models.text import Memory, Reader, Transformer
from fedkd.models.zoo import Classifier
from fedkd.training import predict
from privacy.degrees import Evidence, Memorization, features

Bools = NDArray[np.bool_]

BLOCK = 64
"""Texts whose logits are held at once."""


def whole_texts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens int64 [m, L + 1] of the records without padding, and which they are, int64 [m].

    Shapes: x int16 [n, 1, 1, L], y int64 [n, L]. Padded records are the ends of documents.
    """
    kept = torch.nonzero((y != NO_LABEL).all(dim=1)).flatten()
    return torch.cat([x.flatten(1).long(), y[:, -1:]], dim=1)[kept], kept


@torch.no_grad()
def foretold(model: Classifier, texts: Tensor) -> Bools:
    """Whether each token after the first is what the model finds likeliest after those before it.

    Shapes: texts int64 [n, k]; returns bool [n, k - 1]. The model is put into evaluation mode.
    Raises: FedkdError for a model of images, or texts longer than it can read.
    """
    _reader(model, texts.shape[1] - 1)
    model.eval()
    device = next(model.parameters()).device
    found = [
        (_logits(model, block[:, :-1].to(device)).argmax(dim=2).cpu() == block[:, 1:].cpu())
        for block in torch.split(texts, BLOCK)
    ]
    return np.asarray(torch.cat(found).numpy())


def memorised(hits: Bools, prefix: int = 50, suffix: int = 50) -> Bools:
    """Discoverable memorisation, bool [n]: greedy decoding of the first `prefix` tokens gives
    exactly the next `suffix`.

    Of `hits` [n, k - 1] as `foretold` gives them; so one pass over the texts serves every prefix and
    suffix. Greedy decoding is exact for as long as each token that was foretold from the true ones
    is the true one, hence this is what decoding would find (`continuations` decodes).
    Source: Carlini et al. 2023, arXiv:2202.07646: 50 and 50.
    Raises: FedkdError where the texts are shorter than prefix + suffix, or either is below 1.
    """
    length = hits.shape[1] + 1
    if min(prefix, suffix) < 1 or prefix + suffix > length:
        raise FedkdError(
            "prefix and suffix do not fit into the texts",
            value=f"{prefix} + {suffix} tokens",
            allowed=f"1 or more each, {length} together",
            fix="shorter ones, or a higher data.length",
        )
    found: Bools = hits[:, prefix - 1 : prefix - 1 + suffix].all(axis=1)
    return found


@torch.no_grad()
def continuations(model: Classifier, prefixes: Tensor, n_new: int) -> Tensor:
    """Greedy decoding: the `n_new` tokens int64 [n, n_new] after each of prefixes int64 [n, p].

    For showing what the model says. Each prefix is read once, and then one token at a time.
    The model is put into evaluation mode.
    Raises: FedkdError for a model of images, or where it cannot read that many tokens.
    """
    body = _reader(model, prefixes.shape[1] + n_new - 1)
    model.eval()
    tokens, memory = prefixes.to(next(model.parameters()).device), Memory()
    said = []
    for _ in range(n_new):
        states, memory = body.read(tokens, memory)
        tokens = model.head(states[:, -1]).argmax(dim=1, keepdim=True)
        said.append(tokens)
    return torch.cat(said, dim=1).cpu()


@dataclass(frozen=True)
class Inheritance:
    """How many of the same texts each model memorised, and what the student has from whom."""

    texts: int
    teacher: int
    student: int
    baseline: int
    """A model of the student's size that learnt from the data themselves."""
    inherited: int
    """In teacher and student, not in the baseline."""
    teacher_only: int
    """In the teacher and not in the baseline: what could be inherited."""
    easy: int
    """In all three: whoever learns them memorises them."""


def inheritance(teacher: Bools, student: Bools, baseline: Bools) -> Inheritance:
    """The counts of what three models memorised, bool [n] each.

    Of a baseline that was trained several times, give what any of them memorised.
    """
    counts = (
        teacher,
        student,
        baseline,
        teacher & student & ~baseline,
        teacher & ~baseline,
        teacher & student & baseline,
    )
    return Inheritance(len(teacher), *(int(found.sum()) for found in counts))


@dataclass(frozen=True)
class Overlap:
    """Two sets of memorised texts, of students from soft and from hard labels for example."""

    both: int
    first_only: int
    second_only: int
    jaccard: float
    """both / either; NaN where both sets are empty."""


def overlap(first: Bools, second: Bools) -> Overlap:
    """What two models memorised, bool [n] each, and how far that is the same."""
    both, either = int((first & second).sum()), int((first | second).sum())
    return Overlap(
        both,
        int((first & ~second).sum()),
        int((second & ~first).sum()),
        both / either if either else float("nan"),
    )


@torch.no_grad()
def text_features(
    teacher: Classifier, baseline: Classifier, texts: Tensor, tokens: Tokens
) -> Tensor:
    """What foretells memorisation, float64 [n, 4], of texts int64 [n, k >= 2].

    `privacy.degrees.features`: zlib entropy, perplexity of the baseline and of the teacher, and
    KL(teacher || baseline), of every token after the first. Both models are put into evaluation mode.
    """
    teacher.eval(), baseline.eval()
    rows = []
    for block in torch.split(texts, BLOCK):
        spans = [[(at, at + 1) for at in range(1, block.shape[1])]] * len(block)
        evidence = Evidence(
            texts=[decode(text.numpy().astype(np.int16), tokens) for text in block],
            offsets=spans,
            tokens=block[:, 1:].flatten(),
            client_logits=_logits(teacher, block[:, :-1]).flatten(0, 1),
            public_logits=_logits(baseline, block[:, :-1]).flatten(0, 1),
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


def foretell(known: Tensor, found: Bools, rng: np.random.Generator, *, folds: int = 5) -> Prediction:
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


def _logits(model: Classifier, texts: Tensor) -> Tensor:
    """[n, k, classes] of tokens int64 [n, k]."""
    return predict(model, texts[:, None, None, :])


def _reader(model: Classifier, n_tokens: int) -> Reader:
    body = model.body
    if not isinstance(body, Reader):
        raise FedkdError("memorisation is measured on language models", value=type(body).__name__)
    if isinstance(body, Transformer) and n_tokens > body.positions.num_embeddings:
        raise FedkdError(
            "the texts are longer than the model can read",
            value=f"{n_tokens} tokens",
            allowed=f"up to {body.positions.num_embeddings}",
            fix="shorter ones, or a higher data.length",
        )
    return body

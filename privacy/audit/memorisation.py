"""Memorisation: which texts does a language model continue token by token, if shown the beginning?

Empirical, and about greedy extraction only: it is not membership, and a text that is not
continued is not thereby safe. Measure and sets after Memorization Dynamics in Knowledge
Distillation (Borkar et al. 2026, arXiv:2601.15394), read at second hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.dataset import NO_LABEL
from fedkd.errors import FedkdError
from fedkd.models.text import Memory, Reader, Transformer
from fedkd.models.zoo import Classifier
from fedkd.training import predict

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
    reader(model, texts.shape[1] - 1)
    model.eval()
    found = []
    for block in torch.split(texts, BLOCK):
        found.append(text_logits(model, block[:, :-1]).argmax(dim=2) == block[:, 1:])
    return np.asarray(torch.cat(found).numpy())


def memorised(hits: Bools, prefix: int = 50, suffix: int = 50) -> Bools:
    """Discoverable memorisation, bool [n]: greedy decoding of the first `prefix` tokens gives
    exactly the next `suffix`.

    Of `hits` [n, k - 1] as `foretold` gives them, so one pass over the texts serves every prefix
    and suffix. Greedy decoding follows the true text as long as each true token is the likeliest
    after the true ones before it; so this is what decoding finds (`continuations` decodes).
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
    return np.asarray(hits[:, prefix - 1 : prefix - 1 + suffix].all(axis=1))


@torch.no_grad()
def continuations(model: Classifier, prefixes: Tensor, n_new: int) -> Tensor:
    """Greedy decoding: the `n_new` tokens int64 [n, n_new] after each of prefixes int64 [n, p].

    For showing what the model says. Each prefix is read once, and then one token at a time.
    The model is put into evaluation mode.
    Raises: FedkdError for a model of images, or where it cannot read that many tokens.
    """
    body = reader(model, prefixes.shape[1] + n_new - 1)
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


def text_logits(model: Classifier, texts: Tensor) -> Tensor:
    """Logits [n, k, classes] of tokens int64 [n, k], both in the CPU's memory."""
    device = next(model.parameters()).device
    return predict(model, texts[:, None, None, :].to(device)).cpu()


def reader(model: Classifier, n_tokens: int) -> Reader:
    """The body of a language model.

    Raises: FedkdError for a model of images, or one that cannot read `n_tokens`.
    """
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

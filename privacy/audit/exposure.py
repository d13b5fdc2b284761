"""Exposure: how much likelier a canary's secret is to a language model than chance would have it.

An empirical measure of what one model remembers, no guarantee: a low exposure rules nothing out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.canaries import FORMATS, Canary
from fedkd.data.tokens import Tokens, encode
from fedkd.errors import FedkdError
from fedkd.models.text import Memory, Reader
from fedkd.models.zoo import Classifier

BATCH = 1024
"""Contexts that the model reads at once."""

NULL_BITS = math.log2(math.e)
"""Mean exposure of a secret that the model knows nothing of, in a large space: not 0 but 1.44."""


@dataclass(frozen=True)
class Exposure:
    """A canary's `rank` among the `size` candidates of its space; 1 is the likeliest."""

    canary: Canary
    rank: int
    size: int

    @property
    def bits(self) -> float:
        """log2 size - log2 rank: from 0 to log2 size, and NULL_BITS on average by chance."""
        return math.log2(self.size) - math.log2(self.rank)


def exposures(model: Classifier, canaries: Iterable[Canary], tokens: Tokens) -> list[Exposure]:
    """The exposure of each canary under `model`, exact, in the order given.

    Source: Carlini et al. 2019, arXiv:1802.08232, section 4, with every candidate of the space
    ranked. Deviations: candidates are ranked by the loss of the secret alone, given what comes
    before it, and not of the whole sentence, whose other tokens say nothing of the secret.
    A candidate that is as likely as the secret is put before it: that never overstates exposure.
    """
    found = []
    for canary in canaries:
        blanks = [encode(symbols, tokens) for symbols in FORMATS[canary.format].blanks]
        losses = candidate_losses(model, encode(canary.prefix, tokens), blanks)
        found.append(Exposure(canary, rank(losses, canary.index), len(losses)))
    return found


def rank(losses: NDArray[np.float64], index: int) -> int:
    """The rank of candidate `index`, from 1: how many candidates lose no more than it does.

    >>> rank(np.array([3.0, 1.0, 2.0, 2.0]), 2)
    3
    """
    return int((losses <= losses[index]).sum())


@torch.no_grad()
def candidate_losses(
    model: Classifier, prefix: NDArray[np.int16], blanks: Sequence[NDArray[np.int16]]
) -> NDArray[np.float64]:
    """The loss in nats of every candidate, given the prefix.

    Shapes: `prefix` int16 [p >= 1]; `blanks` int16 [s_k], for each place k of the secret the tokens
    that may stand there; returns float64 [s_0 * s_1 * …], the last place changing fastest.

    The prefix is read once, and candidates that begin alike share what the model says of their
    beginning, so that a million secrets of six digits take 111,111 contexts of up to six tokens.
    The model is put into evaluation mode.
    Raises: FedkdError for a model of images.
    """
    if not isinstance(model.body, Reader):
        raise FedkdError("exposure is measured on language models", value=type(model.body).__name__)
    model.eval()
    device = next(model.parameters()).device
    whole = torch.from_numpy(prefix).long().to(device)[None]
    memory: Memory = model.body.read(whole[:, :-1])[1] if whole.shape[1] > 1 else ()
    contexts = whole[:, -1:]  # the prefix's last token and then a beginning of the secret
    losses = torch.zeros(1, dtype=torch.float64, device=device)
    for place, symbols in enumerate(blanks):
        choices = torch.from_numpy(symbols).long().to(device)
        blocks = torch.split(contexts, BATCH)
        step = torch.cat([_losses(model, model.body, memory, block, choices) for block in blocks])
        losses = (losses[:, None] + step).flatten()
        if place + 1 < len(blanks):
            grown = contexts.repeat_interleave(len(choices), dim=0)
            contexts = torch.cat([grown, choices.repeat(len(contexts))[:, None]], dim=1)
    return losses.cpu().numpy()


def _losses(
    model: Classifier, body: Reader, memory: Memory, contexts: Tensor, choices: Tensor
) -> Tensor:
    """Nats, float64 [b, s], of each of the tokens `choices` [s] after each context [b, k]."""
    shared = tuple(part.expand(len(contexts), *part.shape[1:]) for part in memory)
    last = body.read(contexts, shared)[0][:, -1]
    logs: Tensor = model.head(last).double().log_softmax(dim=1)
    return -logs[:, choices]

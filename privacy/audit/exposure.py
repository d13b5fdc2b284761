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
"""Beginnings that the model goes on with at once."""

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

    The prefix is read once, and candidates that begin alike share their beginning, so that a
    million secrets of six digits take 111,111 tokens.
    The model is put into evaluation mode.
    Raises: FedkdError for a model of images.
    """
    if not isinstance(model.body, Reader):
        raise FedkdError("exposure is measured on language models", value=type(model.body).__name__)
    model.eval()
    device = next(model.parameters()).device
    whole = torch.from_numpy(prefix).long().to(device)[None]
    memory: Memory = model.body.read(whole[:, :-1])[1] if whole.shape[1] > 1 else ()
    choices = [torch.from_numpy(symbols).long().to(device) for symbols in blanks]
    return _losses(model, model.body, memory, whole[:, -1:], choices)[0].cpu().numpy()


def _losses(
    model: Classifier, body: Reader, memory: Memory, last: Tensor, choices: Sequence[Tensor]
) -> Tensor:
    """Nats, float64 [b, s_0 * s_1 * …], of all that may follow b beginnings.

    Shapes: `last` int64 [b, 1], the token that each beginning ends with; `memory` of b beginnings
    without it; `choices` int64 [s_k], the tokens of each place that is left.
    """
    states, memory = body.read(last, memory)
    logs: Tensor = model.head(states[:, -1]).double().log_softmax(dim=1)
    here = -logs[:, choices[0]]
    if len(choices) == 1:
        return here
    n = len(choices[0])
    grown = choices[0].repeat(len(last))[:, None]
    memories = [torch.split(part.repeat_interleave(n, dim=0), BATCH) for part in memory]
    rest = [
        _losses(model, body, tuple(parts), block, choices[1:])
        for block, *parts in zip(torch.split(grown, BATCH), *memories, strict=True)
    ]
    return (here.flatten()[:, None] + torch.cat(rest)).view(len(last), -1)

"""Canary readout: how far uploaded soft labels single out a secret that the proxy set holds.

Where the sentence of a canary is in the proxy set, clients answer its positions, and what they say
there of the secret's tokens shows whether they have seen it. No model is needed: an upload, or the
consensus, is read as it is. Empirical; compare with `privacy.audit.exposure`, which asks the
model.

What is ranked, precisely. At place k of the secret the upload holds p(. | prefix, the *true* tokens
before k), and nothing of what it would be after other tokens. So the loss of the true secret, the
sum over places of -ln p(its token), is exact, but another secret's is known only up to where it
first differs. Two ranks follow, with ties counted against the secret:

* `least`: the lowest exposure that the upload allows; never above that of a model that answers so.
  A candidate that first differs at place k has a loss of at least its part up to k. Of the secrets
  that begin like it, no more than exp(true loss - part) can be as likely as the true one, since
  the probabilities of their ends sum to 1 at most. That many are put before it.
* `independent`: each candidate's loss is the sum of its tokens' losses in the rows that are known.
  Exact for a model whose view of a place does not depend on the tokens before it; else an
  estimate, on either side. By chance `NULL_BITS` on average, as the model's exposure is; `least`
  is below that.

An observer who knows the temperatures (Swing with public degrees, or one for all) undoes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from fedkd.data.canaries import FORMATS, Canary
from fedkd.data.tokens import Tokens, encode
from privacy.audit.exposure import Exposure, rank

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Readout:
    """What soft labels at a canary's positions say of its secret."""

    canary: Canary
    place_ranks: tuple[int, ...]
    """Of each token of the secret among those that may stand there, given the true ones before."""
    answered: int
    """How many of the places had a soft label; the others are taken as uniform."""
    least: Exposure
    independent: Exposure


def positions(canary: Canary, record: int, length: int, tokens: Tokens) -> NDArray[np.int32]:
    """The proxy ids int32 [k] at which the tokens of the secret are foretold.

    `record` is the proxy record that holds the sentence from its start, in a set of records of
    `length` tokens: ids are record * length + place, and a place foretells the token after it.
    """
    first = record * length + len(encode(canary.prefix, tokens)) - 1
    return np.arange(first, first + len(encode(canary.secret, tokens)), dtype=np.int32)


def undo_temperature(soft: Floats, temperatures: Floats | float) -> Floats:
    """Soft labels [k, classes] as they were before a temperature, one number or [k].

    softmax(z / T) ^ T is softmax(z) once it is normalised. What clipping, pooling or noise took
    stays away; average several uploads first (`uploads.mean_rows`), so that noise grows less.
    """
    heat = np.broadcast_to(np.asarray(temperatures, np.float64), len(soft))[:, None]
    with np.errstate(invalid="ignore"):
        cool: Floats = np.exp(log_softmax(heat * _logs(soft), axis=1))
    return cool


def readout(soft: Floats, canary: Canary, tokens: Tokens) -> Readout:
    """The exposure of a canary in soft labels at its `positions`.

    Shapes: soft float64 [k, classes], distributions, a row for each token of the secret; rows of
    NaN were not answered. Take the softmax of uploads that are logits.
    """
    blanks = FORMATS[canary.format].blanks
    secret = encode(canary.secret, tokens)
    losses, true = [], []
    for row, symbols, token in zip(soft, blanks, secret, strict=True):
        choices = encode(symbols, tokens)
        uniform = np.full(len(choices), np.log(len(choices)))
        losses.append(uniform if np.isnan(row).any() else -_logs(row)[choices])
        true.append(int(np.flatnonzero(choices == token)[0]))
    size = FORMATS[canary.format].size
    total = np.zeros(1)
    for loss in losses:
        total = (total[:, None] + loss).ravel()
    return Readout(
        canary,
        tuple(rank(loss, at) for loss, at in zip(losses, true, strict=True)),
        int((~np.isnan(soft).any(axis=1)).sum()),
        Exposure(canary, _most_ahead(losses, true), size),
        Exposure(canary, rank(total, canary.index), size),
    )


def _most_ahead(losses: list[Floats], true: list[int]) -> int:
    """The highest rank that the true secret may have, over all models that answer so."""
    spare = sum(float(loss[at]) for loss, at in zip(losses, true, strict=True))
    ends = int(np.prod([len(loss) for loss in losses]))
    if np.isinf(spare):
        return ends
    ahead = 1
    for loss, at in zip(losses, true, strict=True):
        ends //= len(loss)
        # `spare` is the loss of the true secret from this place on.
        fit = np.exp(np.minimum(spare - np.delete(loss, at), np.log(ends + 1))) * (1 + 1e-9)
        ahead += int(np.minimum(ends, np.floor(fit)).sum())
        spare -= float(loss[at])
    return ahead


def _logs(soft: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        logs: Floats = np.log(np.maximum(soft, 0))  # noise may go below 0
    return logs

"""How private each position of the proxy set is: the degrees that a scenario's Swing can name.

Public degrees are read off the proxy set's texts, so that everybody knows them. The others ask the
client's model or its records, so the degree itself is a secret.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.client import Client, ProxySet
from fedkd import protection, training
from fedkd.config_sections import Phase
from fedkd.data.dataset import NO_LABEL
from fedkd.data.tokens import VOCABULARY, Tokens, decode, encode
from fedkd.exchange.kmeans import distances, kmeans
from fedkd.models.zoo import build
from fedkd.rng import stream, torch_stream
from privacy import degrees
from privacy.degrees import Evidence
from privacy.ngrams import NGrams


def pooled(row: protection.Swing, tokens: Tokens | None) -> tuple[int, ...]:
    """The classes that answers do not tell apart: the tokens of `row.pooled`; none for images."""
    return () if tokens is None else tuple(sorted(set(encode(row.pooled, tokens).tolist())))


def public(proxy: ProxySet, row: protection.Swing, tokens: Tokens | None) -> Tensor | None:
    """The degree [n * L] of every position of the proxy set, where everybody can compute it."""
    return _public(proxy, row, tokens) if row.degree in protection.PUBLIC_DEGREES else None


@lru_cache(maxsize=2)
def _public(proxy: ProxySet, row: protection.Swing, tokens: Tokens | None) -> Tensor:
    """A position is as private as the token that it predicts, the next one; what follows the record
    is taken to be as private as its last token.
    """
    assert tokens is not None  # a scenario of images has no such degree
    ids = _ids(proxy)
    found = torch.zeros(ids.shape, dtype=torch.float64)
    if row.degree == "patterns":
        evidence = Evidence(texts=_texts(ids, tokens), offsets=_spans(ids))
        found = degrees.Patterns().degree(evidence).view(ids.shape)
    else:
        # By the other half of the records: to n-grams of its own record, no secret is a surprise.
        for half in (0, 1):
            ngrams = NGrams(ids[1 - half :: 2].tolist(), vocabulary=VOCABULARY[tokens])
            mine = ids[half::2]
            evidence = Evidence(ngrams=ngrams, tokens=mine.flatten(), offsets=_spans(mine))
            found[half::2] = degrees.Rarity().degree(evidence).view(mine.shape)
    return torch.cat([found[:, 1:], found[:, -1:]], dim=1).flatten()


def private(
    client: Client, proxy: ProxySet, row: protection.Swing, records: Tensor, logits: Tensor
) -> Tensor:
    """The degree [m * L] of positions of the records [m] by what only the client knows.

    `classes` asks the model which class a sample is of, `divergence` and `memorization` how it
    differs from a public model; `density` reads the private records.
    Shapes: logits [m * L, classes] of the client's model.
    """
    match row.degree:
        case "classes":
            evidence = Evidence(labels=logits.argmax(dim=1).cpu())
            return degrees.PrivateClasses(private=row.private_classes).degree(evidence)
        case "density":
            return _density(client, proxy, records)
    ours, theirs = logits.cpu(), _public_logits(client, proxy)[records.cpu()].flatten(0, 1)
    if row.degree == "divergence":
        evidence = Evidence(client_logits=ours, public_logits=theirs)
        return degrees.Divergence().degree(evidence)
    return _memorization(client, _ids(proxy)[records.cpu()], row, ours, theirs)


def _density(client: Client, proxy: ProxySet, records: Tensor) -> Tensor:
    x, _ = client.world.client(client.id)
    mine = training.inputs(x).flatten(1).cpu()
    centroids = kmeans(mine, 10, torch_stream(client.seed, "client", 0, client.id, "density"))
    halfway = float(distances(mine, centroids).median()) or 1.0
    near = distances(proxy.x.flatten(1).cpu()[records.cpu()], centroids)
    return degrees.Density(halfway=halfway).degree(Evidence(distances=near))


def _memorization(
    client: Client, ids: Tensor, row: protection.Swing, ours: Tensor, theirs: Tensor
) -> Tensor:
    """Every position of a text has the text's degree, standardised over the texts answered.

    Shapes: ids [m, L]; ours, theirs [m * L, classes], logits of the client's and a public model.
    """
    tokens = client.world.tokens
    assert tokens is not None  # a scenario of images has no such degree
    n, length = ids.shape

    def to_next(logits: Tensor) -> Tensor:
        """Without the last position of a record, since what follows it is not known."""
        return logits.view(n, length, -1)[:, :-1].flatten(0, 1)

    known = degrees.features(
        Evidence(
            texts=_texts(ids, tokens),
            offsets=_spans(ids[:, 1:]),
            tokens=ids[:, 1:].flatten(),
            client_logits=to_next(ours),
            public_logits=to_next(theirs),
        )
    )
    predictor = degrees.Memorization.against(known, row.coefficients)
    return predictor.of(known).repeat_interleave(length)


def _public_logits(client: Client, proxy: ProxySet) -> Tensor:
    """What a model that never saw private data says of the proxy set's texts: [n, L, classes].

    It is the first of `model.names`, and learns as long as a client does in the whole run.
    """
    run = client.scenario.training
    phase = run.local.model_copy(update={"epochs": run.warmup + run.rounds * run.local.epochs})
    name, n_classes = client.scenario.model.names[0], client.world.train.n_classes
    return _learnt_from(proxy, name, phase, n_classes, client.seed)


@lru_cache(maxsize=1)
def _learnt_from(proxy: ProxySet, name: str, phase: Phase, n_classes: int, seed: int) -> Tensor:
    """Logits of each half of the records by a model of the other half: nobody is surprised by what
    it has learnt itself. From public values alone, so every client finds the same.
    """
    ids = proxy.x.flatten(1)
    nothing = torch.full_like(ids[:, :1], NO_LABEL)
    following = torch.cat([ids[:, 1:], nothing], dim=1)
    shape = (1, 1, ids.shape[1])
    found = torch.zeros(*ids.shape, n_classes)
    for half in (0, 1):
        init = torch_stream(seed, "server", purpose=f"public model {half}")
        model = build(name, shape, n_classes, init, torch.int16).to(ids.device)
        draws = stream(seed, "server", purpose=f"public batches {half}")
        theirs, labels = proxy.x[1 - half :: 2], following[1 - half :: 2]
        training.fit(model, theirs, labels, training.cross_entropy, phase, draws)
        found[half::2] = training.predict(model.eval(), proxy.x[half::2]).cpu()
    return found


def _ids(proxy: ProxySet) -> Tensor:
    return proxy.x.flatten(1).cpu()


def _spans(ids: Tensor) -> list[list[tuple[int, int]]]:
    """One character a token: the offsets of every record of ids [n, L]."""
    return [[(t, t + 1) for t in range(ids.shape[1])]] * len(ids)


def _texts(ids: Tensor, tokens: Tokens) -> list[str]:
    return [_characters(record.numpy(), tokens) for record in ids]


def _characters(ids: NDArray[np.int64], tokens: Tokens) -> str:
    """One character a token, also where tokens are bytes."""
    if tokens == "bytes":
        return ids.astype(np.uint8).tobytes().decode("latin-1")
    return decode(ids.astype(np.int16), tokens)

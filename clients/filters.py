"""Which proxy records a client answers: its score is fitted and its gate applied here.

A client sees the proxy pool without labels. Where a scenario deals data out, what the pool holds is
known, and the filter is measured by it; only the gate `oracle` is made of that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients import guard
from clients.client import Client, ProxySet
from fedkd import protection, training
from fedkd.data.partition import Own
from fedkd.errors import FedkdError
from fedkd.exchange.gate import Oracle, Soft, accept, needs_scores
from fedkd.exchange.score import fit_together
from fedkd.models.zoo import Classifier
from fedkd.rng import stream, torch_stream
from privacy.audit.roc import roc


def filter_pool(
    clients: Sequence[Client], models: Sequence[Classifier], proxy: ProxySet
) -> list[Tensor]:
    """Each client's mask [n] of the proxy records that it answers; the score is fitted here.

    Of a gate that weighs, the weights: float32, and not bool.

    Raises: FedkdError for distances between the raw tokens of texts, whose numbers mean nothing,
        and for the oracle where the pool's labels are not known.
    """
    method = clients[0].scenario.method
    own = [torch.from_numpy(proxy.contributor == client.id) for client in clients]
    if not needs_scores(method.gate):
        nothing, same = torch.zeros(0), torch.zeros(len(proxy.x))
        return [accept(method.gate, nothing, same, mine)[0] for mine in own]
    if isinstance(method.gate, Oracle):
        return [_perfect(client, proxy, mine) for client, mine in zip(clients, own, strict=True)]
    if method.score.name != "none" and method.score.space == "pixels" and proxy.positions > 1:
        raise FedkdError(
            "the distance between two texts' tokens says nothing",
            value=f"method.score.space = {method.score.space}",
            allowed="features",
            fix='method.score.space = "features"',
        )
    if not isinstance(clients[0].scenario.privacy.filter, protection.PlainFilter):
        return [
            _private_mask(client, proxy, mine) for client, mine in zip(clients, own, strict=True)
        ]
    start = time.perf_counter()
    heldout, fitted, ys, draws = [], [], [], []
    for client, model in zip(clients, models, strict=True):
        x, y = client.world.client(client.id)
        order = stream(client.seed, "client", 0, client.id, "heldout").permutation(len(x))
        share = client.scenario.training.heldout
        n_heldout = min(max(1, round(share * len(x))), len(x) - 1)
        seen = _look(client, model, x)
        heldout.append(seen[torch.from_numpy(order[:n_heldout])])
        fitted.append(seen[torch.from_numpy(order[n_heldout:])])
        ys.append(y[torch.from_numpy(order[n_heldout:])].to(client.device))
        draws.append(torch_stream(client.seed, "client", client.round, client.id, "score"))
    publics: list[Tensor | None] = [
        _look(client, model, proxy.x[~mine.to(proxy.x.device)])
        if method.score.needs_public
        else None
        for client, model, mine in zip(clients, models, own, strict=True)
    ]
    states = fit_together(method.score, fitted, ys, draws, publics)
    masks, scores = [], []
    for client, model, mine, state, apart in zip(
        clients, models, own, states, heldout, strict=True
    ):
        of_pool = method.score.score(state, _look(client, model, proxy.x)).cpu()
        of_own = method.score.score(state, apart).cpu()
        scores.append(of_pool)
        if isinstance(method.gate, Soft):
            masks.append(method.gate.weights(of_own, of_pool, mine))
            continue
        mask, threshold = accept(method.gate, of_own, of_pool, mine)
        if np.isfinite(threshold):
            client.metrics["threshold"] = threshold
        masks.append(mask)
    seconds = (time.perf_counter() - start) / len(clients)
    for client, of_pool, mine in zip(clients, scores, own, strict=True):
        client.took("filter", seconds)
        strange = None if method.score.name == "none" else _strange(client, proxy)
        found = None if strange is None else _auroc(of_pool, strange, ~mine.numpy())
        if found is not None:
            client.metrics["filter_auroc"] = found
    return masks


def _perfect(client: Client, proxy: ProxySet, own: Tensor) -> Tensor:
    strange = _strange(client, proxy)
    if strange is None:
        raise FedkdError(
            "the oracle reads the proxy set's true labels, and they are not known",
            value="method.gate.name = 'oracle'",
            fix="a run in which every contributor is there, or another gate",
        )
    scores = torch.from_numpy(strange).float()
    return accept(client.scenario.method.gate, scores[:0], scores, own)[0]


def _strange(client: Client, proxy: ProxySet) -> NDArray[np.bool_] | None:
    """Which proxy records [n] are of a stratum that the client does not hold: to measure by, and
    for the oracle; None where nobody knows, or not all contributors came."""
    truth = None if isinstance(client.scenario.partition, Own) else client.world.proxy_truth
    if truth is None or len(truth[1]) != len(proxy.x):
        return None
    strange: NDArray[np.bool_] = client.world.counts(client.id)[truth[1]] == 0
    return strange


def _auroc(score: Tensor, strange: NDArray[np.bool_], others: NDArray[np.bool_]) -> float | None:
    """How well a score [n] tells the others' strange records from the rest; None where there is
    nothing to tell apart."""
    values = score.double().numpy()
    groups = values[others & strange], values[others & ~strange]
    return roc(*groups).auc if all(map(len, groups)) else None


def _private_mask(client: Client, proxy: ProxySet, own: Tensor) -> Tensor:
    start = time.perf_counter()
    mask, threshold = guard.private_mask(client, proxy, own)
    if np.isfinite(threshold):
        client.metrics["threshold"] = threshold
    client.took("filter", time.perf_counter() - start)
    return mask


def _look(client: Client, model: Classifier, x: Tensor) -> Tensor:
    """What a score measures by, [n, d]: pixels, or features; of a text, their mean over tokens.

    Or logits: [n, classes], and of a text [n, L, classes].
    """
    x = x.to(client.device)
    space = client.scenario.method.score.space
    if space == "pixels":
        return training.inputs(x).flatten(1)
    model.eval()
    if space == "logits":
        return training.predict(model, x)
    found = training.features(model, x)
    return found if found.ndim == 2 else found.mean(dim=1)

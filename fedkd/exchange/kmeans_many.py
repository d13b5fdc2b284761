"""k-means of many clients in one call: what `fedkd.exchange.kmeans` finds for each, up to rounding.

Rounding also decides between choices that tie, and may do so otherwise than in the single call.
Sets of points are padded to one length with points that weigh nothing. Each client's draws come
from its own generator in the order of the single call. Every iteration compares all points: bounds
save a processor work, but a wide device only time to decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

from fedkd.errors import FedkdError
from fedkd.exchange.kmeans import CANCELS, kmeans, n_candidates, n_seeded


def kmeans_many(
    parts: Sequence[Tensor],
    k: int,
    generators: Sequence[torch.Generator],
    *,
    max_iterations: int = 25,
) -> list[Tensor]:
    """The centroids [k'_i, d] of each of the sets of points parts[i] [n_i, d].

    Parts may share a generator, and then draw from it in their order. Whoever has fewer than k
    points, or fewer than k distinct ones among those that seeds are sought in, is taken alone, as
    are those that draw from the same generator.
    Raises: FedkdError as `kmeans` does.
    """
    before = {id(generator): generator.get_state() for generator in generators}
    alone = {id(g) for part, g in zip(parts, generators, strict=True) if not 1 <= k <= len(part)}
    found: dict[int, Tensor] = {}
    ids = [i for i, generator in enumerate(generators) if id(generator) not in alone]
    if ids:
        chosen = [parts[i] for i in ids]
        centroids, complete = _together(chosen, k, [generators[i] for i in ids], max_iterations)
        found = dict(zip(ids, centroids, strict=True))
        alone |= {
            id(generators[i]) for i, whole in zip(ids, complete.tolist(), strict=True) if not whole
        }
    for i, generator in enumerate(generators):
        if id(generator) in alone:
            if id(generator) in before:
                generator.set_state(before.pop(id(generator)))
            found[i] = kmeans(parts[i], k, generator, max_iterations=max_iterations)
    return [found[i] for i in range(len(parts))]


def _together(
    parts: Sequence[Tensor], k: int, generators: Sequence[torch.Generator], max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Centroids [clients, k, d], and whether k distinct seeds were found, bool [clients]."""
    device = parts[0].device
    means = torch.stack([part.mean(0) for part in parts])
    centred = [part - mean for part, mean in zip(parts, means, strict=True)]
    x = pad_sequence(centred, batch_first=True)
    squares = torch.linalg.vector_norm(x, dim=2).square()
    if not squares.isfinite().all():
        raise FedkdError("k-means met NaN, infinity or values too large to square")
    samples, draws = [], []
    for part, generator in zip(parts, generators, strict=True):
        order = torch.randperm(len(part), generator=generator)
        samples.append(order[: n_seeded(k)].to(device))
        draws.append(torch.rand(k, n_candidates(k), generator=generator, dtype=torch.float64))
    sample = pad_sequence(samples, batch_first=True)
    of_client = torch.arange(len(parts), device=device)[:, None]
    seeds, complete = _seeds(
        x[of_client, sample],
        squares[of_client, sample],
        _valid(samples, device),
        torch.stack(draws).to(device),
    )
    centroids = _lloyd(x, squares, _valid(parts, device), seeds, max_iterations)
    return centroids + means[:, None], complete


def _valid(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Which of the padded points are real: bool [clients, n]."""
    sizes = torch.tensor([len(part) for part in parts], device=device)
    return torch.arange(int(sizes.max()), device=device) < sizes[:, None]


def _squared(x: Tensor, squares: Tensor, centroids: Tensor) -> Tensor:
    """The squared distances [clients, k, n]."""
    offsets = centroids.square().sum(2, keepdim=True) + squares[:, None]
    return torch.baddbmm(offsets, centroids, x.transpose(1, 2), alpha=-2).clamp_(min=0)


def _seeds(x: Tensor, squares: Tensor, valid: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy k-means++ with draws [clients, k, candidates]: seeds [clients, k, d], all distinct?"""
    clients = torch.arange(len(x), device=x.device)
    nearest = torch.where(valid, math.inf, 0.0).to(x.dtype)
    weights = valid.to(x.dtype)
    complete = torch.ones(len(x), dtype=torch.bool, device=x.device)
    chosen = []
    for drawn in draws.unbind(1):
        mass = weights.cumsum(1, dtype=torch.float64)
        complete &= mass[:, -1] > 0
        at = torch.searchsorted(mass, drawn * mass[:, -1:], right=True).clamp_(max=x.shape[1] - 1)
        found = _squared(x, squares, x[clients[:, None], at])
        best = found.minimum(nearest[:, None]).sum(2).argmin(1)
        row, closest = at[clients, best], found[clients, best]
        client, point = (closest <= CANCELS * squares).nonzero(as_tuple=True)
        exact = (x[client, point] - x[client, row[client]]).square().sum(1)
        closest[client, point] = exact
        nearest = weights = nearest.minimum(closest)
        chosen.append(x[clients, row])
    return torch.stack(chosen, dim=1), complete


def _lloyd(
    x: Tensor, squares: Tensor, valid: Tensor, centroids: Tensor, max_iterations: int
) -> Tensor:
    """Lloyd's iterations, for each client until none of its points changes its centroid."""
    k = centroids.shape[1]
    label = torch.full_like(squares, k, dtype=torch.long)
    for _ in range(max_iterations):
        nearest = torch.where(valid, _squared(x, squares, centroids).argmin(1), k)
        moving = (nearest != label).any(1)
        if not moving.any():
            break
        label = nearest
        members = one_hot(label, k + 1)[:, :, :k].to(x.dtype).transpose(1, 2)
        counts = members.sum(2, keepdim=True)
        means = torch.bmm(members, x) / counts
        for client in ((counts == 0).any(1).squeeze(1) & moving).nonzero().squeeze(1).tolist():
            means[client] = _restarted(
                x[client], valid[client], label[client], centroids[client], means[client]
            )
        centroids = torch.where(moving[:, None, None], means, centroids)
    return centroids


def _restarted(x: Tensor, valid: Tensor, label: Tensor, previous: Tensor, means: Tensor) -> Tensor:
    """One client's means, those of no points at the points farthest from their centroids."""
    x = x[valid]
    empty = (~means.isfinite().all(1)).nonzero().squeeze(1)
    far = torch.linalg.vector_norm(x - previous[label[valid]], dim=1).topk(len(empty)).indices
    return means.index_copy(0, empty, x[far])

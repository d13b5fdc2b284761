"""k-means and the distance to its nearest centroid: the density estimate behind EdgeFD's filter.

EdgeFD (arXiv 2508.14769) estimates a density ratio with KMeans. Its full text was not available to
us, so the details are ours: greedy k-means++ seeds, Lloyd's iterations with Elkan's bounds, and a
stop as soon as no point changes its centroid. Clusters are summed by matrix products, not by atomic
adds, so a device repeats its own bits; draws come from a CPU generator, so all devices share them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedkd.errors import FedkdError

_BLOCK = 512  # rows scored at once: the block stays in the cache
_SEED_ROWS = 2000
CANCELS = 0.01  # |a|² + |b|² - 2ab below this part of |a|² has lost digits


def kmeans(x: Tensor, k: int, generator: torch.Generator, *, max_iterations: int = 25) -> Tensor:
    """The centroids [k', d] of the points x [n, d]; k' = min(k, number of distinct points).

    Seeds are sought in a sample of x, and in all of x should the sample hold fewer than k distinct
    points. Then Lloyd's iterations run until no point changes its centroid, or `max_iterations`.
    """
    if x.ndim != 2 or x.numel() == 0:
        raise FedkdError(
            "k-means needs points", value=tuple(x.shape), allowed="shape [n, d], n, d > 0"
        )
    if k < 1:
        raise FedkdError("k-means needs at least one centroid", value=k, allowed="k >= 1")
    k = min(k, len(x))
    mean = x.mean(0)  # the origin moves there: small numbers lose less in |a|² + |b|² - 2ab
    x = x - mean
    squares = _norms(x).square()
    if not squares.isfinite().all():
        raise FedkdError("k-means met NaN, infinity or values too large to square")
    sample = torch.randperm(len(x), generator=generator)[: n_seeded(k)].to(x.device)
    seeds = _seeds(x[sample], squares[sample], k, generator)
    if len(seeds) < k and len(sample) < len(x):
        seeds = _seeds(x, squares, k, generator)
    return _lloyd(x, squares, seeds, max_iterations) + mean


def n_seeded(k: int) -> int:
    """Among how many points k seeds are sought."""
    return max(_SEED_ROWS, 20 * k)


def n_candidates(k: int) -> int:
    """How many points greedy k-means++ draws for each of k seeds."""
    return 2 + int(math.log(k))


def distances(x: Tensor, centroids: Tensor) -> Tensor:
    """The Euclidean distance [n] of every row of x [n, d] to its nearest centroid [k, d].

    It holds far from the origin and close to a centroid too: a point on one is at exactly 0. Only
    where two centroids lie within about 1e-3 of the spread of all may the other one be taken.
    """
    origin = centroids.mean(0)
    near = centroids - origin
    found = []
    for block in torch.split(x, _BLOCK):
        moved = block - origin
        squares = _norms(moved).square()
        squared, own = _squared(moved, squares, near).min(0)
        found.append(_mend(squared, block, squares, centroids, own).sqrt_())
    return torch.cat(found)


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norms


def _squared(x: Tensor, squares: Tensor, centroids: Tensor) -> Tensor:
    """The squared distances [k, n]; `squares` are the |x|². Centroids come first: it is faster."""
    offsets = centroids.square().sum(1, keepdim=True)
    return torch.addmm(offsets, centroids, x.T, alpha=-2).add_(squares).clamp_(min=0)


def _mend(squared: Tensor, x: Tensor, squares: Tensor, centroids: Tensor, own: Tensor) -> Tensor:
    """Take again, from the difference, each of the `squared` [n] that mostly cancelled.

    `own` [n] is the row of `centroids` that each was measured from.
    """
    close = (squared <= CANCELS * squares).nonzero().squeeze(1)
    exact = (x[close] - centroids[own[close]]).square().sum(1)
    return squared.index_copy_(0, close, exact)


def _seeds(x: Tensor, squares: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few points drawn by squared distance, the one that leaves the least.

    The copies of a seed are at exactly 0 and never drawn again, so the search ends early with the
    last of the distinct points.
    """
    nearest = torch.full_like(squares, math.inf)
    weights = torch.ones_like(squares)
    chosen = []
    for draws in torch.rand(k, n_candidates(k), generator=generator, dtype=torch.float64):
        mass = weights.cpu().cumsum(0, dtype=torch.float64)
        if mass[-1] == 0:
            break
        rows = torch.searchsorted(mass, draws * mass[-1], right=True).to(x.device)
        found = _squared(x, squares, x[rows])
        best = found.minimum(nearest).sum(1).argmin()
        row = rows[best]
        found = _mend(found[best], x, squares, x, row.expand(len(x)))
        nearest = weights = nearest.minimum(found)
        chosen.append(row)
    return x[torch.stack(chosen)]


def _lloyd(x: Tensor, squares: Tensor, centroids: Tensor, max_iterations: int) -> Tensor:
    """Lloyd's iterations, which pass over the points that provably keep their centroid.

    `upper` [n] bounds the distance to a point's own centroid, `lower` [k, n] those to the others
    (infinity at its own). Centroids that move loosen both; only where they meet is a point compared
    with all centroids again. The sums change by the points that moved, not by all.
    """
    k = len(centroids)
    label = torch.full_like(squares, k, dtype=torch.long)  # k: none yet
    upper = torch.full_like(squares, math.inf)
    lower = x.new_zeros(k, len(x))
    sums, counts = torch.zeros_like(centroids), x.new_zeros(k, 1)
    for _ in range(max_iterations):
        rows = (lower.amin(0) < upper).nonzero().squeeze(1)
        found = _squared(x[rows], squares[rows], centroids).sqrt_()
        upper[rows], nearest = found.min(0)
        lower[:, rows] = found.scatter_(0, nearest[None], math.inf)
        moved = nearest != label[rows]
        rows, nearest = rows[moved], nearest[moved]
        if len(rows) == 0:
            break
        flow = (one_hot(nearest, k + 1) - one_hot(label[rows], k + 1))[:, :k].T.to(x.dtype)
        label[rows] = nearest
        sums += flow @ x[rows]
        counts += flow.sum(1, keepdim=True)
        previous, centroids = centroids, sums / counts
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty) > 0:  # each starts again at one of the points farthest from their centroids
            far = _norms(x - previous[label]).topk(len(empty)).indices
            centroids[empty] = x[far]
        shift = _norms(centroids - previous)
        lower -= shift[:, None]
        upper += shift[label]
    return centroids

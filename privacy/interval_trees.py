"""Private L1 distances: sums of |x - q| over a client's records for any q, under pure epsilon-DP.

The L1 distance splits into its axes. On each, the records of a class are rounded to a grid of 2^L
points, and the counts of all intervals of a binary tree over it are released with Laplace noise. So
the error of a count below a point grows as L^1.5, and that of a sum of distances as L, rather than
as the square root of the grid. The mean distance per class is a teacher; that of all classes, less
the proxy set's own mean distance, which is public, is a score.

Source: Backurs, Lin, Mahabadi, Silwal, Tarnawski, ICLR 2024 (arXiv 2403.08917), of which the
abstract and second-hand accounts were available, no theorem. From it: one tree an axis, Laplace
noise, pure epsilon, classification by mean distance. Ours: the grid, the budget in equal parts over
axes and levels, no count of the root, leaves by least squares from all nodes (Hay, Rastogi, Miklau,
Suciu, VLDB 2010) so that no query has to choose its nodes, and few public principal axes instead
of all pixels. The relative error alpha of the paper's queries does not arise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedkd.errors import FedkdError
from privacy.summaries import View, check_epsilon, check_labels, laplace, pure_event

_COVER = 0.98  # of the proxy samples, on each axis, lie inside the grid
_CERTAIN = 4.0  # standard deviations that a class's count must stand above 0 to be taught


@dataclass(frozen=True, eq=False)
class Grid:
    """Where records are rounded to, and the proxy's distances: public.

    Shapes: `low`, `step` float64 [d], so that grid point i of axis j is `low + i * step`;
    `proxy` float64 [d, 2^levels], the mean distance of proxy samples to each grid point.
    """

    view: View
    levels: int
    low: Tensor
    step: Tensor
    proxy: Tensor

    def places(self, x: Tensor) -> Tensor:
        """Where x [n, p] lies, in grid steps: float64 [n, d] in [0, 2^levels - 1]."""
        return ((self.view.look(x) - self.low) / self.step).clamp(0, 2**self.levels - 1)


def grid(proxy: Tensor, view: View, levels: int = 4) -> Grid:
    """The grid of 2^levels points an axis that spans most of the proxy samples [n, p].

    Raises: FedkdError where the proxy is empty, not finite or flat on an axis, or `levels` is out
    of range.
    """
    if not 1 <= levels <= 10:
        raise FedkdError("an interval tree needs levels", value=levels, allowed="1 to 10")
    x = view.look(proxy)
    if len(x) == 0:
        raise FedkdError("a grid needs proxy samples", value=0, allowed="1 or more")
    ends = x.new_tensor([(1 - _COVER) / 2, (1 + _COVER) / 2])
    low, high = x.quantile(ends, dim=0)
    step = (high - low) / (2**levels - 1)
    if bool((step <= 0).any()):
        raise FedkdError("the proxy samples are alike on an axis", fix="fewer axes in the view")
    bare = Grid(view, levels, low, step, x.new_zeros(len(low), 2**levels))
    leaves = _leaves(bare.places(proxy), 2**levels) / len(x)
    return Grid(view, levels, low, step, _table(leaves, step))


def _leaves(places: Tensor, size: int) -> Tensor:
    """How many of the places [n, d] round to each grid point: float64 [d, size]."""
    hits = torch.nn.functional.one_hot(places.round().long(), size)
    return hits.sum(0).double()


def _table(leaves: Tensor, step: Tensor) -> Tensor:
    """Sums of distances [..., d, size] from every grid point, of leaf counts [..., d, size]."""
    points = torch.arange(leaves.shape[-1], dtype=torch.float64)
    return leaves @ (points[:, None] - points).abs() * step[:, None]


@lru_cache
def tree(levels: int) -> tuple[Tensor, Tensor]:
    """The nodes of a binary tree as sums of its leaves, and the least squares way back.

    Shapes: 0/1 float64 [2^(levels + 1) - 2, 2^levels], from the root's two children down to the
    leaves, so that a leaf lies in one node of each level; its pseudo-inverse.
    """
    size = 2**levels
    eye = torch.eye(size, dtype=torch.float64)
    nodes = torch.cat([eye.reshape(2**level, -1, size).sum(1) for level in range(1, levels + 1)])
    return nodes, torch.linalg.solve(nodes.T @ nodes, nodes.T)


@dataclass(frozen=True, eq=False)
class DistanceSums:
    """One noisy release, and what follows from it.

    Shapes: `nodes` float64 [classes, d, 2^(levels + 1) - 2], the noisy interval counts; `counts`
    float64 [classes], records as the nodes tell; `table` float64 [classes, d, 2^levels], sums of
    distances to each grid point.
    """

    grid: Grid
    nodes: Tensor
    counts: Tensor
    table: Tensor
    noise_scale: float
    event: DpEvent

    def sums(self, x: Tensor) -> Tensor:
        """The sum of L1 distances of each class's records to x [n, p]: float64 [n, classes].

        In the units of the view. Records are rounded to the grid, queries are not; both are drawn
        to its edge where they lie outside.
        """
        return _look_up(self.table, self.grid.places(x))

    def score(self, x: Tensor) -> Tensor:
        """How strange [n] each of x [n, p] is: mean distance to the client's less to the proxy."""
        own = self.sums(x).sum(1) / self.counts.sum().clamp(min=1)
        return own - _look_up(self.grid.proxy[None], self.grid.places(x))[:, 0]

    def teach(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """Soft labels float64 [n, classes]: softmax of minus the mean distances / temperature.

        A class that the noise may have made up gets 0, unless it is the largest one.
        """
        known = self.counts > max(_CERTAIN * self.count_std, 1)
        known[self.counts.argmax()] = True
        means = self.sums(x) / self.counts.clamp(min=1)
        return torch.softmax((-means / temperature).masked_fill(~known, -math.inf), 1)

    @property
    def count_std(self) -> float:
        """The standard deviation of the noise on each of `counts`."""
        back = tree(self.grid.levels)[1]
        return self.noise_scale * math.sqrt(2 / len(self.grid.low)) * float(back.sum(0).norm())


def _look_up(table: Tensor, places: Tensor) -> Tensor:
    """The sum over axes of table [c, d, size], read between its points: [n, c] for [n, d].

    The distance to grid points is linear between them, so this is exact.
    """
    left = places.long().clamp(max=table.shape[-1] - 2)
    part = (places - left).T
    at = left.T.expand(len(table), -1, -1)
    values = table.gather(2, at) * (1 - part) + table.gather(2, at + 1) * part
    return values.sum(1).T


def distance_sums(
    x: Tensor,
    y: Tensor,
    n_classes: int,
    grid: Grid,
    epsilon: float,
    generator: torch.Generator,
) -> DistanceSums:
    """The private distance sums of the records x [n, p] with labels y int64 [n]; n may be 0.

    Guarantee: pure epsilon-DP, add/remove one record of the client, its label included; any number
    of uses. One record lies in `d * levels` nodes, all of one class, and moves each by 1, so the L1
    sensitivity is `d * levels` and each node carries Laplace noise of that over epsilon.
    Raises: FedkdError where x is not finite, y does not fit, or epsilon is not positive.
    """
    check_labels(x, y, n_classes)
    check_epsilon(epsilon)
    down, back = tree(grid.levels)
    places = grid.places(x)
    size = 2**grid.levels
    leaves = torch.stack([_leaves(places[y == label], size) for label in range(n_classes)])
    nodes = leaves @ down.T
    scale = len(grid.low) * grid.levels / epsilon
    nodes += laplace(nodes.shape, scale, generator)
    leaves = nodes @ back.T
    counts = leaves.sum(2).mean(1)
    return DistanceSums(grid, nodes, counts, _table(leaves, grid.step), scale, pure_event(epsilon))

"""k-means as a filter: fit, score and inertia of fedkd, scikit-learn and faiss, on one thread.

Fashion-MNIST in [0, 1], private and proxy samples apart. In every repeat each of the three runs
once, one after another, with the same seed number and at most 25 iterations. Inertia is taken in
float64 from the centroids. Scoring is each library's quickest public way to a distance.

    python benchmarks/filters.py --n 6000 --proxy 6000 --k 10 30 100 --repeats 7

It does not show several threads, a GPU, or data of few dimensions.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedkd.data.dataset import as_input
from fedkd.data.idx import Idx
from fedkd.data.sources import load
from fedkd.exchange.kmeans import distances, kmeans

ITERATIONS = 25
Fit = Callable[[Tensor, int, int], tuple[Tensor, Callable[[Tensor], object]]]
"""(x, k, seed) -> the centroids, and the function that scores."""


class Run(NamedTuple):
    """What one fit and one scoring took, in ms, and the inertia they reached."""

    fit: float
    score: float
    inertia: float


def fit_ours(x: Tensor, k: int, seed: int) -> tuple[Tensor, Callable[[Tensor], object]]:
    generator = torch.Generator().manual_seed(seed)
    centroids = kmeans(x, k, generator, max_iterations=ITERATIONS)
    return centroids, lambda proxy: distances(proxy, centroids)


def fit_sklearn(x: Tensor, k: int, seed: int) -> tuple[Tensor, Callable[[Tensor], object]]:
    model = KMeans(k, n_init=1, max_iter=ITERATIONS, random_state=seed).fit(x.numpy())
    centroids = model.cluster_centers_
    return (
        torch.from_numpy(centroids),
        lambda proxy: pairwise_distances_argmin_min(proxy.numpy(), centroids)[1],
    )


def fit_faiss(x: Tensor, k: int, seed: int) -> tuple[Tensor, Callable[[Tensor], object]]:
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(1)
    whole = len(x)  # faiss would otherwise train on 256 points a centroid
    model = faiss.Kmeans(x.shape[1], k, niter=ITERATIONS, seed=seed, max_points_per_centroid=whole)
    model.train(x.numpy())
    return (
        torch.from_numpy(model.centroids),
        lambda proxy: model.index.search(proxy.numpy(), 1)[0] ** 0.5,
    )


def measure(fit: Fit, x: Tensor, proxy: Tensor, k: int, seed: int) -> Run:
    start = time.perf_counter()
    centroids, score = fit(x, k, seed)
    fitted = time.perf_counter()
    score(proxy)
    scored = time.perf_counter()
    nearest = torch.cdist(x.double(), centroids.double()).amin(1)
    return Run(1e3 * (fitted - start), 1e3 * (scored - fitted), float(nearest.square().sum()))


def spread(values: list[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def row(k: int, name: str, runs: list[Run], rival: list[Run]) -> str:
    """A line of the table; the ratios are medians over the repeats, each against its neighbour."""
    fit, score, inertia = (list(column) for column in zip(*runs, strict=True))
    ratios = [
        statistics.median(ours / theirs for ours, theirs in zip(mine, other, strict=True))
        for mine, other in zip(zip(*runs, strict=True), zip(*rival, strict=True), strict=True)
    ]
    cells = [str(k), name, spread(fit, 0), spread(score, 1), spread(inertia, 0)]
    return f"| {' | '.join([*cells, *(f'{ratio:.3f}' for ratio in ratios)])} |"


def stamp() -> str:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = ["torch", "scikit-learn"] + ["faiss-cpu"] * has_faiss()
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu}, {os.cpu_count()} cores, 1 thread used, "
        f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {versions}"
    )


def has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=6000, help="private samples")
    parser.add_argument("--proxy", type=int, default=6000, help="proxy samples")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 30, 100], help="centroids")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, at least 2")
    args = parser.parse_args()
    if args.n + args.proxy > 60_000:
        parser.error("--n and --proxy share 60,000 images")

    fits: dict[str, Fit] = {"fedkd": fit_ours, "scikit-learn": fit_sklearn}
    if has_faiss():
        fits["faiss"] = fit_faiss
    else:
        print("faiss is not installed: skipped\n")
    images = load(Idx()).train.x
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, proxy = (
        as_input(images[rows]).flatten(1)
        for rows in (order[: args.n], order[args.n : args.n + args.proxy])
    )
    print("| k | | fit, ms | score, ms | inertia | fit / sklearn's | score / | inertia / |")
    print("|---|---|---|---|---|---|---|---|")
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for k in args.k:
            runs: dict[str, list[Run]] = {name: [] for name in fits}
            for repeat in range(-1, args.repeats):  # the first warms up
                for name, fit in fits.items():
                    run = measure(fit, x, proxy, k, seed=repeat + 1)
                    if repeat >= 0:
                        runs[name].append(run)
            for name in fits:
                print(row(k, name, runs[name], runs["scikit-learn"]), flush=True)
    print(f"\nMedian (quartiles) of {args.repeats} runs. {stamp()}")


if __name__ == "__main__":
    main()

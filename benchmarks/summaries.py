"""Private filters and teachers: what is left of them at which epsilon?

`python benchmarks/summaries.py [--clients 10 --records 600 5400 --seed 1]` prints two Markdown
tables. Fashion-MNIST, 10 clients, strong and Dirichlet(0.5); the proxy set is the 10 % that the
clients contributed (6,000), taken as public, and every client is measured against all of it. Each
summary is fitted on `records` of what the client kept, drawn at random (all, if it kept fewer).

AUROC: samples of the client's classes (5 % or more of its records) against the others; clients
that hold all classes so are left out. Teacher: accuracy on the samples of the client's classes.
Gate: a tenth of the records is held out by coins, summary and gate get the same epsilon (record
level, add/remove; delta 1e-5 for the Gaussian summaries, 0 for the trees and the gates), precision
and recall of what is accepted, in %. Seconds are CPU time of one thread.

It does not show what the student learns from it, other data, or other proxy sets.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedkd.data.dataset import as_input
from fedkd.data.federation import Federation, build
from fedkd.data.idx import Idx
from fedkd.data.partition import Dirichlet, Strong
from fedkd.data.proxy import Contributed
from fedkd.exchange.gate import Quantile, Share
from fedkd.exchange.kmeans import distances, kmeans
from fedkd.rng import torch_stream
from privacy.class_means import class_means, features
from privacy.interval_trees import distance_sums, grid
from privacy.private_gate import held_out, private_quantile, private_scores
from privacy.private_kmeans import private_kmeans, seeds
from privacy.summaries import noise_multiplier, view

EPSILONS = (1.0, 2.0, 4.0, 8.0, math.inf)
DELTA = 1e-5
EDGES = torch.linspace(0, 1, 17, dtype=torch.float64)
SPLITS = {"strong": Strong(), "dirichlet 0.5": Dirichlet(alpha=0.5)}


def rows(world: Federation, ids: Any) -> tuple[Tensor, Tensor]:
    x, y = world.train.rows(ids)
    return as_input(x).flatten(1), y


class Public:
    """What all clients share: the proxy set and what each summary reads off it."""

    def __init__(self, world: Federation, seed: int) -> None:
        self.x, self.y = rows(world, np.concatenate(world.contributed))
        draws = torch_stream(seed, "benchmark", purpose="public")
        start = time.process_time()
        self.features = features(self.x, draws)
        self.seeds = seeds(self.x, view(self.x), draws)
        self.grid = grid(self.x, view(self.x, 8))
        self.seconds = time.process_time() - start


class Exact:
    """EdgeFD's score as it is without privacy, whatever epsilon is asked for."""

    def __init__(self, x: Tensor, draws: torch.Generator) -> None:
        self.centroids = kmeans(x, 10, draws)

    def score(self, x: Tensor) -> Tensor:
        """Distances [n] of x [n, p] to the nearest of 10 centroids."""
        return distances(x, self.centroids).double()


def fit(name: str, public: Public, x: Tensor, y: Tensor, epsilon: float, draws: Any) -> Any:
    if name == "no privacy":
        return Exact(x, draws)
    if name == "interval trees":
        return distance_sums(x, y, 10, public.grid, epsilon, draws)
    multiplier = noise_multiplier(epsilon, DELTA)
    if name == "class means":
        return class_means(x, y, 10, public.features, multiplier, draws)
    labels, n_classes = (y, 10) if name == "k-means per class" else (None, 1)
    return private_kmeans(x, labels, n_classes, public.seeds, multiplier, draws)


def thresholds(heldout: Tensor, pool: Tensor, epsilon: float, draws: Any) -> dict[str, float]:
    edges = torch.unique(pool.quantile(EDGES))
    back = private_scores(heldout, edges, epsilon, draws)
    back = back if len(back) else edges[:1]
    nobody = pool[:0]
    low, high = float(pool.min()), float(pool.max())
    return {
        "quantile 0.5": private_quantile(heldout, 0.5, low, high, epsilon, draws),
        "quantile 0.9": private_quantile(heldout, 0.9, low, high, epsilon, draws),
        "histogram, quantile 0.9": Quantile(q=0.9).threshold(back, nobody, pool),
        "histogram, share": Share(power=1).threshold(back, nobody, pool),
    }


def measure(split: str, given: argparse.Namespace) -> None:
    world = build(Idx(), SPLITS[split], Contributed(fraction=0.1), 0.0, given.seed)
    public = Public(world, given.seed)
    print(f"\n{split}: public part {public.seconds:.2f} s")
    for n in given.records:
        found: dict[Any, list[float]] = defaultdict(list)
        for client in range(given.clients):
            all_x, all_y = rows(world, world.private[client])
            draws = torch_stream(given.seed, "benchmark", client=client, purpose=str(n))
            pick = torch.randperm(len(all_x), generator=draws)[:n]
            x, y = all_x[pick], all_y[pick]
            own = (torch.bincount(y, minlength=10) / len(y) >= 0.05)[public.y]
            out = held_out(len(x), 0.1, draws)
            for epsilon in EPSILONS:
                for name in given.summaries:
                    start = time.process_time()
                    summary = fit(name, public, x[~out], y[~out], epsilon, draws)
                    fitted = time.process_time()
                    pool = summary.score(public.x)
                    found["s", name].append(fitted - start)
                    found["score s", name].append(time.process_time() - fitted)
                    if name not in ("k-means", "no privacy"):
                        right = summary.teach(public.x).argmax(1) == public.y
                        found["teacher", name, epsilon].append(float(right[own].double().mean()))
                    if bool(own.all()):
                        continue
                    found["auroc", name, epsilon].append(roc_auc_score(own, -pool))
                    heldout = summary.score(x[out])
                    for gate, value in thresholds(heldout, pool, epsilon, draws).items():
                        said = pool <= value
                        right = float((said & own).sum())
                        found["precision", name, gate, epsilon].append(right / int(said.sum()))
                        found["recall", name, gate, epsilon].append(right / int(own.sum()))
        report(split, n, given, found)


def report(split: str, n: int, given: argparse.Namespace, found: dict[Any, list[float]]) -> None:
    def mean(*key: Any) -> float:
        return 100 * float(np.mean(found[key])) if found.get(key) else math.nan

    head = " | ".join(f"eps {epsilon:g}" for epsilon in EPSILONS)
    print(f"\n{split}, {n} records | {head} | fit, ms | score, ms")
    print("|---" + "|---:" * (len(EPSILONS) + 2) + "|")
    for name in given.summaries:
        ms = " | ".join(f"{10 * mean(which, name):.0f}" for which in ("s", "score s"))
        cells = " | ".join(f"{mean('auroc', name, epsilon):.1f}" for epsilon in EPSILONS)
        print(f"| {name}: AUROC | {cells} | {ms} |")
        if ("teacher", name, EPSILONS[0]) in found:
            cells = " | ".join(f"{mean('teacher', name, epsilon):.1f}" for epsilon in EPSILONS)
            print(f"| {name}: teacher | {cells} | | |")
        for gate in sorted({key[2] for key in found if key[0] == "recall" and key[1] == name}):
            cells = " | ".join(
                f"{mean('precision', name, gate, epsilon):.0f} / "
                f"{mean('recall', name, gate, epsilon):.0f}"
                for epsilon in EPSILONS
            )
            print(f"| {name}, {gate} | {cells} | | |", flush=True)


NAMES = ("k-means", "k-means per class", "class means", "interval trees", "no privacy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10, choices=range(1, 11))
    parser.add_argument("--records", type=int, nargs="+", default=[600, 5400])
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--summaries", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for split in given.splits:
        measure(split, given)


if __name__ == "__main__":
    main()

"""Which gate should a client apply? Every gate on every split, judged on validation data only.

`python benchmarks/gates.py [--rounds 5 --seeds 1 2 --workers 2]` prints a Markdown table of the
mean client accuracy on the held-out validation set in the last round, with the filter's precision
and accepted share. The test set is never read into the table: this is how the default was chosen.
Fashion-MNIST, 10 clients, MLP, one torch thread a process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
from typing import Any

SPLITS: dict[str, dict[str, Any]] = {
    "strong": {"name": "strong"},
    "weak": {"name": "weak"},
    "dirichlet 0.1": {"name": "dirichlet", "alpha": 0.1},
    "iid": {"name": "iid"},
}
POOLS: dict[str, dict[str, Any]] = {
    "contributed 10 %": {"name": "contributed", "fraction": 0.1},
    "public 6,000": {"name": "public", "size": 6000},
}
GATES: dict[str, dict[str, Any]] = {
    "own": {"name": "own"},
    **{f"quantile {q}": {"name": "quantile", "q": q} for q in (0.1, 0.5, 0.9)},
    **{f"share^{p}": {"name": "share", "power": p, "floor": 0} for p in (1, 2, 4)},
    "share^4, floor 0.5": {"name": "share"},
    "open": {"name": "open"},
}
Job = tuple[str, str, str, int, int]


def measure(job: Job) -> tuple[Job, dict[str, float]]:
    from fedkd import config
    from scenarios.simulate import simulate

    pool, split, gate, rounds, seed = job
    scenario = config.parse(
        {
            "seeds": [seed],
            "data": {"name": "idx"},
            "partition": SPLITS[split],
            "proxy": POOLS[pool],
            "method": {"name": "edgefd", "gate": GATES[gate]},
            "training": {"rounds": rounds, "distill": {"epochs": 3}},
        }
    )
    last = simulate(scenario).cells[0].last
    return job, {key: last.get(key, float("nan")) for key in ("validation_accuracy", *FILTER)}


FILTER = ("precision", "accepted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    jobs = [
        (pool, split, gate, given.rounds, seed)
        for pool in POOLS
        for split in SPLITS
        for gate in GATES
        if (pool, gate) != ("public 6,000", "own")  # nobody owns a public sample
        for seed in given.seeds
    ]
    with multiprocessing.get_context("spawn").Pool(given.workers) as workers:
        found = dict(workers.imap_unordered(measure, jobs))
    print(
        f"{given.rounds} rounds, seeds {given.seeds}, {platform.processor() or platform.machine()}"
    )
    for pool in POOLS:
        print(f"\nproxy: {pool}; validation accuracy, % (precision / accepted share of the pool)\n")
        print("| gate | " + " | ".join(SPLITS) + " |\n|---" + "|---:" * len(SPLITS) + "|")
        for gate in GATES:
            cells = []
            for split in SPLITS:
                runs = [v for k, v in found.items() if k[:3] == (pool, split, gate)]
                if runs:
                    mean = {key: 100 * sum(r[key] for r in runs) / len(runs) for key in runs[0]}
                    cells.append(
                        f"{mean['validation_accuracy']:.1f} "
                        f"({mean['precision']:.0f} / {mean['accepted']:.0f})"
                    )
            if cells:
                print(f"| {gate} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

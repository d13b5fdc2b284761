"""Accuracy against epsilon: what each protection costs on Fashion-MNIST, alone and together.

`python benchmarks/private.py --split strong dirichlet --workers 2` runs a scenario for each
protection and epsilon (one seed unless `--seeds`), and writes a table to stdout and a plot to
`--plot`. 10 clients of about 4,900 images, MLP, public proxy set of 6,000, four rounds.
Epsilon is at delta 1e-5. Of a record (add or remove): DP-SGD, and the private filter, which has a
quarter of a common budget. Of a whole client (replace): noised answers and drawn labels, through an
open gate, so that the accept mask tells nothing; at infinity these are plain answers and top-1.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import config
from scenarios.budget import on_target
from scenarios.report.figures import figure, label, png
from scenarios.results import Result
from scenarios.simulate import simulate

EPSILONS = (1.0, 2.0, 4.0, 8.0, math.inf)
SPLITS: dict[str, dict[str, Any]] = {
    "strong": {"name": "strong", "clients": 10},
    "dirichlet": {"name": "dirichlet", "clients": 10, "alpha": 0.5},
}
GATE = {"name": "quantile", "q": 0.5}
LARGE_BATCHES = {"optimizer": "sgd", "learning_rate": 1.0, "batch_size": 500, "epochs": 2}


def dp_sgd(epsilon: float) -> dict[str, Any]:
    """DP-SGD; without noise, the same training with clipping alone."""
    row: dict[str, Any] = {"name": "dp-sgd"}
    row |= {"noise_multiplier": 0.0} if math.isinf(epsilon) else {"epsilon": epsilon}
    return {"training": row}


def private_filter(epsilon: float) -> dict[str, Any]:
    """The private filter; without noise, the method's own."""
    return {} if math.isinf(epsilon) else {"filter": {"name": "dp-kmeans", "epsilon": epsilon}}


def noised(name: str, epsilon: float) -> dict[str, Any]:
    """Noised answers; without noise, plain ones."""
    return {} if math.isinf(epsilon) else {"release": {"name": name, "epsilon": epsilon}}


def drawn(release: dict[str, Any], epsilon: float) -> dict[str, Any]:
    """A label drawn for each sample, its noise to be calibrated; without noise, the likeliest."""
    return {"release": {"name": "top-1"} if math.isinf(epsilon) else release, "unit": "client"}


SAMPLED: dict[str, Any] = {"name": "sampled-label"}
RESPONSE: dict[str, Any] = {"name": "randomised-response", "epsilon": 1.0}
PROTECTIONS = {
    "DP-SGD + private filter": lambda e: dp_sgd(0.75 * e) | private_filter(0.25 * e),
    "DP-SGD alone": dp_sgd,
    "private filter alone": private_filter,
    "Gaussian answers (client)": lambda e: noised("gaussian", e),
    "Laplace answers (client)": lambda e: noised("laplace", e),
    "sampled labels (client)": lambda e: drawn(SAMPLED, e),
    "randomised response (client)": lambda e: drawn(RESPONSE, e),
}


def scenario(split: str, protection: str, epsilon: float, given: Any) -> config.Scenario:
    """One cell of the table."""
    open_ = "client" in protection
    local = LARGE_BATCHES if protection.startswith("DP-SGD") else {}
    what = config.parse(
        {
            "name": "private",
            "seeds": list(range(1, given.seeds + 1)),
            "data": {"name": "idx"},
            "partition": SPLITS[split],
            "proxy": {"name": "public", "size": 6000},
            "method": {"name": "edgefd", "gate": {"name": "open"} if open_ else GATE},
            "training": {
                "rounds": given.rounds,
                "evaluate_every": given.rounds,
                "local": local,
                "distill": {"epochs": 2},
            },
            "privacy": PROTECTIONS[protection](epsilon),
            "grid": {"name": "workers", "workers": given.workers},
        }
    )
    calibrates = "labels" in protection or "response" in protection
    return on_target(what, epsilon) if calibrates and math.isfinite(epsilon) else what


def accuracy(what: config.Scenario) -> tuple[float, float]:
    """Mean and standard deviation over seeds of the last round's accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        result: Result = simulate(what, folder=Path(folder) / "run")
    found = [cell.last["accuracy"] for cell in result.cells]
    return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--plot", type=Path, default=Path("private.png"), help="a file for each split"
    )
    given = parser.parse_args()
    heads = [f"epsilon {epsilon:g}" for epsilon in EPSILONS]
    for split in given.split:
        plot, axes = figure(9, 4, f"Accuracy against epsilon (delta 1e-5), split {split}")
        print(f"\n| {split} | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
        for protection in PROTECTIONS:
            found = [accuracy(scenario(split, protection, e, given)) for e in EPSILONS]
            spread = given.seeds > 1
            cells = [f"{100 * m:.1f}" + f" ± {100 * sd:.1f}" * spread for m, sd in found]
            print(f"| {protection} | {' | '.join(cells)} |", flush=True)
            means, sds = (100 * np.array(column) for column in zip(*found, strict=True))
            axes.errorbar(range(len(EPSILONS)), means, sds, marker="o", capsize=2, label=protection)
        axes.set_xticks(range(len(EPSILONS)), [f"{e:g}" for e in EPSILONS])
        label(axes, "epsilon", "accuracy, %")
        axes.legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
        path = given.plot.with_stem(f"{given.plot.stem}-{split}")
        path.write_bytes(png(plot))
        print(f"\nplot: {path}", flush=True)


if __name__ == "__main__":
    main()

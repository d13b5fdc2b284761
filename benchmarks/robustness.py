"""Accuracy of honest clients beside hostile ones: attack x rule, Fashion-MNIST.

`python benchmarks/robustness.py --out FOLDER` runs EdgeFD with ten clients for every split, share
of hostile clients, attack and combine rule, and prints a table for each split; what is done is not
run again. `--rules`, `--attacks`, `--splits` and `--seeds` narrow or widen it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import config
from scenarios.simulate import simulate

SPLITS: dict[str, dict[str, Any]] = {
    "iid": {"name": "iid", "clients": 10},
    "dirichlet 0.5": {"name": "dirichlet", "clients": 10, "alpha": 0.5},
    "strong": {"name": "strong", "clients": 10},
}
ATTACKS: dict[str, dict[str, Any]] = {
    "lma": {"attack": {"name": "lma"}},
    "pcfdla": {"attack": {"name": "pcfdla"}},
    "second-best": {"attack": {"name": "second-best"}},
    "one-class": {"attack": {"name": "one-class"}},
    "lma, everything": {"attack": {"name": "lma"}, "everything": True},
    "one-class, everything": {"attack": {"name": "one-class"}, "everything": True},
}
RULES = (
    "mean",
    "median",
    "geometric-median",
    "trimmed-mean",
    "spectral",
    "cronus",
    "expguard",
    "agreement",
    "vouched",
)
TRIM = {"trimmed-mean": {"trim": 0.3}, "spectral": {"keep": 0.6}}
SHARES = (0.2, 0.4)


def accuracy(
    out: Path, split: str, hostile: dict[str, Any], rule: str, seeds: list[int], rounds: int
) -> float:
    """The mean over seeds of the honest clients' mean accuracy in the last round, in percent."""
    combine = {"name": rule, **TRIM.get(rule, {})}
    scenario = config.parse(
        {
            "name": "robustness",
            "seeds": seeds,
            "data": {"name": "idx", "path": "/usr/share/datasets/fashion-mnist"},
            "partition": SPLITS[split],
            "proxy": {"name": "contributed", "fraction": 0.05},
            "model": {"names": ["mlp"]},
            "method": {"name": "edgefd", "combine": combine},
            "training": {"rounds": rounds, "local": {"epochs": 0.5}, "distill": {"epochs": 3}},
            "hostile": hostile,
        }
    )
    told = hostile.get("attack", {}).get("name", "none")
    lies = "-everything" if hostile.get("everything") else ""
    name = f"{split.replace(' ', '-')}/{hostile.get('share', 0)}-{told}{lies}-{rule}"
    result = simulate(scenario, folder=out / name)
    return 100 * float(np.mean([cell.last["accuracy"] for cell in result.cells]))


def main() -> None:
    """Print a table a split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS)[:2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    for split in args.splits:
        heads = [f"{a}, {share:.0%}" for a in args.attacks for share in SHARES]
        print(f"\n{split}\n\n| rule | none | {' | '.join(heads)} |")
        print("|---|" + "---:|" * (1 + len(heads)))
        for rule in args.rules:
            settings: list[dict[str, Any]] = [{}]
            settings += [
                {**ATTACKS[attack], "share": share} for attack in args.attacks for share in SHARES
            ]
            row = []
            for hostile in settings:
                row.append(accuracy(args.out, split, hostile, rule, args.seeds, args.rounds))
                print(f"{split} {rule} {hostile} {row[-1]:.1f}", file=sys.stderr, flush=True)
            print(f"| {rule} | {' | '.join(f'{one:.1f}' for one in row)} |", flush=True)


if __name__ == "__main__":
    main()

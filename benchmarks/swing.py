"""Swing against plain answers: canary exposure and perplexity, over temperature and noise.

`python benchmarks/swing.py --workers 2` runs scenarios/swing-pydoc.toml with plain answers and with
Swing at each highest temperature and scale of noise, prints a table, and draws `--plot`. Exposure
(bits, empirical) is that of the other clients' models; 1.44 is what chance gives, 13.29 is all.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import config
from scenarios.report.figures import figure, label, png
from scenarios.simulate import simulate

SCENARIO = Path(__file__).parents[1] / "scenarios" / "swing-pydoc.toml"
NULL_BITS = 1.44


def measured(changes: dict[str, Any], seeds: list[int], workers: int) -> dict[str, list[float]]:
    """Perplexity and exposure in the last round, a value a seed."""
    overrides = [f"seeds={seeds}", f'grid={{name="workers", workers={workers}}}']
    overrides += [f"privacy.release.{key}={value!r}" for key, value in changes.items()]
    with tempfile.TemporaryDirectory() as folder:
        what = config.load(SCENARIO, [o.replace("'", '"') for o in overrides])
        result = simulate(what, folder=Path(folder) / "run")
    keys = ("perplexity", "exposure_peers", "exposure_own", "exposure_controls")
    return {key: [cell.last[key] for cell in result.cells] for key in keys}


def shown(values: list[float]) -> str:
    """Mean and standard deviation."""
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--temperatures", type=float, nargs="*", default=[1.0, 10.0, 100.0])
    parser.add_argument("--scales", type=float, nargs="*", default=[0.01, 0.05])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plot", type=Path, default=Path("swing.png"))
    given = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {
        "plain": {"name": "plain"},
        "Swing, alphabet not pooled": {"pooled": ""},
    }
    rows |= {
        f"Swing, T up to {t:g}, noise {scale:g}": {"t_max": t, "scale": scale}
        for t in given.temperatures
        for scale in given.scales
    }
    plot, axes = figure(7, 4.2, "What other clients' models know of a secret")
    print("| answers | perplexity | exposure at peers | at the owner | controls |")
    print("|---|---:|---:|---:|---:|")
    for at, (name, changes) in enumerate(rows.items()):
        found = measured(changes, given.seeds, given.workers)
        print(f"| {name} | {' | '.join(map(shown, found.values()))} |", flush=True)
        x, y = np.mean(found["perplexity"]), np.mean(found["exposure_peers"])
        axes.scatter(x, y, color=f"C{at % 10}", label=name, zorder=3)
    axes.axhline(NULL_BITS, color="grey", linewidth=1, linestyle=":")
    label(axes, "perplexity on the test set", "exposure, bits (dotted: chance)")
    axes.legend(fontsize=7, frameon=False)
    given.plot.write_bytes(png(plot))
    print(f"\nplot: {given.plot}")


if __name__ == "__main__":
    main()

"""Bytes against accuracy: EdgeFD by each codec, beside FedMD in float32, on Fashion-MNIST strong.

`python benchmarks/wire.py --seeds 1 --workers 2` runs scenarios/edgefd-fashion-strong.toml with
each of `WAYS`, and counts the bytes of answers and consensus as they are sent, the proxy set apart.
FedMD's are those of one round: every round of it has as many.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from fedkd import config
from scenarios.results import Result
from scenarios.simulate import simulate

SCENARIO = Path(__file__).parents[1] / "scenarios" / "edgefd-fashion-strong.toml"
SHORT = "wire.mask=true", "wire.zstd=19"
FEDMD = ('method.name="fedmd"', "training.rounds=1", "training.local.epochs=0.01")
WAYS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "float32, mask, zstd": SHORT,
    "float16": ('wire.up="float16"', 'wire.down="float16"'),
    "int8, mask, zstd": ('wire.up="int8"', 'wire.down="int8"', *SHORT),
    "argmax up, int8 down, mask, zstd": ('wire.up="argmax"', 'wire.down="int8"', *SHORT),
    "argmax, mask, zstd": ('wire.up="argmax"', 'wire.down="argmax"', *SHORT),
}


def run(changes: tuple[str, ...], seeds: list[int], workers: int) -> Result:
    """One way, all seeds."""
    grid = f'grid={{name="workers", workers={workers}}}'
    with tempfile.TemporaryDirectory() as folder:
        what = config.load(SCENARIO, [f"seeds={seeds}", "references=[]", grid, *changes])
        return simulate(what, folder=Path(folder) / "run")


def sizes(result: Result) -> tuple[float, float]:
    """Bytes up and down in a round, on average."""
    rounds = [event for cell in result.cells for event in cell.of("round")]
    up, down = (np.mean([event[key] for event in rounds]) for key in ("bytes_up", "bytes_down"))
    return float(up), float(down)


def main() -> None:
    """Print a table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    whole = sum(sizes(run(FEDMD, args.seeds[:1], args.workers)))
    print("| way | kB up a round | kB down | FedMD's bytes over these | accuracy, last round |")
    print("|---|---:|---:|---:|---:|")
    print(f"| FedMD, float32 | {whole / 2e3:,.0f} | {whole / 2e3:,.0f} | 1 | |", flush=True)
    for way in args.ways:
        result = run(WAYS[way], args.seeds, args.workers)
        up, down = sizes(result)
        found = 100 * np.mean([cell.last["accuracy"] for cell in result.cells])
        ratio = whole / (up + down)
        print(
            f"| EdgeFD, {way} | {up / 1e3:,.1f} | {down / 1e3:,.1f} | {ratio:.1f} | {found:.2f} |"
        )


if __name__ == "__main__":
    main()

"""What is likeness worth? Each model learns from one trained teacher; does its rank foretell it?

    python benchmarks/student_choice.py

Prints, for each model of the zoo but ResNet-18, its likeness to the teacher before any training and
its accuracy after learning the teacher's soft labels, and the rank correlation (Spearman) of that
accuracy with likeness, and with the number of weights, which is what anyone would look at.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.stats
import torch

from fedkd import config, training
from fedkd.config_sections import Phase
from fedkd.exchange.objectives.divergences import KL
from fedkd.models.zoo import build
from fedkd.rng import stream, torch_stream
from scenarios.suggest import suggest

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teacher", default="resnet8")
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--epochs", type=float, default=20.0)
given = parser.parse_args()

torch.set_num_threads(1)
scenario = config.parse({"model": {"names": [given.teacher]}, "partition": {"name": "iid"}})
world = scenario.world(1)
x, y = training.inputs(world.train.x), world.train.y
half = len(x) // 2  # the teacher learns one half, its students what it says of the other
shape, n_classes = tuple(world.train.x.shape[1:]), world.train.n_classes
phase = Phase(epochs=given.epochs, batch_size=32)
_, found = suggest(scenario, given.teacher)
found = [one for one in found if one.name != "resnet18"]
scores = {one.name: [] for one in found}
for seed in range(1, given.seeds + 1):
    teacher = build(given.teacher, shape, n_classes, torch_stream(seed, "teacher"))
    draws = stream(seed, "teacher", purpose="batches")
    training.fit(teacher, x[:half], y[:half], training.cross_entropy, phase, draws)
    soft = training.predict(teacher.eval(), x[half:]).softmax(dim=1)
    for one in found:
        student = build(one.name, shape, n_classes, torch_stream(seed, "student"))
        draws = stream(seed, "student", purpose="batches")
        training.fit(student, x[half:], soft, KL().loss, phase, draws)
        hits = training.grades(student, training.inputs(world.test.x), world.test.y).hits
        scores[one.name].append(float(hits.double().mean()))
print(f"{'model':10} {'weights':>9} {'likeness':>9} {'accuracy, mean and sd':>22}")
means = []
for one in found:
    means.append(np.mean(scores[one.name]))
    spread = np.std(scores[one.name], ddof=1) if given.seeds > 1 else float("nan")
    print(f"{one.name:10} {one.weights:9,} {one.likeness:9.3f} {means[-1]:15.3f} ± {spread:.3f}")
for name, values in (
    ("likeness", [one.likeness for one in found]),
    ("weights", [one.weights for one in found]),
):
    rho, p = scipy.stats.spearmanr(values, means)
    print(f"Spearman's rho of accuracy with {name}: {rho:.2f} (p {p:.2f}, n {len(found)})")

"""Every test runs with Flower's switches set and one torch thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from scenarios import quiet  # noqa: F401  # before anything imports flwr

import torch  # isort: skip

torch.set_num_threads(1)

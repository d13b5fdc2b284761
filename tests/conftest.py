"""Every test runs with Flower's switches set, one torch thread, and the same examples each time.

`--hypothesis-profile=explore` draws new ones.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from scenarios import quiet  # noqa: F401  # before anything imports flwr

import torch  # isort: skip
from hypothesis import settings  # isort: skip

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")

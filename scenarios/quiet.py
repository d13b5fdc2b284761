"""Import this before flwr: no calls home, no dependency installs behind the user's back, no noise.

Flower reads these switches when it is imported or started; what the user has set is kept.
"""

from __future__ import annotations

import logging
import os

for switch, value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}.items():
    os.environ.setdefault(switch, value)

logging.getLogger("flwr").setLevel(logging.ERROR)

"""fedkd: federated and private distillation, simulated, audited, deployed.

`import fedkd; fedkd.simulate("scenarios/edgefd-digits.toml", rounds=5)` is the door for notebooks.
It forwards, when first used, to the room `scenarios`; nothing else in here looks upward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarios.audit.run import audit
    from scenarios.simulate import resume, simulate

__all__ = ["audit", "resume", "simulate"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "audit":
        import scenarios.audit.run

        return scenarios.audit.run.audit
    if name in __all__:
        import scenarios.simulate

        return getattr(scenarios.simulate, name)
    raise AttributeError(f"module 'fedkd' has no attribute {name!r}")

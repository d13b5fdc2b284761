"""Figures as people read them."""

from __future__ import annotations

from typing import Any


def percent(value: Any) -> str:
    """A share as a percentage, or a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


def plain(value: Any) -> str:
    """A number of no unit, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def size(n_bytes: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"


def duration(seconds: float) -> str:
    """Seconds as m:ss, or as seconds when short."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min"

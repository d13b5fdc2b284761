"""Processes that do not outlive whoever watches over them."""

from __future__ import annotations

import ctypes
import signal
import sys


def die_with_parent(how: int = signal.SIGTERM) -> None:
    """End this process by a signal when its parent ends, also by kill -9.

    On Linux; elsewhere nothing happens, and who watches must end its children itself.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, how)

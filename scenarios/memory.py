"""Memory that a process keeps: glibc gives every large tensor back to the kernel and asks for it
again, and the kernel clears each page before it hands it out. Kept, a small CNN trains up to 1.5
times as fast, and a message of 1 MB costs three quarters.
"""

from __future__ import annotations

import ctypes

VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""For a process that is to be started; glibc reads them once."""

# The same for this process, by the numbers that glibc's malloc.h gives them; its values are ints.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MOST = 2**31 - 1


def keep() -> None:
    """Let this process keep what it frees. A C library without these settings stays as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MOST)
        mallopt(_M_TRIM_THRESHOLD, _MOST)
        mallopt(_M_TOP_PAD, 2**28)

"""Memory of the process."""

from __future__ import annotations

import ctypes
import sys


def give_back_memory() -> None:
    """Hand what nothing uses any more back to the system, where the allocator can be asked to (glibc)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)

"""How the process deals with memory that it frees."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next step instead of giving it to the system.

    Otherwise every training step on a CPU gets its large blocks anew, and the kernel clears them
    page by page. It must be called before a backend is imported and starts its threads; our
    command line and training scripts do so.

    Returns:
        Whether it took effect: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_ARENA_MAX, 1)])

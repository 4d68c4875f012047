"""How much memory a process has resident, as Linux counts it."""

import ctypes
import gc
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SMALL = 1 << 17


def resident_bytes(process_id: int | str = "self") -> int:
    """Return the resident bytes of a process; 0 where they cannot be read."""
    return _field(Path(f"/proc/{process_id}/status"), "VmRSS")


def peak_resident_bytes() -> int:
    """Return the most bytes that were resident since the start or `reset_peak`; 0: unknown."""
    return _field(Path("/proc/self/status"), "VmHWM")


def available_bytes() -> int:
    """Return the bytes that new processes can have without swapping; 0 where it is unknown."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _field(path, name):
    try:
        lines = path.read_text().splitlines()
    except OSError:  # No Linux, or the process has ended.
        return 0
    return next((1024 * int(s.split()[1]) for s in lines if s.startswith(f"{name}:")), 0)


def give_back_freed_memory() -> None:
    """Make glibc return freed memory at once from now on, so that what is resident is in use."""
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, _SMALL)
        library.mallopt(_M_TRIM_THRESHOLD, _SMALL)


def reset_peak() -> bool:
    """Forget the peak so far, and return what is freed to the system.

    Returns:
        Whether it took effect; it needs Linux.
    """
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _glibc():
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None

"""Freed memory is kept: the second time around, large blocks cost no page faults."""

import subprocess
import sys

PROGRAM = """
import ctypes, resource, sys
from dl_techniques.utils.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit("mallopt refused")
malloc = ctypes.CDLL(None).malloc
free = ctypes.CDLL(None).free
malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for i in range(6):
    if i == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(mode):
    command = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_freed_blocks_come_back_without_page_faults():
    assert _page_faults("keep") < 100
    assert _page_faults("leave") > 5 * (64 << 20) // 4096 / 2

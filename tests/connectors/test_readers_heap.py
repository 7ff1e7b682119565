import ctypes
import os
from pathlib import Path

from connectors.readers.heap import trim


def resident_mb():
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_freed_memory_goes_back_when_the_heap_is_trimmed():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    # The last block stays, and keeps the C library from shrinking the heap by itself.
    blocks = [libc.malloc(64 << 10) for _ in range(2_000)]
    for block in blocks:
        ctypes.memset(block, 1, 64 << 10)
    for block in blocks[:-1]:
        libc.free(block)
    held = resident_mb()
    trim()
    left = resident_mb()
    libc.free(blocks[-1])
    assert held - left > 80

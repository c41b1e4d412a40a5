"""Memory that a process frees stays its own, because the next step needs it again."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT_BYTES = 2**30
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the process reuse large blocks; a setting of glibc, and nothing on another C library.

    By default every tensor above 32 MiB is new memory of the system, a page at a time: reading and writing 64 MiB takes
    eight times as long (measured on a virtual machine). Every step needs the same sizes, so what is freed is needed
    again.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)

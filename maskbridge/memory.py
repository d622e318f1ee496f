"""Memory that training frees and asks for again in every step.

keep_freed_memory()
"""

from __future__ import annotations

import contextlib
import ctypes

#: malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: on a CPU, giving pages back and asking for them again costs time in training.

    Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the highest that glibc takes
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

"""Whether the C library keeps large blocks that are freed for the next ones, or gives them back to the system.

By itself glibc keeps blocks of up to 32 MiB once it has seen such freed (mallopt(3)). torch is a third faster so, since
a network asks for the same blocks again and again. OpenVINO holds the network's tensors itself; then what is left are
our slices and scores, which come and go at different times, and what is kept between smaller blocks adds up to some
100 MB of a job. What lies in smaller ones is free between blocks in use, and becomes more with the slices that have
passed, until it is given back from time to time.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 3 << 20  # bytes: windows and scores; slices come and go too often to map each
_MOST: Final = 32 << 20  # where glibc's own threshold ends
_ON_TOP: Final = 8 << 20  # bytes that stay free at the end of the heap: a few slices come and go there all the time


# Other C libraries have neither, and stay as they are.
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def keep_large(kept: bool) -> None:
    """Keep freed blocks of 3 to 32 MiB, or give them back, from now on in this process."""
    if _mallopt is not None:
        _mallopt(_M_MMAP_THRESHOLD, _MOST if kept else _LARGE)
        _mallopt(_M_TRIM_THRESHOLD, 2 * _MOST if kept else _ON_TOP)


def give_back() -> None:
    """Give back what is free now, whole pages between blocks in use too (malloc_trim(3)). Takes some milliseconds."""
    if _malloc_trim is not None:
        _malloc_trim(0)

"""Whether the C library keeps large blocks that are freed for the next ones, or gives them back to the system.

By itself glibc keeps blocks of up to 32 MiB once it has seen such freed (mallopt(3)). torch is a third faster so, since
a network asks for the same blocks again and again. OpenVINO holds the network's tensors itself; then what is left are
our slices and scores, which come and go at different times, and what is kept between smaller blocks adds up to some
100 MB of a job.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 3 << 20  # bytes: windows and scores; slices come and go too often to map each
_MOST: Final = 32 << 20  # where glibc's own threshold ends


def keep_large(kept: bool) -> None:
    """Keep freed blocks of 3 to 32 MiB, or give them back, from now on in this process. C libraries other than glibc
    stay as they are."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _MOST if kept else _LARGE)
        set_option(_M_TRIM_THRESHOLD, 2 * _MOST if kept else 128 << 10)

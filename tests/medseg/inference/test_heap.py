"""What becomes of memory that is freed."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FREED_MB = """
import resource, sys
import numpy as np
from medseg.inference.malloc import keep_large

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

for kept in map(int, sys.argv[1]):
    keep_large(bool(kept))
small = []
large = [(np.ones(8 << 20, np.uint8), small.append(bytes(60_000)))[0] for _ in range(20)]
before = resident_mb()
del large
print(before - resident_mb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
@pytest.mark.parametrize(("settings", "given_back"), [("1", False), ("0", True), ("10", True), ("01", False)])
def test_large_blocks_between_small_ones_go_back_when_asked_for(settings: str, given_back: bool) -> None:
    told = subprocess.run([sys.executable, "-c", FREED_MB, settings], check=True, capture_output=True, text=True)
    assert int(told.stdout) > 150 if given_back else int(told.stdout) < 10


GIVEN_BACK_MB = """
import resource
import numpy as np
from medseg.inference.malloc import give_back, keep_large

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

keep_large(True)
small = []
slices = [(np.ones(1 << 20, np.uint8), small.append(bytes(60_000)))[0] for _ in range(160)]
del slices
before = resident_mb()
give_back()
print(before - resident_mb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
def test_what_is_free_between_small_blocks_can_be_given_back() -> None:
    told = subprocess.run([sys.executable, "-c", GIVEN_BACK_MB], check=True, capture_output=True, text=True)
    assert int(told.stdout) > 140

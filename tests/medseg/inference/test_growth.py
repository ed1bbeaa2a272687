"""What a job keeps of each slice that has passed: little, and not in blocks of the heap, which would part it."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest

from medseg.bundle.bundle import Bundle, Segment
from medseg.bundle.recipe import Finish
from medseg.dicom.series import Stack, StackSource
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from tests.medseg.inference.phantoms import SIGMOID, SOFTMAX, blobs, make_bundle, make_stack

BY_PYTHON = 512  # bytes: smaller objects lie in pools of the interpreter's own


@dataclass(frozen=True)
class Kept:
    """Bytes that live, and how many blocks of the heap's own size they are in."""

    size: int
    blocks: int


class Weighed(LabelSpool):
    """Told what lives when the last slice has gone through the windows."""

    kept: Kept

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        super().begin(stack, segments, exclusive=exclusive)
        gc.collect()
        sizes = [trace.size for trace in tracemalloc.take_snapshot().traces]
        self.kept = Kept(sum(sizes), sum(size > BY_PYTHON for size in sizes))


def kept_after(slices: int, bundle: Bundle) -> Kept:
    stack, sink = make_stack(blobs((slices, 24, 24))), Weighed()
    tracemalloc.start()
    try:
        segment(StackSource(stack), bundle, sink, settings=Settings(engine="torch"))
    finally:
        tracemalloc.stop()
    return sink.kept


@pytest.mark.parametrize("finish", [SOFTMAX, SIGMOID], ids=["exclusive", "overlapping"])
def test_what_is_kept_of_a_slice_is_little_and_parts_no_memory(finish: Finish, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, finish=finish)
    kept_after(40, bundle)  # what is made once
    few, many = kept_after(100, bundle), kept_after(300, bundle)
    assert many.blocks - few.blocks < 10
    assert many.size - few.size < 200 * 2000

"""Label planes kept compressed."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.dicom.series import Stack
from medseg.inference.planes import LabelSpool
from tests.medseg.inference.phantoms import make_segment, make_stack

SEGMENTS = tuple(make_segment(n) for n in (1, 2, 3))


@pytest.fixture
def stack() -> Stack:
    return make_stack(np.zeros((6, 16, 20), np.float32))


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_spool_gives_back_what_it_was_given(stack: Stack, exclusive: bool) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (6, 16, 20) if exclusive else (6, 3, 16, 20), dtype=np.uint8)
    labels[2] = 0
    spool = LabelSpool()
    spool.begin(stack, SEGMENTS, exclusive=exclusive)
    for k, plane in enumerate(labels):
        spool.plane(k, plane)
    spool.end()
    assert np.array_equal(np.stack(list(spool)), labels)
    assert np.array_equal(spool[3], labels[3])
    assert len(spool) == 6
    for channel in range(1 if exclusive else 3):
        assert np.array_equal(spool.channel(4, channel), labels[4] if exclusive else labels[4, channel])


@pytest.mark.parametrize(("k", "shape"), [(1, (16, 20)), (0, (20, 16))])
def test_a_spool_takes_planes_in_order_and_of_its_shape(stack: Stack, k: int, shape: tuple[int, int]) -> None:
    spool = LabelSpool()
    spool.begin(stack, SEGMENTS, exclusive=True)
    with pytest.raises(ValueError, match=f"plane {k}"):
        spool.plane(k, np.zeros(shape, np.uint8))

"""Bit packing against pydicom's unpacking."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.pixels.utils import unpack_bits

from medseg.results.frames import pack_plane, pixel_data


@given(st.data(), st.integers(1, 9), st.integers(1, 21), st.integers(1, 5))
def test_frames_of_any_size_follow_each_other_without_padding(
    data: st.DataObject, rows: int, columns: int, count: int
) -> None:
    planes = [data.draw(arrays(np.uint8, (rows, columns), elements=st.integers(0, 3))) for _ in range(count)]
    frames = [frame for k, plane in enumerate(planes) for frame in pack_plane(plane, k)]
    kept = [(n, k) for k, plane in enumerate(planes) for n in (1, 2, 3) if (plane == n).any()]
    assert [(frame.segment, frame.k) for frame in frames] == kept
    bits = unpack_bits(b"".join(pixel_data(frames, rows * columns)))[: len(kept) * rows * columns]
    masks = [planes[k] == n for n, k in kept]
    assert (bits.reshape(-1, rows, columns) == np.array(masks).reshape(-1, rows, columns)).all()

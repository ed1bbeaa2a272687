"""Label planes as RLE Lossless frames (PS3.5 annex G), and frames as encapsulated PixelData (PS3.5 A.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from medseg.inference.labels import LabelPlane

_LONGEST = 128  # voxels that one run stands for
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def rle_frame(plane: LabelPlane) -> bytes:
    """A plane of one byte a voxel as a frame of one RLE segment, of even length.

    Each run within a row becomes pairs of bytes: how often, and what. Literal runs, which RLE has for what changes from
    voxel to voxel, would save little of labels.
    """
    rows, columns = plane.shape
    begins = np.ones((rows, columns), np.bool_)  # a run ends with its row
    begins[:, 1:] = plane[:, 1:] != plane[:, :-1]
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=plane.size)
    pieces = -(-lengths // _LONGEST)
    counts = np.full(int(pieces.sum()), _LONGEST, np.intp)
    counts[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    pairs = np.empty((len(counts), 2), np.uint8)
    pairs[:, 0] = np.where(counts == 1, 0, 257 - counts)  # 0: the one byte that follows, as it is
    pairs[:, 1] = np.repeat(plane.reshape(-1)[starts], pieces)
    return struct.pack("<16I", 1, 64, *[0] * 14) + pairs.tobytes()


def encapsulated(frames: Sequence[bytes]) -> Iterator[bytes]:
    """The PixelData element of frames of even length, a fragment each, behind a table of their offsets."""
    offsets = np.concatenate([[0], np.cumsum([len(frame) + 8 for frame in frames])[:-1]]).astype("<u4").tobytes()
    yield b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
    for item in (offsets, *frames):
        yield _ITEM + struct.pack("<I", len(item))
        yield item
    yield _END + bytes(4)

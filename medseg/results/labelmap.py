"""DICOM Segmentation as a label map (PS3.3 C.8.20, of 2024): a byte a voxel, RLE Lossless, written as planes come.

A frame for each source image in which there is something. A hundredth of the bytes of a BINARY one of many segments;
but another SOP class, which older archives refuse and older viewers do not show. Every value that a voxel may have is
described, so the background is a segment of its own, number 0, and the value of Pixel Padding Value.
"""

from __future__ import annotations

from pathlib import Path

from pydicom.uid import RLELossless

from medseg.bundle.bundle import Segment
from medseg.dicom.series import Stack
from medseg.errors import MayOverlap, OutputNotWritable
from medseg.inference.labels import LabelPlane
from medseg.results.encoding import file_head, raw_element
from medseg.results.files import replacing
from medseg.results.frames import plane_groups
from medseg.results.provenance import Provenance
from medseg.results.rle import encapsulated, rle_frame
from medseg.results.seg import LABELMAP, PER_FRAME_GROUPS, check_segments, seg_head

_FARTHEST = 2**32 - 1  # offset of a frame


class LabelmapWriter:
    """A LabelSink that writes one label map; `end` puts the file in its place.

    path: of the file; afterwards `written` tells whether there is one: none where nothing was found.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self.path, self.provenance = path, provenance
        self.written = False
        self._frames: dict[int, bytes] = {}

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        """Raises MayOverlap for segments that may, and as `SegWriter.begin`."""
        if not exclusive:
            raise MayOverlap(self.provenance.bundle)
        check_segments(stack, segments, self.provenance.bundle)
        self._stack, self._segments = stack, segments

    def plane(self, k: int, labels: LabelPlane) -> None:
        if labels.any():
            self._frames[k] = rle_frame(labels)

    def end(self) -> None:
        """Raises OutputNotWritable."""
        used, frames = tuple(self._frames), tuple(self._frames.values())
        if not used:
            return
        if sum(map(len, frames)) + 8 * len(frames) > _FARTHEST:
            raise OutputNotWritable(self.path, f"{len(frames)} frames take more than 4 GiB")
        head = seg_head(LABELMAP, self._stack, self._segments, self.provenance, used[0])
        head.file_meta.TransferSyntaxUID = RLELossless
        head.NumberOfFrames = len(frames)
        head["PixelPaddingValue"].VR = "US"
        head[PER_FRAME_GROUPS] = raw_element(PER_FRAME_GROUPS, "SQ", plane_groups(self._stack.slices, used))
        with replacing(self.path) as temporary, temporary.open("wb") as out:
            out.write(file_head(head))
            out.writelines(encapsulated(frames))
        self.written = True

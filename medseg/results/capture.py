"""Secondary captures: the images again in colour, with contours burnt in, for viewers that know no segmentations.

    ┌────── A ──────┬─────────────┐
    │               │ legend      │     nothing is written across the anatomy; the frame around it belongs to the image
    R    anatomy    L doubts      │     plane, too, so that every pixel still lies where it is, in the source's frame of
    │               │ image number│     reference: viewers cross-reference it with any other series
    └────── P ──────┴─────────────┘

One single-frame object for each slice, since every viewer takes those, uncompressed for the same reason; drawn and
written one at a time. Nothing found: the middle slice alone, which says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, SecondaryCaptureImageStorage

from medseg.bundle.bundle import Segment
from medseg.dicom.instance import Plane, Vector
from medseg.dicom.reason import Reason
from medseg.dicom.series import Stack
from medseg.errors import GeometryRefused
from medseg.inference.labels import LabelPlane, SegmentationResult
from medseg.inference.planes import LabelSpool
from medseg.results.drawing import (
    DOUBT,
    FAINT,
    TEXT,
    areas_of,
    contour,
    display_window,
    edge_letters,
    font,
    fullest,
    shortened,
    volume_text,
    wrapped,
)
from medseg.results.encoding import BAD_VALUE, decimal, file_head
from medseg.results.files import replacing
from medseg.results.modules import begin_object, copy_lossy, instance_reference
from medseg.results.provenance import Provenance
from medseg.results.report import sentences

_PURPOSE = CodedConcept.from_code(codes.cid7202.SourceImageForImageProcessingOperation)
_BLACK = (0, 0, 0)
_EDGE = 24  # pixels around the anatomy, for letters
_PANEL = 230  # pixels of the legend's width
_SMALLEST = 360  # pixels of the anatomy's longer side: smaller images are enlarged


@dataclass(frozen=True)
class Layout:
    """How a slice lies in its capture. scale: pixels of a voxel's side. rows, columns: of the whole."""

    scale: int
    rows: int
    columns: int

    @classmethod
    def of(cls, plane: Plane) -> Layout:
        scale = -(-_SMALLEST // max(plane.rows, plane.columns))
        rows, columns = plane.rows * scale + 2 * _EDGE, plane.columns * scale + 2 * _EDGE
        return cls(scale, max(rows, _SMALLEST + 2 * _EDGE), columns + _PANEL)

    def position_mm(self, plane: Plane) -> Vector:
        """Of the centre of the capture's first pixel."""
        back = (0.5 / self.scale - 0.5 - _EDGE / self.scale) * np.array(plane.spacing_mm)
        position: Vector = plane.position_mm + back[0] * plane.column_direction + back[1] * plane.row_direction
        return position


class CaptureWriter:
    """A LabelSink that writes a folder of captures, named by the slices' numbers, from 1.

    labels: what will come, which says how images are shown. folder: afterwards `written` tells whether there is any.
    window: the values that are black and white.
    """

    def __init__(self, folder: Path, labels: LabelSpool, result: SegmentationResult, provenance: Provenance) -> None:
        self.folder, self.result, self.provenance = folder, result, provenance
        self.written, self.window = False, (0.0, 1.0)
        self._labels = labels

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        """Raises GeometryRefused for a stack with no frame of reference, UndecodablePixels."""
        if not stack.frame_of_reference_uid:
            raise GeometryRefused(
                stack.series.series_uid,
                Reason.NO_FRAME_OF_REFERENCE,
                "no FrameOfReferenceUID, which captures must share",
            )
        self._stack, self._segments, self._exclusive = stack, segments, exclusive
        self._numbers = image_numbers(stack)
        self._shown = fullest(areas_of(self._labels))
        values, labelled = stack.slices[self._shown].read(), self._labels[self._shown]
        inside = np.asarray(labelled != 0 if exclusive else labelled.any(axis=0), np.bool_)
        self.window = display_window(np.nan_to_num(values), stack.series.modality, inside)
        self._layout = Layout.of(stack.slices[0].plane)
        self._sheet = _sheet(self._layout, stack, self.result, self.provenance)
        self._head = self._common()

    def plane(self, k: int, labels: LabelPlane) -> None:
        """Raises OutputNotWritable, UndecodablePixels."""
        if self.result.empty and k != self._shown:
            return
        pixels = np.asarray(self._drawn(k, labels)).tobytes()
        head = file_head(self._of_slice(k))
        size = len(pixels) + len(pixels) % 2
        with replacing(self.folder / f"{k + 1:04d}.dcm") as temporary, temporary.open("wb") as out:
            out.write(head + b"\xe0\x7f\x10\x00OB\x00\x00" + size.to_bytes(4, "little"))
            out.write(pixels + b"\0" * (size - len(pixels)))
        self.written = True

    def end(self) -> None:
        pass

    def _drawn(self, k: int, labels: LabelPlane) -> Image.Image:
        stack, layout = self._stack, self._layout
        black, white = self.window
        values = np.nan_to_num(stack.slices[k].read())
        gray = (np.clip((values - black) / (white - black), 0, 1) * 255).round().astype(np.uint8)
        size = gray.shape[1] * layout.scale, gray.shape[0] * layout.scale
        image = Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR) if layout.scale > 1 else gray
        pixels = np.repeat(np.asarray(image)[..., None], 3, axis=2)
        for index, segment in enumerate(self._segments):
            mask = labels == segment.number if self._exclusive else labels[index] != 0
            _outline(pixels, mask, segment.color, layout.scale)
        sheet = self._sheet.copy()
        sheet.paste(Image.fromarray(pixels), (_EDGE, _EDGE))
        at = layout.columns - _PANEL + 8, layout.rows - 62
        place = f"image {self._numbers[k]}, slice {k + 1} of {len(stack.slices)}"
        ImageDraw.Draw(sheet).text(at, place, fill=TEXT, font=font(14))
        return sheet

    def _common(self) -> Dataset:
        """What all captures of the series say."""
        stack, layout = self._stack, self._layout
        plane = stack.slices[0].plane
        head = begin_object(SecondaryCaptureImageStorage, "OT", stack, self.provenance, "sc", 4)
        head.ImageType = ["DERIVED", "SECONDARY"]
        head.ConversionType = "WSD"
        head.Laterality = ""
        head.BurnedInAnnotation = "NO"  # it means what identifies the patient (PS3.3 C.7.6.1): no such thing is written
        black, white = self.window
        head.DerivationDescription = f"Contours of a segmentation on the image, window {black:g} to {white:g}"
        head.PatientOrientation = [edge_letters(plane.row_direction), edge_letters(plane.column_direction)]
        copy_lossy((part.instance.header for part in stack.slices if part.instance is not None), head)
        head.FrameOfReferenceUID, head.PositionReferenceIndicator = stack.frame_of_reference_uid, ""
        head.ImageOrientationPatient = [decimal(value) for value in (*plane.row_direction, *plane.column_direction)]
        head.PixelSpacing = [decimal(value / layout.scale) for value in plane.spacing_mm]
        head.SamplesPerPixel, head.PhotometricInterpretation, head.PlanarConfiguration = 3, "RGB", 0
        head.Rows, head.Columns = layout.rows, layout.columns
        head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = 8, 8, 7, 0
        self.provenance.finish(head)
        return head

    def _of_slice(self, k: int) -> Dataset:
        part, head = self._stack.slices[k], self._head
        assert part.instance is not None
        head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = capture_uid(self.provenance, k)
        head.InstanceNumber = self._numbers[k]
        head.ImagePositionPatient = [decimal(value) for value in self._layout.position_mm(part.plane)]
        head.SliceThickness = decimal(float(self._stack.thickness_mm[k]))
        source = instance_reference(part.instance.sop_class_uid, part.instance.sop_instance_uid)
        if part.frame is not None:
            source.ReferencedFrameNumber = part.frame
        source.PurposeOfReferenceCodeSequence = [_PURPOSE]
        head.SourceImageSequence = [source]
        return head


def capture_uid(made: Provenance, k: int) -> UID:
    """SOP Instance UID of the capture of slice k."""
    return made.key.uid(f"sc.{k + 1}")


def image_numbers(stack: Stack) -> list[int]:
    """Of each slice the number that its image is known by; its place from 1 where images have none, or one twice."""
    try:
        numbers = [int(part.instance.header.InstanceNumber) for part in stack.slices if part.instance is not None]
    except BAD_VALUE:
        numbers = []
    told_apart = len(set(numbers)) == len(stack.slices) and min(numbers) >= 0
    return numbers if told_apart else list(range(1, len(stack.slices) + 1))


def _outline(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], color: tuple[int, int, int], scale: int) -> None:
    """Draw the outline of a mask, around which alone is looked."""
    rows, columns = (np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1))
    if not rows.size or mask.all():
        return
    top, left = max(int(rows[0]) - 3, 0), max(int(columns[0]) - 3, 0)
    part = mask[top : int(rows[-1]) + 4, left : int(columns[-1]) + 4]
    size = part.shape[1] * scale, part.shape[0] * scale
    edge = contour(part, size)[..., None]
    here = np.s_[top * scale : top * scale + size[1], left * scale : left * scale + size[0]]
    mixed = pixels[here] * (1 - edge) + np.array(color, np.float32) * edge
    pixels[here] = mixed.round().astype(np.uint8)


def _sheet(layout: Layout, stack: Stack, result: SegmentationResult, made: Provenance) -> Image.Image:
    """What all captures of a series have around the anatomy."""
    plane = stack.slices[0].plane
    sheet = Image.new("RGB", (layout.columns, layout.rows), _BLACK)
    draw = ImageDraw.Draw(sheet)
    bottom, right = plane.rows * layout.scale + _EDGE, plane.columns * layout.scale + _EDGE
    middle = ((_EDGE + bottom) / 2, (_EDGE + right) / 2)
    down, across = plane.column_direction, plane.row_direction
    half = _EDGE / 2
    for at, letters in (
        ((middle[1], half), edge_letters(-down)),
        ((middle[1], bottom + half), edge_letters(down)),
        ((half, middle[0]), edge_letters(-across)),
        ((right + half, middle[0]), edge_letters(across)),
    ):
        draw.text(at, letters, fill=TEXT, font=font(15 if len(letters) == 1 else 11), anchor="mm")
    x, end = right + _EDGE + 8, layout.rows
    draw.text((x, 8), shortened(made.bundle, 26), fill=TEXT, font=font(15))
    number = stack.series.number or "without number"
    draw.text((x, 28), f"{stack.series.modality} series {number}", fill=FAINT, font=font(13))
    _legend(draw, result, x, 54, end - 70)
    use = "Research use, not for diagnosis" if made.research_use else "Automatic contours"
    draw.text((x, end - 40), use, fill=DOUBT, font=font(13))
    draw.text((x, end - 22), "Made by medseg", fill=FAINT, font=font(13))
    return sheet


def _legend(draw: ImageDraw.ImageDraw, result: SegmentationResult, x: int, y: int, end: int) -> None:
    """Colours, names and volumes of what was found, and each doubt, as far as there is room."""
    there = [measured for measured in result.measured if measured.voxels]
    doubts = [line for text in sentences(result, research_use=False) for line in wrapped(text, 34)]
    room = max((end - y - 15 * min(len(doubts), 8)) // 19, 1)
    for measured in there if len(there) <= room else there[: room - 1]:
        draw.rectangle((x, y + 3, x + 11, y + 14), fill=measured.segment.color)
        draw.text((x + 18, y), shortened(measured.segment.label, 20), fill=TEXT, font=font(13))
        draw.text((x + _PANEL - 16, y), volume_text(measured.volume_ml), fill=TEXT, font=font(13), anchor="ra")
        y += 19
    if len(there) > room:
        draw.text((x + 18, y), f"and {len(there) - room + 1} more", fill=FAINT, font=font(13))
        y += 19
    fit = max((end - y - 6) // 15, 0)
    for number, line in enumerate(doubts[:fit]):
        more = number == fit - 1 and len(doubts) > fit
        draw.text((x, y + 6 + 15 * number), "... see the report" if more else line, fill=DOUBT, font=font(12))

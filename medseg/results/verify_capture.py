"""Do secondary captures show what they were meant to show, where it is? A second reader, as `verify` is of a SEG.

It looks as a viewer does: where a voxel lies in a capture follows from both images' positions alone, and there must be
the image in gray, and colour around each label and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from scipy import ndimage

from medseg.bundle.bundle import Segment
from medseg.dicom.instance import Slice
from medseg.dicom.series import Stack
from medseg.errors import VerificationFailed
from medseg.inference.labels import LabelPlane
from medseg.results.verify import MALFORMED, TOLERANCE_MM, source_position_mm

_NEAR = 3  # voxels: colour beyond is not an outline
_SEEN = 0.9  # share of the voxels along a label's inner edge that show a colour
_Mask = NDArray[np.bool_]


def verify_captures(
    folder: Path,
    stack: Stack,
    segments: tuple[Segment, ...],
    planes: Iterable[LabelPlane],
    *,
    exclusive: bool,
    window: tuple[float, float],
) -> None:
    """Read the captures in `folder` and compare them with the label planes and the images, shown in a window.

    Raises VerificationFailed with the first difference, UndecodablePixels.
    """
    colors = np.array([segment.color for segment in segments])
    numbers = [segment.number for segment in segments]
    found, files = False, {path.name for path in folder.iterdir()}
    for k, plane in enumerate(planes):
        masks = [plane == number for number in numbers] if exclusive else [one != 0 for one in plane]
        found |= bool(plane.any())
        name = f"{k + 1:04d}.dcm"
        if name in files:
            files.remove(name)
            try:
                _verify(pydicom.dcmread(folder / name), stack, k, masks, colors, window)
            except MALFORMED as error:
                raise VerificationFailed(f"{name}: cannot be read back: {error}") from error
        elif found:
            raise VerificationFailed(f"{name}: missing")
    if files:
        raise VerificationFailed(f"{sorted(files)[0]}: not one of {len(stack.slices)} slices")


def _verify(
    capture: Dataset, stack: Stack, k: int, masks: list[_Mask], colors: NDArray[np.int64], window: tuple[float, float]
) -> None:
    part = stack.slices[k]
    assert part.instance is not None
    source = capture.SourceImageSequence[0]
    facts = [
        ("SOPClassUID", SecondaryCaptureImageStorage, capture.SOPClassUID),
        ("TransferSyntaxUID", ExplicitVRLittleEndian, capture.file_meta.TransferSyntaxUID),
        ("StudyInstanceUID", stack.series.study_uid, capture.StudyInstanceUID),
        ("FrameOfReferenceUID", stack.frame_of_reference_uid, capture.FrameOfReferenceUID),
        ("ReferencedSOPInstanceUID", part.instance.sop_instance_uid, source.ReferencedSOPInstanceUID),
        ("ReferencedFrameNumber", part.frame, source.get("ReferencedFrameNumber")),
    ]
    for name, wanted, there in facts:
        if wanted != there:
            raise VerificationFailed(f"slice {k}: {name}: expected {wanted}, found {there}")
    pixels = _anatomy(capture, stack, k)
    scale = pixels.shape[0] // part.plane.rows
    blocks = pixels.reshape(part.plane.rows, scale, part.plane.columns, scale, 3)
    near = np.zeros((part.plane.rows, part.plane.columns), np.bool_)
    for index, mask in enumerate(masks):
        if not mask.any():
            continue
        inner = mask & ~ndimage.binary_erosion(mask, border_value=1)  # not where the image ends
        near |= ndimage.binary_dilation(inner, np.ones((3, 3), np.bool_), iterations=_NEAR)
        row, column = np.nonzero(inner)
        away = np.abs(blocks[row, :, column, :, None, :].astype(np.int16) - colors).max(axis=-1)
        if len(row) and (away <= 1).any(axis=(1, 2, 3)).mean() < _SEEN:
            raise VerificationFailed(f"slice {k}: segment {index + 1} has no outline")
    elsewhere = ~near.repeat(scale, axis=0).repeat(scale, axis=1)
    if (pixels.max(axis=-1) != pixels.min(axis=-1))[elsewhere].any():
        raise VerificationFailed(f"slice {k}: colour where no label ends")
    wrong = np.abs(pixels[..., 0].astype(np.int16) - _gray(part, window, scale))[elsewhere]
    if wrong.max(initial=0) > 1:
        raise VerificationFailed(f"slice {k}: gray values differ from the image's by up to {wrong.max()} of 255")


def _anatomy(capture: Dataset, stack: Stack, k: int) -> NDArray[np.uint8]:
    """The pixels in which the slice's voxels lie, by the positions of both."""
    plane = stack.slices[k].plane
    axes = np.stack([plane.column_direction, plane.row_direction, plane.normal])
    directions = np.array(capture.ImageOrientationPatient, np.float64).reshape(2, 3)[::-1]
    if not np.allclose(directions, axes[:2], atol=1e-6):
        raise VerificationFailed(
            f"slice {k}: ImageOrientationPatient: expected {axes[1::-1]}, found {directions[::-1]}"
        )
    spacing = np.array(capture.PixelSpacing, np.float64)
    scale = plane.spacing_mm / spacing
    from_first = axes @ (np.array(source_position_mm(stack, k)) - np.array(capture.ImagePositionPatient, np.float64))
    corner = from_first[:2] / spacing - (scale - 1) / 2  # the first pixel of the first voxel
    size = np.rint(scale * (plane.rows, plane.columns)).astype(int)
    off = max(abs(from_first[2]), *(np.abs(corner - np.rint(corner)) * spacing), *np.abs(scale - np.rint(scale)) * size)
    if off > TOLERANCE_MM or scale.min() < 0.5 or abs(scale[0] - scale[1]) > 0.5:
        raise VerificationFailed(f"slice {k}: its voxels are no pixels of the capture: {off:.4f} mm apart")
    top, left = np.rint(corner).astype(int)
    pixels = np.asarray(capture.pixel_array)[max(top, 0) : top + size[0], max(left, 0) : left + size[1]]
    if pixels.shape != (*size, 3):
        raise VerificationFailed(f"slice {k}: {tuple(size)} pixels expected, {pixels.shape[:2]} of it in the capture")
    return pixels


def _gray(part: Slice, window: tuple[float, float], scale: int) -> NDArray[np.int16]:
    """The slice as it should be shown."""
    gray = np.interp(np.nan_to_num(part.read()), window, (0, 255)).round().astype(np.uint8)
    rows, columns = gray.shape
    enlarged = Image.fromarray(gray).resize((columns * scale, rows * scale), Image.Resampling.BILINEAR)
    return np.asarray(enlarged, np.int16)

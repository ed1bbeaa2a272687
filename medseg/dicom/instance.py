"""One DICOM object, and the image planes it carries.

Instance  = header + where its bytes are          (a file, a zip entry, a spooled object)
Slice     = one plane with its geometry, pixels read when asked for
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

Pixels: TypeAlias = NDArray[np.float32]
Vector: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Remark:
    """Something wrong about an object that is read all the same, since one reading alone is possible.

    code: a stable name. detail: a sentence without its subject, the same for all objects with this flaw.
    """

    code: str
    detail: str


@dataclass(frozen=True, eq=False)
class Instance:
    """A DICOM object: its header, and how to open its bytes again.

    header: the data set without PixelData, and of private elements only those of `private`; with `file_meta`.
    open: gives the whole object as a binary stream, file meta included.
    name: for messages to the user (a path, a zip entry); never a patient's name.
    pixel_offset: where the PixelData element begins in those bytes; None: not known, or inside a deflated data set.
    remarks: how the bytes are otherwise than they should be.
    """

    header: Dataset
    open: Callable[[], BinaryIO]
    name: str
    pixel_offset: int | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def sop_instance_uid(self) -> str:
        return str(self.header.SOPInstanceUID)

    @property
    def sop_class_uid(self) -> str:
        return str(self.header.SOPClassUID)


@dataclass(frozen=True, eq=False)
class Plane:
    """Where an image plane lies (PS3.3 C.7.6.2).

    position_mm: (3,) LPS, centre of the first pixel.
    row_direction: (3,) unit vector along increasing column index i (first triple of ImageOrientationPatient).
    column_direction: (3,) unit vector along increasing row index j (second triple).
    spacing_mm: (between rows j, between columns i), as PixelSpacing.
    cosines: (6,) ImageOrientationPatient, where it was rounded: both directions as they are written, before they were
        given length one and a right angle between them.
    """

    position_mm: Vector
    row_direction: Vector
    column_direction: Vector
    spacing_mm: tuple[float, float]
    rows: int
    columns: int
    cosines: Vector | None = None

    @property
    def normal(self) -> Vector:
        return np.cross(self.row_direction, self.column_direction)


@dataclass(frozen=True, eq=False)
class Slice:
    """One image plane of a series: a single-frame instance, one frame of an enhanced one, or a NIfTI plane.

    read: decodes the plane to modality values (HU for CT), float32, (rows, columns); raises UndecodablePixels.
    instance: None for a plane that came from NIfTI.
    frame: 1-based number in a multi-frame instance, else None.
    phase: what may tell planes of one series apart (acquisition, echo, b-value, ...), name to value; see `traits`.
    """

    plane: Plane
    read: Callable[[], Pixels]
    instance: Instance | None = None
    frame: int | None = None
    phase: dict[str, str] = field(default_factory=dict)

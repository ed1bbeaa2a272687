"""Series made to measure: objects placed in patient millimetres, written as real CT and MR instances.

For demonstrations and tests. Everything, UIDs included, follows from the arguments, so the same call gives the same
series; `seed` makes another one.

    datasets = make_series(orientation="coronal", spacing_mm=(5, 1, 1), objects=[Ellipsoid((0, 0, 0), (20, 15, 30))])
    write_series(datasets, folder)
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from medseg.dicom.instance import Vector
from medseg.names import named_uid

#: Direction cosines (row, column) in LPS of the usual planes (PS3.3 C.7.6.2.1.1).
ORIENTATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Ellipsoid:
    """Of a value (HU for CT), about a centre, semi-axes along x, y, z; LPS mm."""

    centre_mm: Triple
    radii_mm: Triple
    value: float = 100.0

    def contains(self, points_mm: Vector) -> NDArray[np.bool_]:
        """For points (..., 3)."""
        distance: Vector = (((points_mm - self.centre_mm) / self.radii_mm) ** 2).sum(axis=-1)
        return distance <= 1.0


@dataclass(frozen=True)
class Box:
    """Of a value (HU for CT), from one corner to the opposite one along x, y, z; LPS mm."""

    low_mm: Triple
    high_mm: Triple
    value: float = 100.0

    def contains(self, points_mm: Vector) -> NDArray[np.bool_]:
        """For points (..., 3)."""
        beyond: Vector = np.maximum(self.low_mm - points_mm, points_mm - self.high_mm).max(axis=-1)
        return beyond <= 0.0


def make_affine(
    orientation: str | tuple[Triple, Triple] = "axial",
    spacing_mm: Triple = (2.0, 1.0, 1.0),
    shape: tuple[int, int, int] = (16, 48, 40),
    *,
    centre_mm: Triple = (0.0, 0.0, 0.0),
    tilt_deg: float = 0.0,
) -> Vector:
    """An affine, (k, j, i, 1) to LPS mm, for a grid about a centre.

    Args:
        orientation: a name of `ORIENTATIONS`, or direction cosines (row, column).
        spacing_mm: (k along the normal, j between rows, i between columns).
        shape: (slices, rows, columns).
        centre_mm: where the middle of the grid lies.
        tilt_deg: shears slices along the column direction, as a tilted gantry does.
    """
    row, column = (np.array(axis, dtype=np.float64) for axis in _directions(orientation))
    normal = np.cross(row, column)
    affine = np.eye(4)
    affine[:3, 0] = spacing_mm[0] * (normal + np.tan(np.radians(tilt_deg)) * column)
    affine[:3, 1] = spacing_mm[1] * column
    affine[:3, 2] = spacing_mm[2] * row
    affine[:3, 3] = np.array(centre_mm) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _directions(orientation: str | tuple[Triple, Triple]) -> tuple[Triple, Triple]:
    return ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation


def paint(
    affine: Vector, shape: tuple[int, int, int], objects: Sequence[Ellipsoid | Box], background: float
) -> NDArray[np.float64]:
    """Values (k, j, i) of a grid: of the last object that holds a voxel's centre, else the background."""
    array = np.full(shape, background, dtype=np.float64)
    j, i = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for k in range(shape[0]):
        grid = np.stack([np.full(j.shape, k), j, i, np.ones(j.shape)], axis=-1)
        points = (grid @ affine.T)[..., :3]
        for one in objects:
            array[k][one.contains(points)] = one.value
    return array


def make_series(
    orientation: str | tuple[Triple, Triple] = "axial",
    spacing_mm: Triple = (2.0, 1.0, 1.0),
    shape: tuple[int, int, int] = (16, 48, 40),
    objects: Sequence[Ellipsoid | Box] = (Ellipsoid((0.0, 0.0, 0.0), (8.0, 8.0, 8.0)),),
    *,
    modality: str = "CT",
    background: float | None = None,
    centre_mm: Triple = (0.0, 0.0, 0.0),
    tilt_deg: float = 0.0,
    patient_position: str = "HFS",
    missing: Sequence[int] = (),
    description: str = "Phantom",
    number: int = 1,
    seed: int = 0,
) -> list[Dataset]:
    """A series of objects placed in patient millimetres, in slice order.

    Args:
        orientation, spacing_mm, shape, centre_mm, tilt_deg: see `make_affine`.
        objects: painted in turn; later ones cover earlier ones.
        modality: "CT" or "MR".
        background: value around the objects; -1000 HU for CT and 0 for MR where not given.
        patient_position: PatientPosition, e.g. "FFP"; it is stated only, directions are in patient coordinates.
        missing: slice numbers to leave out.
        description, number, seed: see `volume_to_series`.
    """
    affine = make_affine(orientation, spacing_mm, shape, centre_mm=centre_mm, tilt_deg=tilt_deg)
    air = (-1000.0 if modality == "CT" else 0.0) if background is None else background
    array = paint(affine, shape, objects, air)
    datasets = volume_to_series(
        array, affine, modality, description, number=number, seed=seed, patient_position=patient_position
    )
    return [dataset for k, dataset in enumerate(datasets) if k not in missing]


def volume_to_series(
    array: NDArray[Any],
    affine: Vector,
    modality: str,
    description: str,
    *,
    number: int = 1,
    seed: int = 0,
    patient_position: str = "HFS",
    patient_id: str = "PHANTOM",
    body_part: str = "WHOLEBODY",
) -> list[Dataset]:
    """Turn a volume into a series of CT or MR Image Storage instances (PS3.3 A.3, A.4), one for each k.

    Args:
        array: (k, j, i) = slice, row, column. CT: HU, stored with intercept -1024. MR: stored as they are, so
            expected between 0 and 65535. Both are rounded to integers.
        affine: 4x4, maps (k, j, i, 1) to LPS mm; rows and columns at right angles, slices may be sheared.
        modality: "CT" or "MR".
        description: SeriesDescription.
        number: SeriesNumber; series of other numbers and the same seed belong to one study and frame of reference.
        seed: of the UIDs of study and series.
        patient_position: PatientPosition.
        patient_id: PatientID and PatientName.
        body_part: BodyPartExamined, one that is no pair (else dciodvfy asks for Laterality).

    Returns:
        Data sets with file meta, ready for `write_series`.
    """
    stored = np.rint(array.astype(np.float64) + (1024 if modality == "CT" else 0))
    if stored.min() < 0 or stored.max() > 65535:
        raise ValueError(f"values from {array.min():g} to {array.max():g} do not fit 16 bits")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = affine[:3, 2] / spacing[2], affine[:3, 1] / spacing[1]
    normal = np.cross(row, column)
    thickness = float(abs(affine[:3, 0] @ normal))
    header = _header(modality, description, number, seed, patient_id)
    header.BodyPartExamined = body_part
    header.PatientPosition = patient_position
    header.Rows, header.Columns = array.shape[1:]
    header.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    header.SliceThickness = _decimal(thickness)
    header.ImageOrientationPatient = [_decimal(value) for value in (*row, *column)]
    return [
        _instance(header, k, affine[:3, 3] + k * affine[:3, 0], stored[k].astype("<u2"), (number, seed))
        for k in range(len(array))
    ]


def _header(modality: str, description: str, number: int, seed: int, patient_id: str) -> Dataset:
    """What all instances of a series share: complete type 1 and 2 attributes, nobody's data."""
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    header.SOPClassUID = {"CT": CTImageStorage, "MR": MRImageStorage}[modality]
    header.StudyDate = header.SeriesDate = header.ContentDate = header.AcquisitionDate = "20240101"
    header.StudyTime = header.SeriesTime = header.ContentTime = header.AcquisitionTime = "120000"
    header.AccessionNumber = ""
    header.Modality = modality
    header.Manufacturer = "Phantom"  # not ours by name: the gateway leaves our own results alone
    header.ManufacturerModelName = "medseg"
    header.DeviceSerialNumber = "0"
    header.SoftwareVersions = "1"
    header.ReferringPhysicianName = ""
    header.StudyDescription = "Phantom"
    header.SeriesDescription = description
    header.PatientName = f"{patient_id}^"
    header.PatientID = patient_id
    header.PatientBirthDate = ""
    header.PatientSex = "O"
    header.StudyInstanceUID = _uid("study", seed)
    header.SeriesInstanceUID = _uid("series", seed, number)
    header.FrameOfReferenceUID = _uid("frame of reference", seed)
    header.StudyID = "1"
    header.SeriesNumber = number
    header.AcquisitionNumber = 1
    header.PositionReferenceIndicator = ""
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 0
    if modality == "CT":
        header.KVP = "120"
        header.RescaleIntercept, header.RescaleSlope, header.RescaleType = "-1024", "1", "HU"
        header.WindowCenter, header.WindowWidth = "40", "400"
    else:
        header.ScanningSequence, header.SequenceVariant = "GR", "SP"
        header.ScanOptions = ""
        header.MRAcquisitionType = "3D"
        header.RepetitionTime, header.EchoTime, header.EchoTrainLength = "10", "4", "1"
        header.FlipAngle = "15"
    return header


def _instance(
    header: Dataset, k: int, position_mm: Vector, stored: NDArray[np.uint16], series: tuple[int, int]
) -> Dataset:
    dataset = deepcopy(header)
    dataset.SOPInstanceUID = _uid("instance", *series, k)
    dataset.InstanceNumber = k + 1
    dataset.ImagePositionPatient = [_decimal(value) for value in position_mm]
    dataset.PixelData = stored.tobytes()
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def write_series(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write each data set as a DICOM file; names follow the order given, and say nothing of it to a reader."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, dataset in enumerate(datasets):
        path = folder / f"{place:05d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _uid(*parts: object) -> str:
    return named_uid(repr(("medseg phantom", *parts)))


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2), as exact as these allow."""
    rounded = 0.0 if abs(value) < 1e-12 else float(value)
    for digits in range(16, 0, -1):
        text = f"{rounded:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} does not fit a decimal string")

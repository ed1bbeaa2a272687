"""Series made of known volumes, mixed as vendors mix them: what a scanner knew is known here, and only its files are
given to a reader.

A volume is a set of slices; what tells it from others is written into its headers by a `Write`. Slices of a volume
may be gathered in packages (every second slice, slabs), in any order, across midnight.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medseg.dicom.instance import Instance, Vector
from medseg.dicom.series import Series
from medseg.dicom.sources import to_series

Write = Callable[[Dataset, "Made"], None]


@dataclass(frozen=True)
class Made:
    """One slice as the scanner knows it. turn: when it was gathered, in slices since the start of all."""

    volume: int
    k: int
    package: int
    turn: int
    position_mm: tuple[float, ...]
    uid: str


@dataclass(frozen=True)
class Geometry:
    """How volumes lie. offsets: of each volume, in steps. decimals: to which positions are written."""

    counts: tuple[int, ...]
    offsets: tuple[float, ...]
    step_mm: float = 5.0
    thickness: float = 1.0  # of the step
    decimals: int = 6
    row: tuple[float, float, float] = (1.0, 0.0, 0.0)
    column: tuple[float, float, float] = (0.0, 1.0, 0.0)

    @property
    def normal(self) -> Vector:
        return np.cross(self.row, self.column)


@dataclass(frozen=True)
class Mixture:
    """packages: of each volume, "whole", "odd even", "slabs" or "thirds". whole_objects: an enhanced object for each
    volume, for all together, or single frames."""

    geometry: Geometry
    tell: Write
    packages: str = "whole"
    objects: str = "single"
    numbered: str = "volume"
    pointers: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    noise: tuple[Write, ...] = field(default=())


def slices_of(mixture: Mixture) -> list[Made]:
    """Volume after volume, package after package."""
    lies, made, turn = mixture.geometry, [], 0
    for volume, (count, offset) in enumerate(zip(lies.counts, lies.offsets, strict=True)):
        for package, members in enumerate(_packages(count, mixture.packages)):
            for k in members:
                place = lies.normal * lies.step_mm * (k + offset)
                written = tuple(round(float(x), lies.decimals) + 0.0 for x in place)
                made.append(Made(volume, k, package, turn, written, f"1.2.3.{volume + 1}.{k + 1}"))
                turn += 1
    return made


def _packages(count: int, how: str) -> list[Sequence[int]]:
    match how:
        case "odd even":
            return [range(0, count, 2), range(1, count, 2)]
        case "thirds":
            return [range(first, count, 3) for first in range(3)]
        case "slabs":
            return [range(count // 2), range(count // 2, count)]
        case _:
            return [range(count)]


def mixed(mixture: Mixture) -> tuple[Series, dict[tuple[str, int], int]]:
    """The series in some order of files, and of each (SOPInstanceUID, frame) the volume that it belongs to."""
    made = slices_of(mixture)
    random = Random(mixture.seed)
    truth: dict[tuple[str, int], int] = {}
    datasets: list[Dataset] = []
    if mixture.objects == "single":
        for one in made:
            datasets.append(_classic(one, mixture))
            truth[one.uid, 0] = one.volume
    else:
        several = mixture.objects == "each"
        for number in range(len(mixture.geometry.counts) if several else 1):
            frames = [one for one in made if not several or one.volume == number]
            random.shuffle(frames)
            uid = f"1.2.3.9.{number + 1}"
            datasets.append(_enhanced(frames, uid, mixture))
            truth |= {(uid, place): one.volume for place, one in enumerate(frames, 1)}
    random.shuffle(datasets)
    return to_series([_instance(dataset) for dataset in datasets]), truth


def _instance(dataset: Dataset) -> Instance:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return Instance(dataset, io.BytesIO, "made")


def _common(mixture: Mixture) -> Dataset:
    header = Dataset()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.4"
    header.PatientID, header.Modality = "X", "MR"
    header.Rows = header.Columns = 4
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    return header


def _classic(one: Made, mixture: Mixture) -> Dataset:
    lies, header = mixture.geometry, _common(mixture)
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", one.uid
    header.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    header.AcquisitionNumber = 1
    if mixture.numbered == "volume":
        header.InstanceNumber = one.turn + 1
    elif mixture.numbered == "position":
        header.InstanceNumber = one.k * len(lies.counts) + one.volume + 1
    header.ImagePositionPatient = list(one.position_mm)
    header.ImageOrientationPatient = [*lies.row, *lies.column]
    header.PixelSpacing = [0.2 * lies.step_mm] * 2
    header.SliceThickness = float(f"{lies.step_mm * lies.thickness:.8g}")
    for write in (*mixture.noise, mixture.tell):
        write(header, one)
    return header


def _enhanced(frames: Sequence[Made], uid: str, mixture: Mixture) -> Dataset:
    lies, header = mixture.geometry, _common(mixture)
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4.1", uid
    shared = item(
        PixelMeasuresSequence=[
            item(
                PixelSpacing=[0.2 * lies.step_mm] * 2,
                SliceThickness=float(f"{lies.step_mm * lies.thickness:.8g}"),
            )
        ],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[*lies.row, *lies.column])],
    )
    header.SharedFunctionalGroupsSequence = [shared]
    header.NumberOfFrames = len(frames)
    header.DimensionIndexSequence = [
        item(DimensionIndexPointer=pointer[0], FunctionalGroupPointer=pointer[1]) for pointer in mixture.pointers
    ]
    groups = []
    for one in frames:
        group = item(PlanePositionSequence=[item(ImagePositionPatient=list(one.position_mm))])
        group.FrameContentSequence = [item(StackID="1", InStackPositionNumber=one.k + 1)]
        for write in (*mixture.noise, mixture.tell):
            write(group, one)
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = groups
    return header


def item(**values: object) -> Dataset:
    """A sequence item."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made

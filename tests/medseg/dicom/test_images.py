"""What a folder holds beside the slices of a series decides nothing, whatever its files are called."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, SecondaryCaptureImageStorage

from medseg.dicom.candidates import SkipReason
from medseg.dicom.geometry import classify
from medseg.dicom.images import agreed
from medseg.dicom.phantom import make_series
from medseg.dicom.sources import find_instances

PLACED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID")


def slices() -> list[Dataset]:
    return make_series(spacing_mm=(3.0, 2.0, 2.0), shape=(6, 16, 16), description="Axial", number=4)


def other(like: Dataset, sop_class: str, *, placed: bool = False, **tags: object) -> Dataset:
    one = copy.deepcopy(like)
    one.SOPClassUID, one.SOPInstanceUID = sop_class, f"{like.SeriesInstanceUID}.{sop_class[-3:]}"
    one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = sop_class, one.SOPInstanceUID
    for keyword, value in ({"SeriesDescription": "Other", "SeriesNumber": 99, "Modality": "OT"} | tags).items():
        setattr(one, keyword, value)
    for keyword in () if placed else PLACED:
        del one[keyword]
    return one


def others(like: Dataset) -> list[Dataset]:
    topogram = other(like, str(like.SOPClassUID), placed=True, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return [
        other(like, SecondaryCaptureImageStorage),
        other(like, f"{SecondaryCaptureImageStorage}.4", placed=True),  # multi-frame true colour
        other(like, DigitalXRayImageStorageForPresentation),
        topogram,
    ]


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(10)))
def test_the_names_of_files_decide_nothing(order: list[int]) -> None:
    made = slices()
    every = [*made, *others(made[0])]
    with tempfile.TemporaryDirectory() as folder:
        for number, which in enumerate(order):
            every[which].save_as(Path(folder, f"{number:02d}.dcm"), enforce_file_format=True)
        found = find_instances(Path(folder))
    (series,) = found.series()
    assert (series.modality, series.number, series.description) == ("CT", 4, "Axial")
    (stack,) = classify(series).stacks
    assert len(stack.slices) == 6
    assert [one.code for one in found.skipped] == [SkipReason.NOT_AN_IMAGE] * 2
    assert all("not of the images of its series" in one.why for one in found.skipped)


def test_a_volume_of_secondary_captures_is_one(tmp_path: Path) -> None:
    for number, one in enumerate(slices()):
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        one.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    found = find_instances(tmp_path)
    assert len(found.instances) == 6 and not found.skipped


@pytest.mark.parametrize(
    ("values", "expected"),
    [(["b", "a", "b"], "b"), (["b", "a"], "a"), ([("", ""), ("z",), ("z",)], ("z",)), ([None, 2.0, 10.0], 10.0)],
)
def test_most_decide_and_the_first_in_order_of_equally_many(values: list[object], expected: object) -> None:
    assert agreed(values) == expected == agreed(values[::-1])

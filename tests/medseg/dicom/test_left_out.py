"""What of an input is in no volume, and which series may have lost it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.fileset import FileSet

from medseg.dicom import left_out
from medseg.dicom.announced import missing
from medseg.dicom.phantom import make_series, write_series
from medseg.dicom.series import LeftOut, Series
from medseg.dicom.sources import find_instances

SHAPE = (4, 6, 5)


def of_files(path: Path) -> dict[str, list[tuple[str, int, bool]]]:
    """By series description: code, count, whether something may be lost."""
    return {
        series.description: [(one.code, one.count, one.lost) for one in series.left_out]
        for series in left_out.series_of(find_instances(path))
    }


def two_series(folder: Path) -> Path:
    write_series(make_series(shape=SHAPE, seed=1, description="one"), folder / "s" / "one")
    write_series(make_series(shape=SHAPE, seed=2, description="two"), folder / "s" / "two")
    return folder / "s"


def test_a_file_counts_for_the_series_beside_it(tmp_path: Path) -> None:
    folder = two_series(tmp_path)
    (folder / "one" / "zeros.dcm").write_bytes(bytes(1000))
    (folder / "one" / "empty.DCM").touch()
    cut = folder / "two" / "00001.dcm"
    cut.write_bytes(cut.read_bytes()[:700])
    (folder / "two" / "again.dcm").write_bytes((folder / "two" / "00002.dcm").read_bytes())
    (folder / "inner.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "notes.txt").write_text("nothing")
    (folder / "one" / "gone.dcm").symlink_to("nowhere")
    above = [("nested_archive", 1, True), ("unreadable", 1, False)]
    assert {name: sorted(rows) for name, rows in of_files(folder).items()} == {
        "one": sorted([*above, *[("unreadable", 1, True)] * 3]),
        "two": sorted([*above, ("duplicate", 1, False), ("unreadable", 1, True)]),
    }


@pytest.mark.parametrize(
    ("images", "stranger", "lost"),
    [
        ("I{}.dcm", "x.dcm", True),
        ("I{}.dcm", "x.txt", False),
        ("I{}.dcm", "README", False),
        ("I{}", "README", True),
        ("1.2.{}", "1.3.7", True),
        ("IM.000{}", "IM.0009", True),
        ("I{}.ima", "viewer.exe", False),
        ("I{}.x", "y.X", True),
    ],
)
def test_a_file_named_as_images_are_may_have_been_one(tmp_path: Path, images: str, stranger: str, lost: bool) -> None:
    for number, one in enumerate(make_series(shape=SHAPE, description="s")):
        one.save_as(tmp_path / images.format(number), enforce_file_format=True)
    (tmp_path / stranger).write_bytes(b"something else altogether")
    assert of_files(tmp_path) == {"s": [("unreadable", 1, lost)]}


@pytest.mark.parametrize("form", ["folder", "dicomdir", "zip"])
def test_what_a_directory_refers_to_and_is_not_there(tmp_path: Path, form: str) -> None:
    medium = FileSet()
    for one in (
        *make_series(shape=SHAPE, seed=1, description="one"),
        *make_series(shape=SHAPE, seed=2, description="two"),
    ):
        medium.add(one)
    medium.write(tmp_path / "disc")
    files = sorted(path for path in (tmp_path / "disc").rglob("*") if path.is_file() and path.name != "DICOMDIR")
    for path in files[4:6]:  # of the second series
        path.unlink()
    where = {"folder": tmp_path / "disc", "dicomdir": tmp_path / "disc" / "DICOMDIR", "zip": tmp_path / "disc.zip"}
    with zipfile.ZipFile(where["zip"], "w") as archive:
        for path in (tmp_path / "disc").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "disc"))
    told = of_files(where[form])
    assert [row for row in told["two"] if row[2]] == [("missing", 2, True)]
    assert not [row for row in told["one"] if row[2]]


def test_an_unreadable_member_of_an_archive_is_told(tmp_path: Path) -> None:
    folder = two_series(tmp_path)
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.dcm")):
            archive.write(path, path.relative_to(folder))
    data = bytearray((tmp_path / "s.zip").read_bytes())
    entry = data.index(b"one/00001.dcm") + len(b"one/00001.dcm")
    data[entry : entry + 40] = bytes([0xFF]) * 40  # what cannot be inflated
    (tmp_path / "s.zip").write_bytes(data)
    assert of_files(tmp_path / "s.zip") == {"one": [("unreadable", 1, True)], "two": []}


def with_values(**values: object) -> Callable[[int, Dataset], None]:
    def change(number: int, one: Dataset) -> None:
        for keyword, value in values.items():
            setattr(one, keyword, value(number) if callable(value) else value)

    return change


def series(tmp_path: Path, change: Callable[[int, Dataset], None], slices: int = 6, modality: str = "CT") -> Series:
    images = make_series(shape=(slices, 6, 5))
    for number, one in enumerate(images):
        one.Modality = modality
        change(number, one)
    write_series(images, tmp_path)
    (made,) = find_instances(tmp_path).series()
    return made


@pytest.mark.parametrize(
    ("values", "modality", "rows"),
    [
        ({}, "CT", []),
        ({"ImagesInAcquisition": 6}, "CT", []),
        ({"ImagesInAcquisition": 5}, "CT", []),  # the number of what was planned: more is no loss
        ({"ImagesInAcquisition": 9}, "CT", [(3, "images")]),
        ({"ImagesInAcquisition": 6, "AcquisitionNumber": lambda n: n // 3}, "CT", []),  # of the series
        ({"ImagesInAcquisition": 3, "AcquisitionNumber": lambda n: n // 3}, "CT", []),
        ({"ImagesInAcquisition": 4, "AcquisitionNumber": lambda n: n // 4}, "CT", [(2, "images")]),
        ({"ImagesInAcquisition": 8, "AcquisitionNumber": lambda n: n // 4}, "CT", [(2, "images")]),
        ({"NumberOfSlices": 8}, "CT", []),  # says nothing outside PET
        ({"NumberOfSlices": 8, "SeriesType": ["STATIC", "IMAGE"]}, "PT", [(2, "images")]),
        ({"NumberOfSlices": 3, "NumberOfTimeSlices": 4, "SeriesType": ["DYNAMIC", "IMAGE"]}, "PT", [(6, "images")]),
        ({"NumberOfSlices": 3, "NumberOfTimeSlices": 2, "SeriesType": ["DYNAMIC", "IMAGE"]}, "PT", []),
        ({"NumberOfTemporalPositions": 3, "TemporalPositionIdentifier": lambda n: n % 2 + 1}, "MR", [(1, "moments")]),
        ({"NumberOfTemporalPositions": 2, "TemporalPositionIdentifier": lambda n: n % 2 + 1}, "MR", []),
        ({"NumberOfTemporalPositions": 3}, "MR", []),  # without identifiers nothing can be counted
        ({"ConcatenationUID": "1.2", "InConcatenationNumber": lambda n: n + 1, "InConcatenationTotalNumber": 7}, "MR",
         [(1, "objects")]),
        ({"NumberOfSeriesRelatedInstances": 8}, "CT", [(2, "objects")]),
        ({"NumberOfSeriesRelatedInstances": 8, "ImagesInAcquisition": 8}, "CT", [(2, "images")]),  # told once
        ({"ImagesInAcquisition": 2**31 - 1}, "CT", [(2**31 - 1 - 6, "images")]),
    ],
)  # fmt: skip
def test_what_headers_announce(
    tmp_path: Path, values: dict[str, object], modality: str, rows: list[tuple[int, str]]
) -> None:
    found = missing(series(tmp_path, with_values(**values), modality=modality))
    assert [(one.count, one.of) for one in found] == rows
    assert all(one.lost and "missing" in one.sentence for one in found)


def test_sentences_count() -> None:
    assert LeftOut("unreadable", 1, "files", "empty file").sentence == "1 file left out: empty file"
    assert LeftOut("announced", 2, "images", "so", here=False).sentence == "2 images missing: so"

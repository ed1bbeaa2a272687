"""What is not in a result is told in it: in result.json, --json and the report; by --strict it is an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.fileset import FileSet

from medseg.dicom.phantom import Box, make_series, write_series
from tests.acceptance.conftest import Medseg, Ran
from tests.acceptance.test_geometry import threshold_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold")


def images(slices: int = 8, **how: int) -> list[Dataset]:
    box = Box((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), 100.0)
    return make_series(shape=(slices, 12, 12), spacing_mm=(2.0, 1.0, 1.0), objects=[box], **how)


def report_of(ran: Ran) -> str:
    """All sentences of the report."""

    def texts(item: Dataset) -> list[str]:
        inner = [text for one in item.get("ContentSequence", []) for text in texts(one)]
        return [*([str(item.TextValue)] if "TextValue" in item else []), *inner]

    return "\n".join(texts(dcmread(ran.records[0]["outputs"]["sr"])))


def unreadable(folder: Path) -> None:
    write_series(images(), folder)
    (folder / "zeros.dcm").write_bytes(bytes(2000))
    (folder / "damaged.dcm").write_bytes((folder / "00003.dcm").read_bytes()[:600])


def broken_link(folder: Path) -> None:
    write_series(images(), folder)
    (folder / "00009.dcm").symlink_to("not/fetched")


def announced(folder: Path) -> None:
    made = images()
    for one in made:
        one.ImagesInAcquisition = 12
    write_series(made, folder)


def medium(folder: Path) -> None:
    disc = FileSet()
    for one in images():
        disc.add(one)
    disc.write(folder)
    max(
        (path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR"), key=lambda path: path.name
    ).unlink()


def split(folder: Path) -> None:
    made = images()
    for one in made[:2]:  # two slices of another orientation, too few for a volume
        one.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    write_series(made, folder)


CASES = [
    pytest.param(unreadable, ["unreadable"], 2, id="files that cannot be read"),
    pytest.param(broken_link, ["unreadable"], 1, id="a link to nothing"),
    pytest.param(announced, ["announced"], 4, id="announced images"),
    pytest.param(medium, ["missing"], 1, id="files of a DICOMDIR"),
    pytest.param(split, ["mixed_orientation"], 2, id="slices of a split series"),
]


@pytest.mark.parametrize(("make", "codes", "count"), CASES)
def test_a_loss_is_told_everywhere(
    medseg: Medseg, bundle: Path, tmp_path: Path, make: Callable[[Path], None], codes: list[str], count: int
) -> None:
    make(tmp_path / "study")
    ran = medseg("infer", "study", "--bundle", bundle, "--json")
    assert ran.code == 0
    record = next(record for record in ran.records if "outputs" in record)
    lost = [row for row in record["left_out"] if row["lost"]]
    assert {row["code"] for row in lost} == set(codes)
    assert sum(row["count"] for row in lost) == count
    flags = [flag["message"] for flag in record["flags"] if flag["code"] == "left_out"]
    assert len(flags) == len(lost)
    report = report_of(Ran(0, json.dumps(record), ""))
    assert all(flag in report for flag in flags)
    kept = Path(record["outputs"]["seg"]).with_name("result.json")
    assert json.loads(kept.read_text("utf-8"))["left_out"] == record["left_out"]
    assert "up to date" in medseg("infer", "study", "--bundle", bundle).out

    strict = medseg("infer", "study", "--bundle", bundle, "--json", "--strict", "-o", "strict")
    assert strict.code == 3
    assert not (tmp_path / "strict").exists()
    errors = [record for record in strict.records if record["error"]["code"] == "incomplete"]
    assert len(errors) == 1
    assert flags[0] in errors[0]["error"]["message"]
    assert [row for row in errors[0]["left_out"] if row["lost"]] == lost


def test_a_whole_series_is_told_as_before(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    write_series(images(), tmp_path / "study")
    ran = medseg("infer", "study", "--bundle", bundle, "--json", "--strict")
    assert ran.code == 0
    assert ran.records[0]["left_out"] == []
    assert not [flag for flag in ran.records[0]["flags"] if flag["code"] == "left_out"]


def test_what_is_no_image_is_no_loss(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    made = images()
    localizer, screen = images(seed=3)[:2]
    for one in (localizer, screen):
        one.StudyInstanceUID, one.SeriesInstanceUID = made[0].StudyInstanceUID, made[0].SeriesInstanceUID
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    screen.SOPClassUID = screen.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    del screen.ImageOrientationPatient
    write_series([*made, localizer, screen], tmp_path / "study")
    (tmp_path / "study" / "notes.txt").write_text("scanned twice")
    ran = medseg("infer", "study", "--bundle", bundle, "--json", "--strict")
    assert ran.code == 0
    record = next(record for record in ran.records if "outputs" in record)
    assert {(row["code"], row["count"], row["lost"]) for row in record["left_out"]} == {
        ("localizer", 1, False),
        ("not_an_image", 1, False),
        ("unreadable", 1, False),
    }
    assert not [flag for flag in record["flags"] if flag["code"] == "left_out"]


def test_strict_fails_what_lost_something_and_does_the_rest(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    write_series(images(seed=1), tmp_path / "cohort" / "whole")
    unreadable(tmp_path / "cohort" / "torn")
    ran = medseg("infer", "cohort", "--bundle", bundle, "--json", "--strict")
    assert ran.code == 1
    assert [record["error"]["code"] for record in ran.records if "error" in record] == ["incomplete"]
    assert len([record for record in ran.records if "outputs" in record]) == 1


def test_strict_fails_a_series_that_forms_no_volume(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    write_series(images(seed=1), tmp_path / "study" / "whole")
    gap = images(seed=2)
    write_series([*gap[:3], *gap[6:]], tmp_path / "study" / "gap")
    assert medseg("infer", "study", "--bundle", bundle, "--jobs", 1).code == 0
    assert medseg("infer", "study", "--bundle", bundle, "--strict", "--jobs", 1).code == 1


def test_a_loss_beside_a_series_that_no_bundle_fits_is_one_of_the_input(
    medseg: Medseg, spleen: Path, tmp_path: Path
) -> None:
    write_series(images(seed=1), tmp_path / "study" / "ct")
    write_series(make_series(shape=(8, 12, 12), modality="MR", seed=2), tmp_path / "study" / "mr")
    (tmp_path / "study" / "mr" / "torn.dcm").write_bytes(bytes(500))
    ran = medseg("infer", "study", "--bundle", spleen, "--json", "--strict", "--jobs", 1)
    assert ran.code == 1
    assert len([record for record in ran.records if "outputs" in record]) == 1
    assert "1 file left out: not a DICOM file" in ran.err


def test_a_loss_makes_it_another_result(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    """A report that says more has a UID of its own, and never takes the place of another unasked."""
    write_series(images(), tmp_path / "study")
    before = medseg("infer", "study", "--bundle", bundle, "--json").records[0]
    (tmp_path / "study" / "torn.dcm").write_bytes(bytes(500))
    assert medseg("infer", "study", "--bundle", bundle).code == 2
    after = medseg("infer", "study", "--bundle", bundle, "--json", "--overwrite").records[0]
    assert before["sop_instance_uids"]["sr"] != after["sop_instance_uids"]["sr"]
    assert before["segments"] == after["segments"]

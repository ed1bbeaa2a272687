"""Several series as one input, as a person meets them, on phantoms and real studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg.dicom.phantom import make_series, write_series
from tests.acceptance.conftest import Medseg
from tests.medseg.bundle import zoo

T1: dict[str, Any] = {"name": "T1", "any": [{"SeriesDescription": "*t1*"}]}
FLAIR: dict[str, Any] = {"name": "FLAIR", "any": [{"SeriesDescription": "*flair*"}]}


def series(folder: Path, description: str, number: int, **made: Any) -> str:
    some = make_series(shape=(10, 24, 24), modality="MR", background=10.0, description=description, number=number)
    for dataset in some:
        for keyword, value in made.items():
            setattr(dataset, keyword, value)
    write_series(some, folder / str(number))
    return str(some[0].SeriesInstanceUID)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.brats_like(tmp_path_factory.mktemp("bundle") / "two", [T1, FLAIR], own=True)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for number, name in enumerate(("localizer", "t1", "t2_flair"), 1):
        series(tmp_path / "study", name, number)
    return tmp_path / "study"


def test_a_line_for_each_channel_and_one_result(medseg: Medseg, bundle: Path, study: Path) -> None:
    ran = medseg("infer", study, "--bundle", bundle)
    assert ran.code == 0
    lines = [line for line in ran.err.splitlines() if line.startswith("channel ")]
    assert [line.split(" (")[0] for line in lines] == [
        'channel T1: series 2 "t1"',
        'channel FLAIR: series 3 "t2_flair"',
    ]
    assert {path.name for path in (study.parent / "study-medseg").iterdir()} == {"2_two"}


def test_inspect_gives_the_reasons(medseg: Medseg, bundle: Path, study: Path) -> None:
    ran = medseg("inspect", study, "--bundle", bundle)
    assert ran.code == 0
    assert 'not series 1 "localizer": SeriesDescription localizer, expected *flair*' in ran.out
    (record,) = medseg("inspect", study, "--bundle", bundle, "--json").records
    assert [one["name"] for one in record["channels"]] == ["T1", "FLAIR"]
    assert [one["fits"] for one in record["channels"][1]["series"]] == [False, False, True]
    assert record["error"] is None


def test_two_that_fit_are_asked_for(medseg: Medseg, bundle: Path, study: Path) -> None:
    uid = series(study, "t1 again", 9)
    ran = medseg("infer", study, "--bundle", bundle, "--json")
    assert ran.code == 3
    (record,) = ran.records
    assert record["error"]["code"] == "channels_missing"
    assert [len(one["series_uids"]) for one in record["error"]["channels"]] == [2, 1]
    assert "2 fit T1" in ran.error and "--channel NAME=UID" in ran.error
    assert not (study.parent / "study-medseg").exists()
    assert medseg("inspect", study, "--bundle", bundle).code == 3
    named = medseg("infer", study, "--bundle", bundle, "--channel", f"T1={uid}", "--json")
    assert named.code == 0
    assert named.records[0]["channels"]["T1"]["series_uid"] == uid


def test_a_channel_may_lie_in_a_folder_of_its_own(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    series(tmp_path / "study", "t1", 1)
    uid = series(tmp_path / "else", "whatever", 7)
    ran = medseg("infer", "study", "--bundle", bundle, "--channel", "flair=else", "--json")
    assert ran.code == 0
    assert ran.records[0]["channels"]["FLAIR"]["series_uid"] == uid


def test_another_study_is_refused(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    series(tmp_path / "study", "t1", 1)
    series(tmp_path / "else", "flair", 7, StudyInstanceUID="2.25.9")
    ran = medseg("infer", "study", "--bundle", bundle, "--channel", "FLAIR=else", "--json")
    assert ran.code == 3
    assert ran.records[0]["error"]["code"] == "channel_other_study"
    assert not (tmp_path / "study-medseg").exists()


def test_a_frame_that_is_another(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    series(tmp_path / "study", "t1", 1)
    series(tmp_path / "study", "flair", 7, FrameOfReferenceUID="2.25.9")
    ran = medseg("infer", "study", "--bundle", bundle)
    assert ran.code == 3
    assert "--assume-registered" in ran.error
    ran = medseg("infer", "study", "--bundle", bundle, "--assume-registered", "--json")
    assert ran.code == 0
    assert "registration_assumed" in [flag["code"] for flag in ran.records[0]["flags"]]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--channel", "T2=1.2.3"], 2, "T1, FLAIR"),
        (["--channel", "T1"], 2, "NAME=UID"),
        (["--channel", "T1=1.2.3", "--channel", "t1=1.2.4"], 2, "twice"),
        (["--channel", "T1=1.2.3"], 3, "no series 1.2.3"),
        (["--series", "1.2.3"], 2, "--channel"),
    ],
)
def test_what_is_named_wrong(
    arguments: list[str], code: int, says: str, medseg: Medseg, bundle: Path, study: Path
) -> None:
    ran = medseg("infer", study, "--bundle", bundle, *arguments)
    assert ran.code == code
    assert says in ran.error


def test_channels_go_with_a_bundle_of_several(medseg: Medseg, spleen: Path, study: Path) -> None:
    assert medseg("infer", study, "--channel", "T1=1.2.3").code == 2
    assert medseg("infer", study, "--bundle", spleen, "--channel", "T1=1.2.3").code == 2
    assert medseg("infer").code == 2


def test_files_by_name(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        array = rng.integers(0, 500, (24, 24, 10)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
    ran = medseg("infer", "--bundle", bundle, "--channel", "T1=a.nii.gz", "--channel", "FLAIR=b.nii.gz", "--json")
    assert ran.code == 0
    assert (tmp_path / "a-medseg").is_dir()
    ran_again = medseg("infer", "a.nii.gz", "--bundle", bundle, "--channel", "FLAIR=b.nii.gz", "--json", "-o", "x")
    assert ran_again.records[0]["result_key"] == ran.records[0]["result_key"]

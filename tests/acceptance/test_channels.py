"""Several series as one input, as a person meets them, on phantoms and real studies."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import Dataset

from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import make_series, volume_to_series, write_series
from medseg.dicom.series import Stack
from medseg.dicom.sources import read_series
from medseg.job.plan import plan
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


# --- real studies ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    def unpack(name: str) -> Path:
        archive = shared_data / f"dicom_vendors/{name}.zip"
        if not archive.is_file():
            pytest.skip(f"{name} is not here")
        folder = tmp_path_factory.mktemp("study")
        with zipfile.ZipFile(archive) as files:
            files.extractall(folder)
        return folder

    return unpack


def chosen(study: Path, folder: Path, channels: list[dict[str, Any]], **more: Any) -> Stack:
    zoo.brats_like(folder, channels, own=True)
    bundle = load_bundle(zoo.rewrite(folder, lambda content: content["medseg"].update(more), "metadata.json"))
    found = plan(read_series(study), [bundle], explicit=True)
    assert not found.refused, str(found.refused[0].error)
    return found.jobs[0].stack


def phases(stack: Stack) -> list[tuple[int | None, str]]:
    return [(one.stack.series.number, one.stack.phase) for one in stack.channels if one.stack is not None]


def test_t2_adc_and_the_highest_b_value_of_a_prostate(unpacked: Any, tmp_path: Path) -> None:
    channels = [
        {"name": "T2", "modality": "MR", "any": [{"SeriesDescription": "*t2*"}]},
        {"name": "ADC", "modality": "MR", "any": [{"ImageType": "ADC"}]},
        {  # the ADC map names a b-value, too
            "name": "DWI",
            "modality": "MR",
            "any": [{"DiffusionBValue": [400, None], "not": {"ImageType": "ADC"}}],
            "phase": "DiffusionBValue=max",
        },
    ]
    found = chosen(unpacked("prostate_ProstateX-0000"), tmp_path / "bundle", channels, coverage=0.85)
    assert phases(found) == [(4, ""), (7, ""), (6, "B_value=800")]
    assert [round(one.overlap, 2) for one in found.channels] == [1.0, 0.86, 0.86]
    assert [one.code for one in found.findings].count("channel_covers_part") == 2


def test_phases_of_one_series_of_a_breast(unpacked: Any, tmp_path: Path) -> None:
    channels = [
        {"name": name, "modality": "MR", "any": [{"SeriesDescription": "*FGRE*"}], "phase": phase}
        for name, phase in (("before", "first"), ("early", "2"), ("late", "last"))
    ]
    found = chosen(unpacked("breast_dce_UCSF-BR-06"), tmp_path / "bundle", channels)
    assert [phase for _, phase in phases(found)] == [
        "AcquisitionNumber=1",
        "AcquisitionNumber=2, ContentTime 1 of 2",
        "AcquisitionNumber=2, ContentTime 2 of 2",
    ]
    assert all(one.matrix is None for one in found.channels)


def test_pet_and_ct_of_a_sarcoma(unpacked: Any, shared_data: Path, tmp_path: Path) -> None:
    """The SUV is what others published of this very series."""
    channels = [{"name": "CT", "modality": "CT"}, {"name": "PET", "modality": "PT"}]
    found = chosen(unpacked("sarcoma_STS_002_ct_pet_mr_rtstruct"), tmp_path / "bundle", channels)
    assert [number for number, _ in phases(found)] == [3, 4]
    with (shared_data / "labelled_pathology/sts_petct/cases.csv").open() as lines:
        published = next(row for row in csv.DictReader(lines) if row["case"] == "STS_002")
    pet = found.channels[1].stack
    assert pet is not None
    suv = np.stack([one.read() for one in pet.slices])
    assert suv.max() == pytest.approx(float(published["suv_max"]), rel=1e-3)
    image = nibabel.load(shared_data / "labelled_pathology/sts_petct/STS_002/pet.nii.gz")
    expected = np.asarray(image.dataobj, np.float32)
    assert expected.shape == suv.shape[::-1]
    alike = [np.abs(suv - turned).max() for turned in (expected.T, expected.T[:, ::-1], expected.T[:, :, ::-1])]
    assert min(alike) < 0.002  # they are rounded to 0.001


def test_glioma_in_three_sequences(shared_data: Path, medseg: Medseg, tmp_path: Path) -> None:
    folder = shared_data / "labelled_pathology/glioma_four_mr/TCGA-FG-6692"
    files = {name: next(iter(sorted(folder.glob(f"*{name}.nii.gz"))), None) for name in ("flair", "t1", "t1c")}
    if None in files.values():
        pytest.skip("the glioma case is not here")
    for number, (name, file) in enumerate(files.items(), 1):
        image = nibabel.load(file)
        affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)[:, [2, 1, 0, 3]]
        array = np.clip(np.asarray(image.dataobj, np.float32).T[60:72, 80:130, 90:130], 0, None)
        affine[:3, 3] += affine[:3, :3] @ (60, 80, 90)
        some: list[Dataset] = volume_to_series(array, affine, "MR", f"ax {name}", number=number)
        write_series(some, tmp_path / "study" / name)
    bundle = zoo.brats_like(tmp_path / "bundle")
    record = json.loads(medseg("infer", "study", "--bundle", bundle, "--json").out)
    uids = {one.description: one.series_uid for one in read_series(tmp_path / "study")}
    assert {name: one["series_uid"] for name, one in record["channels"].items()} == {
        "T1": uids["ax t1"],
        "T1c": uids["ax t1c"],
        "FLAIR": uids["ax flair"],
    }

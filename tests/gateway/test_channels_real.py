"""Real studies through the gateway: the right channels by themselves, in any order, and the same result as by hand."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from medseg.dicom.phantom import volume_to_series
from tests.gateway.spooling import Inbox, inbox
from tests.gateway.test_channels import Room, by_hand, rule, seg_of, uid
from tests.medseg.bundle import zoo

PET_CT: list[dict[str, Any]] = [{"name": "CT", "modality": "CT"}, {"name": "PET", "modality": "PT"}]
PROSTATE: list[dict[str, Any]] = [
    {"name": "T2", "modality": "MR", "any": [{"SeriesDescription": "*t2*"}]},
    {"name": "ADC", "modality": "MR", "any": [{"ImageType": "ADC"}]},
    {
        "name": "DWI",
        "modality": "MR",
        "any": [{"DiffusionBValue": [400, None], "not": {"ImageType": "ADC"}}],
        "phase": "DiffusionBValue=max",
    },
]
PHASES: list[dict[str, Any]] = [
    {"name": name, "modality": "MR", "any": [{"SeriesDescription": "*FGRE*"}], "phase": phase}
    for name, phase in (("before", "first"), ("early", "2"), ("late", "last"))
]
Study = list[list[Dataset]]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Inbox]:
    with inbox(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def study_of(shared_data: Path) -> Callable[[str], Study]:
    """The series of an archive, as they were sent, by their number."""

    def read(name: str) -> Study:
        archive = shared_data / f"dicom_vendors/{name}.zip"
        if not archive.is_file():
            pytest.skip(f"{name} is not here")
        series: dict[tuple[int, str], list[Dataset]] = {}
        with zipfile.ZipFile(archive) as files:
            for one in files.namelist():
                if not one.endswith("/"):
                    with files.open(one) as stream:
                        dataset = dcmread(stream, force=True)
                    if "PixelData" not in dataset:
                        continue
                    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # as the inbox takes it in
                    key = int(dataset.get("SeriesNumber") or 0), str(dataset.get("SeriesInstanceUID"))
                    series.setdefault(key, []).append(dataset)
        return [series[key] for key in sorted(series)]

    return read


def chosen(here: Room, number_of: dict[str, int]) -> dict[str, int]:
    """The number of the series of each channel of the last job."""
    return {name: number_of[series_uid] for name, series_uid in here.channels(here.jobs[-1].id).items()}


def numbers(study: Sequence[list[Dataset]]) -> dict[str, int]:
    return {uid(some): int(some[0].SeriesNumber) for some in study}


def is_as_by_hand(here: Room, study: Study, bundle: Path, folder: Path) -> None:
    result = here.box.rows("result")[-1]
    key, theirs = by_hand(study, bundle, folder)
    assert result.result_key == key
    assert np.array_equal(seg_of(here.box, result.id)[0].pixel_array, theirs.pixel_array)


@pytest.mark.slow
def test_pet_and_ct_of_a_sarcoma_the_pet_missing_at_first(
    study_of: Callable[[str], Study], box: Inbox, tmp_path: Path
) -> None:
    study = study_of("sarcoma_STS_002_ct_pet_mr_rtstruct")
    ct, pet, mr = study
    bundle = zoo.brats_like(tmp_path / "petct", PET_CT)
    here = Room(box, tmp_path, rule(bundle).replace('"MR"', '["CT", "PT", "MR"]'))
    here.send(mr, ct)
    here.look(100)
    assert here.states == ["held"] and "nothing fits PET" in here.jobs[0].error
    here.send(pet)
    assert here.states == ["queued"] and chosen(here, numbers(study)) == {"CT": 3, "PET": 4}
    here.work()
    is_as_by_hand(here, study, bundle, tmp_path / "hand")


@pytest.mark.slow
def test_phases_of_one_series_of_a_breast(study_of: Callable[[str], Study], box: Inbox, tmp_path: Path) -> None:
    study = study_of("breast_dce_UCSF-BR-06")
    bundle = zoo.brats_like(tmp_path / "dce", PHASES)
    here = Room(box, tmp_path, rule(bundle))
    here.send(*study)
    assert {row.volume for row in box.rows("job_channel")} == {1, 2, 3}
    here.work()
    is_as_by_hand(here, study, bundle, tmp_path / "hand")


@pytest.mark.slow
def test_t2_adc_and_a_b_value_of_a_prostate_one_image_late(
    study_of: Callable[[str], Study], box: Inbox, tmp_path: Path
) -> None:
    study = study_of("prostate_ProstateX-0000")
    t2, dwi, adc = study
    t2.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    folder = zoo.brats_like(tmp_path / "prostate", PROSTATE)
    bundle = zoo.rewrite(folder, lambda content: content["medseg"].update(coverage=0.8), "metadata.json")
    here = Room(box, tmp_path, rule(bundle))
    here.send(adc, t2[:-1], dwi)
    assert chosen(here, numbers(study)) == {"T2": 4, "ADC": 7, "DWI": 6}
    here.work()
    here.send(t2[-1:])
    here.work()
    first, second = box.rows("result")
    assert second.predecessor_id == first.id
    is_as_by_hand(here, study, bundle, tmp_path / "hand")


@pytest.fixture(scope="module")
def glioma(shared_data: Path) -> Study:
    """A case in three sequences as DICOM series, every eighth row and column."""
    jpeg_ls = pytest.importorskip("jpeg_ls")
    file = shared_data / "labelled/lgg_glioma_mr3/cases/TCGA_CS_4942_19970222.npz"
    if not file.is_file():
        pytest.skip("the glioma cases are not here")
    study = []
    with np.load(file) as case:
        for number, name in enumerate(("t1", "flair", "t1ce"), 1):
            frames = np.split(case[name], np.cumsum(case[f"{name}_bytes"])[:-1])
            array = np.stack([jpeg_ls.decode(np.ascontiguousarray(one))[::8, ::8] for one in frames]).astype(np.float32)
            affine = np.array([[0.0, 0, 8, 0], [0, 8, 0, 0], [5, 0, 0, 0], [0, 0, 0, 1]])
            study.append(volume_to_series(array, affine, "MR", f"ax {name}", number=number))
    return study


@pytest.mark.slow
def test_glioma_in_three_sequences_one_of_them_twice(glioma: Study, box: Inbox, tmp_path: Path) -> None:
    words = [("T1", "*t1"), ("T1c", "*t1ce"), ("FLAIR", "*flair*")]
    bundle = zoo.brats_like(
        tmp_path / "glioma",
        [{"name": name, "modality": "MR", "any": [{"SeriesDescription": word}]} for name, word in words],
        own=True,
    )
    here = Room(box, tmp_path, rule(bundle))
    t1, flair, t1ce = glioma
    again = deepcopy(flair)
    for k, one in enumerate(again):
        one.SeriesInstanceUID, one.SeriesNumber, one.SOPInstanceUID = "2.25.77", 9, f"2.25.77.{k}"
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    here.send(flair, again, t1ce, t1)
    here.look(100)
    assert here.states == ["held"] and "2 fit FLAIR (series 2" in here.jobs[0].error
    here.release("--channel", f"FLAIR={uid(flair)}")
    here.look()
    assert chosen(here, numbers(glioma)) == {"T1": 1, "FLAIR": 2, "T1c": 3}
    here.work()
    is_as_by_hand(here, glioma, bundle, tmp_path / "hand")

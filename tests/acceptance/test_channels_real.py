"""Real studies of several series through `medseg infer`, from files to the segmentation object.

The oracle has its own way: slices laid on the reference's grid by scipy, MONAI's transforms, windows and inversion.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.misc import is_dicom
from scipy import ndimage

from medseg.bundle.load import load_bundle
from medseg.dicom.headers import look
from medseg.dicom.phantom import make_affine, volume_to_series, write_series
from medseg.dicom.series import Stack
from medseg.dicom.sources import read_series
from medseg.dicom.suv import suv_factor
from medseg.job.plan import plan
from tests.acceptance.conftest import Medseg
from tests.medseg.bundle import zoo
from tests.medseg.by_monai import labels_by_monai


def on(target: str, keys: Any = "image", **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": keys, **arguments}


PERCENTILES = on("ScaleIntensityRangePercentilesd", lower=1, upper=99, b_min=0, b_max=1, clip=True, channel_wise=True)


@dataclass(frozen=True)
class Study:
    """archive: of real DICOM; none where it is made. found: number and phase of the series that is each channel."""

    archive: str
    channels: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    found: list[tuple[int, str]]
    says: dict[str, Any] = field(default_factory=dict)


STUDIES = {
    "PET and CT of a sarcoma": Study(
        "sarcoma_STS_002_ct_pet_mr_rtstruct",
        [{"name": "CT", "modality": "CT"}, {"name": "PET", "modality": "PT"}],
        [
            on("Orientationd", ["ct", "pet"], axcodes="RAS"),
            on("Spacingd", ["ct", "pet"], pixdim=[3.0, 3.0, 4.0]),
            on("ScaleIntensityRanged", "ct", a_min=-200, a_max=200, b_min=0, b_max=1, clip=True),
            on("NormalizeIntensityd", "pet"),
            on("ConcatItemsd", ["ct", "pet"], name="image"),
        ],
        [(3, ""), (4, "")],
    ),
    "three sequences of a glioma": Study(
        "",
        [{"name": name, "any": [{"SeriesDescription": f"* {name.lower()}"}]} for name in ("T1", "FLAIR", "T1ce")],
        [on("NormalizeIntensityd", nonzero=True, channel_wise=True)],
        [(1, ""), (2, ""), (3, "")],
        {"reference": "FLAIR"},
    ),
    "phases of a breast": Study(
        "breast_dce_UCSF-BR-06",
        [
            {"name": name, "modality": "MR", "any": [{"SeriesDescription": "*FGRE*"}], "phase": phase}
            for name, phase in (("before", "first"), ("early", "2"), ("late", "last"))
        ],
        [PERCENTILES, on("Spacingd", pixdim=[3.0, 3.0, 4.0])],
        [
            (2, "AcquisitionNumber=1"),
            (2, "AcquisitionNumber=2, ContentTime 1 of 2"),
            (2, "AcquisitionNumber=2, ContentTime 2 of 2"),
        ],
    ),
    "T2, ADC and the highest b-value of a prostate": Study(
        "prostate_ProstateX-0000",
        [
            {"name": "T2", "modality": "MR", "any": [{"SeriesDescription": "*t2*"}]},
            {"name": "ADC", "modality": "MR", "any": [{"ImageType": "ADC"}]},
            {  # the ADC map names a b-value, too
                "name": "DWI",
                "modality": "MR",
                "any": [{"DiffusionBValue": [400, None], "not": {"ImageType": "ADC"}}],
                "phase": "DiffusionBValue=max",
            },
        ],
        [on("Spacingd", pixdim=[2.0, 2.0, 3.0]), on("NormalizeIntensityd", channel_wise=True)],
        [(4, ""), (7, ""), (6, "B_value=800")],
        {"coverage": 0.85},
    ),
}


@pytest.fixture
def unpacked(shared_data: Path, tmp_path: Path) -> Callable[[Study], Path]:
    def unpack(study: Study) -> Path:
        if not study.archive:
            return glioma(shared_data / "labelled/lgg_glioma_mr3/cases/TCGA_CS_4941_19960909.npz", tmp_path / "study")
        archive = shared_data / f"dicom_vendors/{study.archive}.zip"
        if not archive.is_file():
            pytest.skip(f"{study.archive} is not here")
        with zipfile.ZipFile(archive) as files:
            files.extractall(tmp_path / "study")
        return tmp_path / "study"

    return unpack


def glioma(case: Path, folder: Path) -> Path:
    """The middle of a case as a study. Its voxels' size is not published; T1 is given twice as large voxels."""
    jpeg_ls = pytest.importorskip("jpeg_ls")
    if not case.is_file():
        pytest.skip("the glioma case is not here")
    with np.load(case) as found:
        for number, name in enumerate(("t1", "flair", "t1ce"), 1):
            frames = np.split(found[name], np.cumsum(found[f"{name}_bytes"])[:-1])
            array = np.stack([jpeg_ls.decode(np.ascontiguousarray(frame)) for frame in frames])[:, 64:192, 64:192]
            step = 2 if name == "t1" else 1
            n, rows, columns = array.shape
            array = array.reshape(n, rows // step, step, columns // step, step).mean(axis=(2, 4))
            affine = make_affine("axial", (5.0, 0.94 * step, 0.94 * step), array.shape)
            write_series(volume_to_series(array, affine, "MR", f"ax {name}", number=number), folder / name)
    return folder


def by_scipy(stack: Stack) -> NDArray[np.float32]:
    """(C, k, j, i): every channel where the slices of the reference lie."""
    grid = np.indices(stack.shape).reshape(3, -1)
    made = []
    for channel in stack.channels:
        assert channel.stack is not None
        voxels = np.stack([one.read() for one in channel.stack.slices])
        if channel.matrix is None:
            made.append(voxels)
            continue
        there = np.linalg.inv(channel.stack.affine) @ stack.affine
        places = there[:3, :3] @ grid + there[:3, 3:]
        values = ndimage.map_coordinates(voxels.astype(np.float64), places, order=1, mode="nearest")
        ends = np.array(voxels.shape)[:, None] - 0.5
        outside = ((places < -0.501) | (places > ends + 1e-3)).any(axis=0)
        values[outside] = 0.0
        made.append(values.reshape(stack.shape).astype(np.float32))
    return np.stack(made)


def in_the_object(seg: Path, stack: Stack) -> NDArray[np.uint8]:
    """(segments, k, j, i) as another library reads them, slice by slice of the reference."""
    uids = [str(one.instance.sop_instance_uid) for one in stack.slices if one.instance is not None]
    found = highdicom.seg.segread(seg)
    assert {str(uid) for _, _, uid in found.get_source_image_uids()} <= set(uids)
    planes = found.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    return np.moveaxis(planes, -1, 0).astype(np.uint8)


QUICK = ("PET and CT of a sarcoma", "T2, ADC and the highest b-value of a prostate")


@pytest.mark.parametrize(
    "study",
    [pytest.param(study, marks=() if name in QUICK else pytest.mark.slow, id=name) for name, study in STUDIES.items()],
)
def test_a_study_from_files_to_labels(
    study: Study, medseg: Medseg, unpacked: Callable[[Study], Path], tmp_path: Path
) -> None:
    """The right series are chosen, and labels are MONAI's on the reference's slices."""
    where = zoo.brats_like(tmp_path / "bundle", study.channels, own=True)
    keys = next((step["keys"] for step in study.steps if step["_target_"] == "ConcatItemsd"), ["image"])

    def change(content: dict[str, Any]) -> None:
        content["preprocessing"]["transforms"] = study.steps
        next(one for one in content["postprocessing"]["transforms"] if "orig_keys" in one)["orig_keys"] = keys[0]

    zoo.rewrite(where, change)
    bundle = load_bundle(zoo.rewrite(where, lambda content: content["medseg"].update(study.says), "metadata.json"))
    folder = unpacked(study)
    (record,) = medseg("infer", folder, "--bundle", where, "--json", "-o", "out").records
    stack = plan(read_series(folder), [bundle], explicit=True).jobs[0].stack
    assert [(one.stack.series.number, one.stack.phase) for one in stack.channels if one.stack] == study.found
    series = {one.series_uid: one.number for one in read_series(folder)}
    told = [(series[one["series_uid"]], one["phase"]) for one in record["channels"].values()]
    assert told == study.found
    assert "registration_doubtful" not in [flag["code"] for flag in record["flags"]]
    labels = in_the_object(next((tmp_path / "out").rglob("seg.dcm")), stack)
    expected = labels_by_monai(by_scipy(stack), stack, bundle).swapaxes(0, 1)
    assert 0.01 < expected.mean() < 0.99
    assert (labels == expected).mean() >= 0.9999


def test_a_channel_that_has_moved_is_doubted(medseg: Medseg, unpacked: Callable[[Study], Path], tmp_path: Path) -> None:
    """The ADC map of a prostate, 10 mm aside: in the result, and in the report."""
    study = STUDIES["T2, ADC and the highest b-value of a prostate"]
    where = zoo.brats_like(tmp_path / "bundle", study.channels[:2], own=True)
    zoo.rewrite(where, lambda content: content["preprocessing"]["transforms"][0].update(pixdim=[6.0, 6.0, 6.0]))
    zoo.rewrite(where, lambda content: content["medseg"].update(coverage=0.75), "metadata.json")
    folder = unpacked(study)
    for path in folder.rglob("*"):
        if path.is_file() and is_dicom(path) and "ADC" in (image := dcmread(path)).ImageType:
            image.ImagePositionPatient[0] += 10.0
            image.save_as(path)
    (record,) = medseg("infer", folder, "--bundle", where, "--json", "-o", "out").records
    (flag,) = [flag for flag in record["flags"] if flag["code"] == "registration_doubtful"]
    assert "channel ADC may not lie on channel T2" in flag["message"]
    report = dcmread(next((tmp_path / "out").rglob("sr.dcm")))
    told = [str(element.value) for element in report.iterall() if element.keyword == "TextValue"]
    assert any(flag["message"] in text for text in told)


# --- SUV ---------------------------------------------------------------------------------------------------------


def by_the_profile(image: Dataset) -> float:
    """From modality values to SUVbw, as the vendor-neutral pseudo-code of QIBA's FDG-PET/CT profile computes it."""
    corrected, (drug,) = list(image.CorrectedImage), image.RadiopharmaceuticalInformationSequence
    assert "ATTN" in corrected and "DECY" in corrected
    if image.Units == "GML":
        return 1.0
    assert image.Units == "BQML"
    dose, half_life_s = float(drug.RadionuclideTotalDose), float(drug.RadionuclideHalfLife)
    if image.DecayCorrection == "START":
        assert image.SeriesDate == image.AcquisitionDate and image.SeriesTime <= image.AcquisitionTime
        decay_s = seconds(image.SeriesTime) - seconds(drug.RadiopharmaceuticalStartTime)
        dose *= 2 ** (-decay_s / half_life_s)
    return float(image.PatientWeight) * 1000 / dose


def seconds(time: str) -> float:
    return 3600 * int(time[:2]) + 60 * int(time[2:4]) + float(time[4:])


def becquerels(image: Dataset, correction: str) -> None:
    """A real image in g/ml as it would be in Bq/ml; its moments are of different days, so that of day alone is left."""
    (drug,) = image.RadiopharmaceuticalInformationSequence
    del drug.RadiopharmaceuticalStartDateTime
    image.Units, image.DecayCorrection = "BQML", correction
    image.RescaleSlope = f"{float(image.RescaleSlope) / by_the_profile(image):.10g}"


@pytest.mark.parametrize("correction", ["", "ADMIN", "START"], ids=["g/ml", "Bq/ml", "Bq/ml at the scan's start"])
def test_pet_is_suv_within_a_thousandth(
    correction: str, shared_data: Path, unpacked: Callable[[Study], Path], tmp_path: Path
) -> None:
    """A scale for each slice, and what others published of this very series."""
    study = STUDIES["PET and CT of a sarcoma"]
    folder = unpacked(study)
    images = [(path, dcmread(path)) for path in folder.rglob("*") if path.is_file() and is_dicom(path)]
    pets = [(path, image) for path, image in images if image.Modality == "PT"]
    assert len({float(image.RescaleSlope) for _, image in pets}) == 48
    for path, image in pets if correction else []:
        becquerels(image, correction)
        image.save_as(path)
    bundle = load_bundle(zoo.brats_like(tmp_path / "bundle", study.channels, own=True))
    found = plan(read_series(folder), [bundle], explicit=True).jobs[0].stack.channels[1].stack
    assert found is not None
    suv = np.stack([one.read() for one in found.slices])
    pets.sort(key=lambda pair: float(pair[1].ImagePositionPatient[2]))
    expected = [one.pixel_array * float(one.RescaleSlope) * by_the_profile(one) for _, one in pets]
    np.testing.assert_allclose(suv, np.stack(expected), rtol=1e-3)
    published = nibabel.load(shared_data / "labelled_pathology/sts_petct/STS_002/pet.nii.gz")
    there = np.asarray(published.dataobj, np.float32)
    alike = [np.abs(suv - turned).max() for turned in (there.T, there.T[:, ::-1], there.T[:, :, ::-1])]
    assert min(alike) < 0.002  # they are rounded to 0.001


def test_suv_of_a_scanner_in_becquerels(shared_data: Path) -> None:
    archive = shared_data / "dicom_vendors/fodicom_us_pt_bruker.zip"
    if not archive.is_file():
        pytest.skip("the images are not here")
    with zipfile.ZipFile(archive) as files:
        image = dcmread(io.BytesIO(files.read("GH184.dcm")))
    assert (image.Units, image.DecayCorrection, image.Modality) == ("BQML", "START", "PT")
    assert suv_factor([look(image)]) == pytest.approx(by_the_profile(image), rel=1e-3)

"""Several series of a study through a bundle of several channels: chosen, laid on one grid, segmented, told of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from medseg.bundle.bundle import Bundle
from medseg.bundle.channels import Registration
from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import Ellipsoid, make_affine, make_series, volume_to_series, write_series
from medseg.dicom.series import Series, Stack, StackSource
from medseg.dicom.sources import read_series
from medseg.errors import MedsegError
from medseg.inference.segment import segment
from medseg.job.channels import stack_of_channels, study_of
from medseg.job.folder import Format
from medseg.job.plan import StudyPlan, plan, plan_nifti
from medseg.job.run import run
from tests.medseg.bundle import zoo
from tests.medseg.by_monai import labels_by_monai
from tests.medseg.inference.phantoms import Collected
from tests.medseg.nnunet_folders import copied

T1C: dict[str, Any] = {
    "name": "T1c",
    "modality": "MR",
    "any": [{"SeriesDescription": "*t1*", "ContrastBolusAgent": "present"}],
}
T1: dict[str, Any] = {
    "name": "T1",
    "modality": "MR",
    "any": [{"SeriesDescription": "*t1*", "not": {"ContrastBolusAgent": "present"}}],
}
FLAIR: dict[str, Any] = {"name": "FLAIR", "modality": "MR", "any": [{"SeriesDescription": "*flair*"}]}
HEAD = (Ellipsoid((0, 0, 0), (15, 12, 10), 500.0), Ellipsoid((4, -3, 2), (6, 6, 5), 900.0))
GD = {"ContrastBolusAgent": "Gadovist"}


def datasets(description: str, number: int, says: dict[str, Any] | None = None, **made: Any) -> list[Dataset]:
    found = make_series(
        **{"spacing_mm": (2.0, 1.0, 1.0), "shape": (16, 40, 36)} | made,
        objects=[replace(one, value=one.value - 40.0 * number) for one in HEAD],
        modality=made.pop("modality", "MR"),
        background=30.0,
        description=description,
        number=number,
    )
    for dataset in found:
        for keyword, value in (says or {}).items():
            setattr(dataset, keyword, value)
    return found


def three() -> dict[str, list[Dataset]]:
    """T1c on a grid; T1 on the same; FLAIR sagittal, on another."""
    return {
        "t1c": datasets("t1_gd", 1, GD),
        "t1": datasets("t1_mprage", 2),
        "flair": datasets("t2_flair", 3, orientation="sagittal", spacing_mm=(3.0, 1.3, 1.3), shape=(14, 32, 34)),
    }


def written(folder: Path, study: dict[str, list[Dataset]]) -> list[Series]:
    for name, some in study.items():
        write_series(some, folder / name)
    return read_series(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(zoo.brats_like(tmp_path_factory.mktemp("brats") / "brats", [T1C, T1, FLAIR], own=True))


def planned(folder: Path, bundle: Bundle, study: dict[str, list[Dataset]], **how: Any) -> StudyPlan:
    return plan(written(folder, study), [bundle], explicit=True, **how)


def stack(folder: Path, bundle: Bundle, study: dict[str, list[Dataset]], **how: Any) -> Stack:
    found = planned(folder, bundle, study, **how)
    assert not found.refused
    (job,) = found.jobs
    return job.stack


def refusal(folder: Path, bundle: Bundle, study: dict[str, list[Dataset]], **how: Any) -> MedsegError:
    found = planned(folder, bundle, study, **how)
    assert not found.jobs
    (refused,) = found.refused
    assert refused.record()["error"]["code"] == refused.error.code
    return refused.error


# --- one grid ----------------------------------------------------------------------------------------------------


class _Seen(Exception):
    pass


Arrays = Callable[[Stack], NDArray[np.float32]]


@pytest.fixture
def arrays(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """(C, k, j, i) of a stack's channels, as the network's preprocessing is given them."""
    seen: list[NDArray[np.float32]] = []

    def see(voxels: torch.Tensor, *_: Any, **__: Any) -> None:
        seen.append(voxels.numpy().copy())
        raise _Seen

    def given(of: Stack) -> NDArray[np.float32]:
        with monkeypatch.context() as patch:
            patch.setattr("medseg.inference.segment.axis_through", lambda *_: "looked at")
            patch.setattr("medseg.inference.whole.prepare", see)
            with pytest.raises(_Seen):
                segment(StackSource(of), bundle, Collected())
        return seen[-1]

    return given


def ramp(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Whole numbers that are linear in patient millimetres on any grid of whole millimetres."""
    k, j, i = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    x, y, z, _ = np.moveaxis(np.stack([k, j, i, np.ones_like(k)], -1) @ affine.T, -1, 0)
    return 5.0 * x + 7.0 * y + 11.0 * z + 2000.0


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal"])
def test_a_channel_on_another_grid_is_laid_where_it_is_in_the_patient(
    orientation: str, bundle: Bundle, arrays: Arrays, tmp_path: Path
) -> None:
    study = three()
    shape = (40, 48, 44)
    affine = make_affine(orientation, (2.0, 2.0, 2.0), shape, centre_mm=(3.0, -2.0, 1.0))
    study["flair"] = volume_to_series(ramp(affine, shape), affine, "MR", "flair", number=3)
    found = stack(tmp_path, bundle, study)
    voxels = arrays(found)
    assert np.array_equal(voxels[0], np.stack([one.read() for one in found.slices]))
    np.testing.assert_allclose(voxels[2], ramp(found.affine, found.shape), atol=2e-3)
    assert [one.overlap for one in found.channels] == [1.0, 1.0, 1.0]
    assert [one.matrix is None for one in found.channels] == [True, True, False]


def test_a_channel_on_the_same_grid_is_taken_to_the_bit(bundle: Bundle, arrays: Arrays, tmp_path: Path) -> None:
    found = stack(tmp_path, bundle, three())
    t1 = found.channels[1].stack
    assert t1 is not None and t1.series.description == "t1_mprage"
    assert np.array_equal(arrays(found)[1], np.stack([one.read() for one in t1.slices]))


def test_where_a_channel_ends_the_network_is_given_no_image(bundle: Bundle, arrays: Arrays, tmp_path: Path) -> None:
    study = three()
    shape = (39, 46, 44)
    affine = make_affine("axial", (1.0, 1.0, 1.0), shape, centre_mm=(0.0, 0.0, 5.0))
    study["t1c"] = datasets("t1_gd", 1, GD, spacing_mm=(1.0, 1.0, 1.0), shape=(40, 40, 36), centre_mm=(0, 0, 4.0))
    study["t1"] = datasets("t1_mprage", 2, spacing_mm=(1.0, 1.0, 1.0), shape=(40, 40, 36), centre_mm=(0, 0, 4.0))
    study["flair"] = volume_to_series(np.full(shape, 77.0), affine, "MR", "flair", number=3)
    found = stack(tmp_path, bundle, study)
    assert found.channels[2].overlap == pytest.approx(0.975, abs=0.01)
    flair = arrays(found)[2]
    assert (flair[0] == 0).all() and np.allclose(flair[1:], 77)
    assert [one.code for one in found.findings] == ["channel_covers_part"]


# --- as MONAI, and as nnU-Net ------------------------------------------------------------------------------------


def on_image(target: str, keys: Any = "image", **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": keys, **arguments}


def on_each(target: str, **arguments: Any) -> dict[str, Any]:
    return on_image(target, ["flair", "t1", "t1c"], **arguments)


JOIN = on_each("ConcatItemsd", name="image")
SPACED = on_image("Spacingd", pixdim=[2.0, 2.0, 1.0])  # three rows of windows
RANGE = on_image("ScaleIntensityRanged", a_min=0, a_max=900, b_min=0, b_max=1)
APART = on_image("NormalizeIntensityd", nonzero=True, channel_wise=True)
PERCENTILES = on_image(
    "ScaleIntensityRangePercentilesd", lower=1, upper=99, b_min=0, b_max=1, clip=True, channel_wise=True
)


@pytest.mark.parametrize(
    ("steps", "waits"),
    [
        ([SPACED, RANGE], None),
        ([on_image("Orientationd", axcodes="LPI"), SPACED, APART], "mean and deviation of the whole volume"),
        ([RANGE, PERCENTILES, on_image("Orientationd", axcodes="RAS"), SPACED], "percentiles of the whole volume"),
        ([on_image("NormalizeIntensityd")], "mean and deviation of the whole volume"),
        (
            [
                on_each("SpatialPadd", spatial_size=48),
                on_each("NormalizeIntensityd"),
                on_each("ConcatItemsd", name="image"),
            ],
            "SpatialPadd",
        ),
    ],
    ids=[
        "at once",
        "zeros, each channel, backwards",
        "percentiles of each",
        "all channels",
        "MONAI, keys of their own",
    ],
)
def test_channels_pass_together(
    steps: list[dict[str, Any]], waits: str | None, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their labels are those of the whole volume to the bit, and those of MONAI on the same arrays."""
    folder = zoo.brats_like(tmp_path / "bundle", [FLAIR, T1, T1C], own=True)
    keys = steps[0]["keys"]

    def change(content: dict[str, Any]) -> None:
        content["preprocessing"]["transforms"] = steps
        invert = next(one for one in content["postprocessing"]["transforms"] if one["_target_"] == "Invertd")
        invert["orig_keys"] = keys if isinstance(keys, str) else keys[0]

    zoo.rewrite(folder, change)
    bundle = load_bundle(folder)
    found = stack(tmp_path / "study", replace(bundle, channels=replace(bundle.channels, reference="T1c")), three())
    assert [one.name for one in found.channels] == ["FLAIR", "T1", "T1c"]
    sink, whole = Collected(), Collected()
    result = segment(StackSource(found), bundle, sink)
    assert result.streamed is (waits is None)
    assert waits is None or waits in str(result.streamed_reason)
    voxels = arrays(found)
    monkeypatch.setattr("medseg.inference.segment.axis_through", lambda *_: "as a whole")
    segment(StackSource(found), bundle, whole)
    assert np.array_equal(sink.labels, whole.labels)
    expected = labels_by_monai(voxels, found, bundle)
    assert 0.01 < expected.mean() < 0.99
    assert (sink.labels == expected).mean() >= 0.9999


@pytest.mark.parametrize("case", ["a", "b"])
def test_labels_are_those_of_nnunet(case: str, shared_data: Path, tmp_path: Path) -> None:
    """Its two channels as series of a study, that are found by their names."""
    vectors = shared_data / "nnunet_tiny/mr_regions"
    if not vectors.is_dir():
        pytest.skip("nnU-Net's test vectors are not here")
    bundle = load_bundle(copied(vectors / "model", tmp_path / "bundle"))
    assert bundle.channels is not None and bundle.channels.names == ("T1", "FLAIR")
    study = {}
    for number, name in enumerate(("ax t1 se", "FLAIR tra")):
        image = nibabel.load(vectors / f"inputs/{case}_000{number}.nii.gz")
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
        array = np.asarray(image.dataobj).transpose()
        study[name] = volume_to_series(array, affine[:, [2, 1, 0, 3]], "MR", name, number=number + 1)
    found = stack(tmp_path / "study", bundle, study)
    sink = Collected()
    segment(StackSource(found), bundle, sink)
    expected = np.asarray(nibabel.load(vectors / f"expected/default/{case}.nii.gz").dataobj).transpose()
    assert (sink.labels == expected).mean() >= 0.9999
    assert set(np.unique(expected)) <= set(np.unique(sink.labels))


# --- what is told ------------------------------------------------------------------------------------------------


def test_a_result_refers_to_all_series_and_lies_on_the_reference(bundle: Bundle, tmp_path: Path) -> None:
    study = three()
    (job,) = planned(tmp_path / "study", bundle, study).jobs
    outcome = run(job, tmp_path / "out")
    uids = {name: str(some[0].SeriesInstanceUID) for name, some in study.items()}
    assert {name: one["series_uid"] for name, one in outcome.record["channels"].items()} == {
        "T1c": uids["t1c"],
        "T1": uids["t1"],
        "FLAIR": uids["flair"],
    }
    assert outcome.record["channels"]["FLAIR"]["resampled"] and not outcome.record["channels"]["T1"]["resampled"]
    assert outcome.record["series_uid"] == uids["t1c"]
    report = dcmread(outcome.folder / "sr.dcm")
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = {
        str(one.SeriesInstanceUID): {str(item.ReferencedSOPInstanceUID) for item in one.ReferencedSOPSequence}
        for one in evidence.ReferencedSeriesSequence
    }
    for some in study.values():
        assert listed[str(some[0].SeriesInstanceUID)] == {str(one.SOPInstanceUID) for one in some}
    seg = dcmread(outcome.folder / "seg.dcm")
    assert [str(one.SeriesInstanceUID) for one in seg.ReferencedSeriesSequence] == [uids["t1c"]]
    assert run(job, tmp_path / "out").up_to_date


def test_the_key_is_of_all_series_in_their_order(bundle: Bundle, tmp_path: Path) -> None:
    def key(name: str, change: Callable[[dict[str, list[Dataset]]], object], given: Bundle = bundle) -> str:
        study = three()
        change(study)
        (job,) = planned(tmp_path / name, given, study).jobs
        return str(run(job, tmp_path / f"out {name}").record["result_key"])

    def flair_changed(study: dict[str, list[Dataset]]) -> None:
        study["flair"][3].PixelData = bytes(len(study["flair"][3].PixelData))

    same = [key("one", lambda study: study), key("two", lambda study: study)]
    assert same[0] == same[1]
    assert key("three", flair_changed) != same[0]


# --- bad input ---------------------------------------------------------------------------------------------------


def every(some: Sequence[Dataset], **values: Any) -> None:
    for dataset in some:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)


def without_flair(study: dict[str, list[Dataset]]) -> None:
    del study["flair"]


def two_flairs(study: dict[str, list[Dataset]]) -> None:
    study["again"] = datasets("flair again", 9)


def t1_alone(study: dict[str, list[Dataset]]) -> None:
    del study["t1c"]


def other_frame(study: dict[str, list[Dataset]]) -> None:
    every(study["flair"], FrameOfReferenceUID="2.25.77")


def other_patient(study: dict[str, list[Dataset]]) -> None:
    every(study["flair"], PatientID="SOMEBODY")


def elsewhere(study: dict[str, list[Dataset]]) -> None:
    study["flair"] = datasets("flair", 3, centre_mm=(9.0, 0.0, 0.0))


def broken(study: dict[str, list[Dataset]]) -> None:
    study["flair"] = study["flair"][:2]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (without_flair, "channels_missing", ['T1c (series 1 "t1_gd")', "nothing fits FLAIR", "*flair*"]),
        (two_flairs, "channels_missing", ["2 fit FLAIR", 'series 3 "t2_flair"', 'series 9 "flair again"']),
        (t1_alone, "channel_twice", ["fits channel T1c, too"]),
        (other_frame, "channel_other_frame", ["2.25.77", "FLAIR"]),
        (other_patient, "channel_other_patient", ["PatientID", "FLAIR"]),
        (elsewhere, "channel_does_not_cover", ["75.", "95 %"]),
        (broken, "channels_missing", ["nothing fits FLAIR", "series 3 gave no volume"]),
    ],
)
def test_refused_in_one_sentence(
    change: Callable[[dict[str, list[Dataset]]], object], code: str, says: list[str], bundle: Bundle, tmp_path: Path
) -> None:
    study = three()
    change(study)
    error = refusal(tmp_path, bundle, study)
    assert error.code == code
    assert all(text in str(error) for text in says), str(error)
    assert "SOMEBODY" not in str(error) and "\n" not in str(error)


def test_channels_of_other_frames_where_they_are_said_to_be_registered(bundle: Bundle, tmp_path: Path) -> None:
    study = three()
    other_frame(study)
    assumed = stack(tmp_path, bundle, study, assume_registered=True)
    assert [one.code for one in assumed.findings] == ["registration_assumed"]
    assert bundle.channels is not None
    done = replace(bundle, channels=replace(bundle.channels, registration=Registration.DONE))
    assert [one.code for one in stack(tmp_path, done, study).findings] == ["registered_before"]


def test_an_optional_channel_that_is_not_there_is_zeros(arrays: Arrays, tmp_path: Path) -> None:
    bundle = load_bundle(zoo.brats_like(tmp_path / "bundle", [T1C, T1, FLAIR | {"optional": True}], own=True))
    study = three()
    without_flair(study)
    found = stack(tmp_path / "study", bundle, study)
    assert found.channels[2].stack is None
    assert not arrays(found)[2].any()
    (job,) = planned(tmp_path / "study", bundle, study).jobs
    record = run(job, tmp_path / "out").record
    assert record["channels"]["FLAIR"] is None
    assert "channel_absent" in [flag["code"] for flag in record["flags"]]
    two_flairs(study)
    study["flair"] = three()["flair"]
    assert refusal(tmp_path / "more", bundle, study).code == "channels_missing"  # two that fit are no absence


def test_a_person_names_a_series(bundle: Bundle, tmp_path: Path) -> None:
    study = three()
    two_flairs(study)
    series = {one.description: one for one in written(tmp_path, study)}
    named = study_of([series["flair again"]]).volumes[0].stack
    found = plan(series.values(), [bundle], explicit=True, channels={"FLAIR": [named]})
    assert found.jobs[0].stack.channels[2].stack.series.description == "flair again"  # type: ignore[union-attr]


def test_a_series_is_a_channel_of_no_bundle_that_was_not_named(bundle: Bundle, tmp_path: Path) -> None:
    series = written(tmp_path / "study", three())
    other = load_bundle(zoo.segresnet_like(tmp_path / "other"))
    found = plan(series, [bundle, other])
    assert {job.bundle.name for job in found.jobs} | {str(one.bundle) for one in found.refused} <= {"other", "None"}
    assert [job.bundle for job in plan(series, [bundle]).jobs] == [bundle]  # the only one


# --- NIfTI -------------------------------------------------------------------------------------------------------


def nifti(path: Path, array: NDArray[Any]) -> Path:
    nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return path


def test_files_are_channels_however_they_are_given(bundle: Bundle, arrays: Arrays, tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 900, (36, 40, 16, 3)).astype(np.int16)
    for number in range(3):
        nifti(tmp_path / f"x_000{number}.nii.gz", volumes[..., number])
    whole = nifti(tmp_path / "all.nii.gz", volumes)
    named = {name: tmp_path / f"x_000{n}.nii.gz" for n, name in enumerate(("T1c", "T1", "FLAIR"))}
    plans = [
        plan_nifti(tmp_path / "x_0000.nii.gz", [bundle], explicit=True),
        plan_nifti(whole, [bundle], explicit=True),
        plan_nifti(named["T1c"], [bundle], explicit=True, channels=named),
        plan_nifti(named.pop("T1"), [bundle], explicit=True, channels=named),
    ]
    for found in plans:
        assert np.array_equal(arrays(found.jobs[0].stack), volumes.transpose(3, 2, 1, 0).astype(np.float32))


def test_labels_of_files_lie_on_the_reference(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {name: nifti(tmp_path / f"{name}.nii", rng.integers(0, 900, (36, 40, 16))) for name in ("T1c", "T1")}
    affine = np.diag([1.0, -1.5, 1.5, 1.0])  # left-handed, and wider
    affine[:3, 3] = -40.0, 8.0, -3.0
    image = nibabel.Nifti1Image(rng.integers(0, 900, (50, 40, 30)).astype(np.int16), affine)
    nibabel.save(image, tmp_path / "FLAIR.nii")
    assert bundle.channels is not None
    given = replace(bundle, channels=replace(bundle.channels, reference="T1c"))
    planned = plan_nifti(tmp_path / "FLAIR.nii", [given], explicit=True, channels=files)
    outcome = run(planned.jobs[0], tmp_path / "out", {Format.NIFTI})
    labels, reference = nibabel.load(outcome.folder / "labels.nii.gz"), nibabel.load(files["T1c"])
    assert labels.shape[:3] == reference.shape
    np.testing.assert_allclose(labels.affine, reference.affine)


def test_files_that_are_too_few(bundle: Bundle, tmp_path: Path) -> None:
    one = nifti(tmp_path / "x_0000.nii.gz", np.ones((8, 8, 8), np.int16))
    two = nifti(tmp_path / "two.nii.gz", np.ones((8, 8, 8, 2), np.int16))
    for path, given, why in (
        (one, {}, "x_0001.nii.gz"),
        (two, {}, "2 volumes, expected 3: T1c, T1, FLAIR"),
        (two, {"T1": one}, "no file is named for T1c, FLAIR"),
    ):
        with pytest.raises(MedsegError, match=why):
            plan_nifti(path, [bundle], explicit=True, channels=given)


# --- PET ---------------------------------------------------------------------------------------------------------


def pet_and_ct() -> dict[str, list[Dataset]]:
    """PET in Bq/ml, with a slope for each slice, on a coarser grid."""
    ct = make_series(spacing_mm=(2.0, 1.0, 1.0), shape=(16, 40, 36), description="CT", number=1)
    pet = make_series(
        spacing_mm=(2.0, 2.0, 2.0), shape=(18, 24, 22), modality="MR", background=100.0, description="PET", number=2
    )
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = "370000000", "6586.2"
    drug.RadiopharmaceuticalStartTime = "110000"  # an hour before
    for k, dataset in enumerate(pet):
        dataset.Modality, dataset.SOPClassUID = "PT", "1.2.840.10008.5.1.4.1.1.128"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.Units, dataset.DecayCorrection, dataset.PatientWeight = "BQML", "START", "70"
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{10 + k}", "0"
        dataset.RadiopharmaceuticalInformationSequence = [drug]
    return {"ct": ct, "pet": pet}


@pytest.fixture
def pet_ct(tmp_path: Path) -> Bundle:
    channels = [{"name": "CT", "modality": "CT"}, {"name": "PET", "modality": "PT"}]
    return load_bundle(zoo.brats_like(tmp_path / "petct", channels, own=True))


def test_pet_is_in_suv_slice_by_slice(pet_ct: Bundle, tmp_path: Path) -> None:
    study = pet_and_ct()
    found = stack(tmp_path / "study", pet_ct, study)
    pet = found.channels[1].stack
    assert pet is not None
    values = np.stack([one.read() for one in pet.slices])
    stored = np.stack([dataset.pixel_array for dataset in study["pet"]]).astype(float)
    bq_ml = stored * np.arange(10, 28)[:, None, None]
    expected = bq_ml * 70_000.0 / (370e6 * np.exp(-np.log(2) * 3600.0 / 6586.2))
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("keyword", "value", "why"),
    [
        ("PatientWeight", "", "PatientWeight"),
        ("Units", "CNTS", "Units is CNTS"),
        ("DecayCorrection", "NONE", "DecayCorrection"),
    ],
)
def test_pet_without_what_suv_needs(keyword: str, value: str, why: str, pet_ct: Bundle, tmp_path: Path) -> None:
    study = pet_and_ct()
    every(study["pet"], **{keyword: value})
    error = refusal(tmp_path / "study", pet_ct, study)
    assert error.code == "channel_not_suv"
    assert why in str(error) and "channel PET" in str(error)


def test_no_channels_at_all(bundle: Bundle) -> None:
    with pytest.raises(MedsegError, match="nothing fits T1c"):
        stack_of_channels(study_of([]), bundle)

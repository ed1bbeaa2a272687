"""nnU-Net's folders as bundles, from the command line: DICOM, orientation, parts, clean-up, what is missing."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from medseg.bundle.catalog import bundle_folders, find_bundle
from medseg.bundle.describe import verify
from medseg.bundle.load import load_bundle
from medseg.cli.app import make_app
from medseg.dicom.geometry import classify
from medseg.dicom.phantom import make_affine, volume_to_series, write_series
from medseg.dicom.series import SliceSource, Stack, StackSource
from medseg.errors import InvalidBundle, MedsegError
from medseg.inference import memory
from medseg.inference.nnunet.cleanup import cleaned
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.job.exits import exit_code
from tests.medseg.dicom.made import series_of
from tests.medseg.inference.phantoms import Arriving
from tests.medseg.nnunet_folders import WEIGHTS, described, plans, rewrite, rewrite_checkpoint, write


@dataclass(frozen=True)
class Done:
    """exit_code, output: as of the program, whose errors are told by `medseg.cli.app.run`."""

    exit_code: int
    output: str
    stdout: str


def run(*arguments: object) -> Done:
    result = CliRunner().invoke(make_app(), [str(argument) for argument in arguments])
    if isinstance(result.exception, MedsegError):
        return Done(exit_code(result.exception), f"{result.output}{result.exception}", result.stdout)
    return Done(result.exit_code, result.output, result.stdout)


def noise(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    from scipy import ndimage

    return np.rint(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1.5) * 300 + 300)


def nifti(path: Path, values: NDArray[np.float64], affine: NDArray[np.float64]) -> Path:
    """Values (k, j, i) and an affine to LPS mm."""
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(values.transpose().astype(np.int16), ras), path)
    return path


def stack_of(values: NDArray[np.float64], affine: NDArray[np.float64]) -> Stack:
    """A DICOM series of these values."""
    return classify(series_of(volume_to_series(values, affine, "MR", "Noise"))).stacks[0]


def found_in(source: SliceSource, folder: Path) -> NDArray[np.uint8]:
    """What a bundle finds: (k, j, i) of the slices."""
    spool = LabelSpool()
    segment(source, load_bundle(folder), spool)
    return np.stack(list(spool))


def labels_of(folder: Path, values: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """What a bundle finds in a DICOM series: (k, j, i) of its slices."""
    return found_in(StackSource(stack_of(values, affine)), folder)


def test_dicom_and_nifti_of_the_same_image_have_the_same_labels(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", plans(spacing=[3.0, 1.3, 1.2]), channels=("MRI",))
    affine = make_affine("axial", (3.5, 1.1, 1.0), (15, 22, 26))
    write_series(volume_to_series(noise((15, 22, 26)), affine, "MR", "Noise"), tmp_path / "study")
    file = nifti(tmp_path / "case_0000.nii.gz", noise((15, 22, 26)), affine)
    done = run("infer", tmp_path / "study", file, "--bundle", folder, "-o", tmp_path / "out", "--format", "nifti")
    assert done.exit_code == 0, done.output
    found = [np.asarray(nibabel.load(one).dataobj) for one in sorted((tmp_path / "out").rglob("labels.nii.gz"))]
    assert len(found) == 2
    assert len(np.unique(found[0])) == 3
    assert np.array_equal(*found)


def test_a_result_is_written_as_dicom_and_says_why_it_did_not_stream(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", channels=("MRI",))
    affine = make_affine("axial", (2.0, 1.0, 1.0), (8, 16, 18))
    write_series(volume_to_series(noise((8, 16, 18)), affine, "MR", "Noise"), tmp_path / "study")
    done = run("infer", tmp_path / "study", "--bundle", folder, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert {"seg", "sr"} == set(record["outputs"])
    assert not record["streamed"]
    assert "the mean and the deviation of the whole volume" in record["streamed_reason"]
    assert [segment["label"] for segment in record["segments"]] == ["organ", "lesion"]


@pytest.mark.parametrize("scheme", ["CTNormalization", "ZScoreNormalization"])
def test_slices_that_arrive_in_any_order_give_the_same_labels(scheme: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", plans(scheme=scheme, spacing=[1.5, 1.5, 1.5]), channels=("MRI",))
    stack = stack_of(noise((9, 11, 13)), make_affine("coronal", (2.0, 1.0, 1.0), (9, 11, 13)))
    expected = found_in(StackSource(stack), folder)
    assert len(np.unique(expected)) > 1
    order = [4, None, 0, 8, 1, None, 7, 2, 3, 6, 5]
    assert np.array_equal(found_in(Arriving(stack, order), folder), expected)


@pytest.mark.parametrize("orientation", ["coronal", "sagittal", "axial"])
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "LAS", "SRA"])
def test_stated_axes_are_what_the_network_sees(orientation: str, axcodes: str, tmp_path: Path) -> None:
    """However slices lie, labels are those of the array turned beforehand, at the same places in the patient."""
    folder = write(tmp_path / "model", plans(spacing=[1.5, 1.5, 1.5]))
    affine = make_affine(orientation, (2.0, 1.5, 1.0), (9, 11, 13))
    values = noise((9, 11, 13))
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(ras), nibabel.orientations.axcodes2ornt(tuple(axcodes))
    )
    seen = nibabel.orientations.apply_orientation(values.transpose(), turn)
    seen_affine = ras @ nibabel.orientations.inv_ornt_aff(turn, values.transpose().shape)
    file = tmp_path / "seen_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(seen.astype(np.int16), seen_affine), file)
    assert run("infer", file, "--bundle", folder, "-o", tmp_path / "out").exit_code == 0
    expected = nibabel.load(next((tmp_path / "out").rglob("labels.nii.gz")))
    back = nibabel.orientations.ornt_transform(nibabel.io_orientation(expected.affine), nibabel.io_orientation(ras))
    described(folder, orientation=axcodes)
    found = labels_of(folder, values, affine)
    assert np.array_equal(found.transpose(), nibabel.orientations.apply_orientation(expected.dataobj, back))


def test_models_are_merged_and_the_later_one_stands_above(tmp_path: Path) -> None:
    root = tmp_path / "whole"
    write(root / "one", channels=("MRI",))
    write(root / "two", labels={"background": 0, "vessel": 1, "bone": 2}, channels=("MRI",), seed=1)
    parts = [
        {"folder": "one", "labels": {"organ": 7, "2": 3}},
        {"folder": "two", "labels": {"bone": 5}},
    ]
    described(root, parts=parts)
    bundle = load_bundle(root)
    assert [(one.number, one.label) for one in bundle.segments] == [(3, "lesion"), (5, "bone"), (7, "organ")]
    affine = make_affine("axial", (1.0, 1.0, 1.0), (9, 11, 13))
    first, second, merged = (labels_of(root / name, noise((9, 11, 13)), affine) for name in ("one", "two", "."))
    expected = np.array([0, 7, 3])[first]
    expected[second == 2] = 5
    assert np.array_equal(merged, expected)


def test_largest_pieces_stay_step_by_step() -> None:
    labels = np.zeros((3, 9, 9), np.uint8)
    labels[1, 1, 1:4], labels[1, 1, 6:8], labels[2, 2, 4], labels[0, 7, 7] = 1, 1, 2, 2
    together = cleaned(labels.copy(), [(1, 2)])
    assert together[1, 1, 1:4].all()
    assert together[2, 2, 4] == 2  # touches the largest piece by a corner
    assert np.count_nonzero(together) == 4
    assert np.count_nonzero(cleaned(labels.copy(), [(2,)]) == 2) == 2  # two pieces of the same size both stay


def test_cleanup_of_the_folder_is_done_and_a_pickle_alone_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", channels=("MRI",))
    results = folder / "crossval_results_folds_0"
    results.mkdir()
    (results / "postprocessing.pkl").write_bytes(b"not read")
    affine = make_affine("axial", (1.0, 1.0, 1.0), (9, 11, 13))
    raw = labels_of(folder, noise((9, 11, 13)), affine)
    assert load_bundle(folder).nnunet.cleanup_unread  # type: ignore[union-attr]
    step = {"labels_or_regions": [1, 2]}
    name = "remove_all_but_largest_component_from_segmentation"
    content = {"postprocessing_fns": [name] * 2, "postprocessing_kwargs": [step, {"labels_or_regions": 2}]}
    (results / "postprocessing.json").write_text(json.dumps(content))
    assert load_bundle(folder).nnunet.cleanup == ((1, 2), (2,))  # type: ignore[union-attr]
    assert np.array_equal(labels_of(folder, noise((9, 11, 13)), affine), cleaned(raw, [(1, 2), (2,)]))


def test_folders_lie_where_bundles_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "knee", channels=("MRI",))
    write(tmp_path / "Dataset001_Made/nnUNetTrainer__nnUNetPlans__net", channels=("MRI",))
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path))
    assert {"knee", "Dataset001_Made"} <= bundle_folders().keys()
    assert find_bundle("Dataset001_Made").name == "Dataset001_Made_net"
    assert find_bundle("knee").expects.modality == ("MR",)


def test_each_picture_is_a_case_of_its_own(tmp_path: Path) -> None:
    made = plans(2, spacing=[1.0, 1.0]) | {"image_reader_writer": "NaturalImage2DIO"}
    folder = write(tmp_path / "model", made, channels=("MRI",))
    values, affine = noise((5, 17, 19)), make_affine("axial", (4.0, 0.3, 0.3), (5, 17, 19))
    values[2] += 500  # which makes no difference to the others
    together = labels_of(folder, values, affine)
    for n in range(5):
        alone = labels_of(folder, values[[n, n, n]], make_affine("axial", (4.0, 0.3, 0.3), (3, 17, 19)))
        assert np.array_equal(together[n], alone[1])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (None, "case_0001.nii.gz is not beside it"),
        ((8, 16, 17), "expected 8 x 16 x 18 voxels"),
    ],
)
def test_a_channel_that_is_missing_or_of_another_size_is_the_images_fault(
    other: tuple[int, int, int] | None, says: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", plans(channels=2), channels=("T1", "FLAIR"))
    affine = make_affine("axial", (2.0, 1.0, 1.0), (8, 16, 18))
    file = nifti(tmp_path / "case_0000.nii.gz", noise((8, 16, 18)), affine)
    if other is not None:
        nifti(tmp_path / "case_0001.nii.gz", noise(other), affine)
    done = run("infer", file, "--bundle", folder)
    assert (done.exit_code, says in done.output) == (3, True), done.output
    assert not (tmp_path / "case_0000-medseg").exists()


def test_channels_that_lie_apart_are_flagged_and_their_order_makes_another_result(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", plans(channels=2), channels=("T1", "FLAIR"))
    affine = make_affine("axial", (2.0, 1.0, 1.0), (8, 16, 18))
    moved = affine + np.array([[0, 0, 0, 5.0]] + [[0.0] * 4] * 3)
    files = [nifti(tmp_path / f"case_000{n}.nii.gz", noise((8, 16, 18)) + n, at) for n, at in ((0, affine), (1, moved))]
    done = run("infer", files[0], "--bundle", folder, "--json", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert "channels_apart" in {flag["code"] for flag in record["flags"]}
    nifti(files[1], noise((8, 16, 18)) + 7, moved)
    done = run("infer", files[0], "--bundle", folder, "--json", "-o", tmp_path / "out", "--overwrite")
    assert json.loads(done.stdout)["result_key"] != record["result_key"]


def test_a_broken_folder_has_exit_code_4_and_leaves_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", channels=("MRI",))
    rewrite(folder / "dataset.json", lambda content: content.update(labels={"background": 0, "organ": 1}))
    file = nifti(tmp_path / "case.nii.gz", noise((8, 16, 18)), make_affine(shape=(8, 16, 18)))
    done = run("infer", file, "--bundle", folder)
    assert done.exit_code == 4
    assert "the weights do not fit its network" in done.output
    assert not [path for path in (tmp_path / "case-medseg").rglob("*") if path.is_file()]


def test_what_memory_has_no_room_for_is_refused_with_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model", plans(spacing=[0.05, 0.05, 0.05]), channels=("MRI",))
    file = nifti(tmp_path / "case.nii.gz", noise((8, 16, 18)), make_affine(shape=(8, 16, 18)))
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 512 << 20)
    done = run("infer", file, "--bundle", folder)
    assert done.exit_code == 5
    assert "of memory needed" in done.output


def test_a_dataset_has_the_model_that_is_named_or_the_best(tmp_path: Path) -> None:
    dataset = tmp_path / "Dataset001_Made"
    made = plans()
    made["configurations"]["other"] = {"inherits_from": "net"}
    for configuration in ("net", "other"):
        write(dataset / f"nnUNetTrainer__nnUNetPlans__{configuration}", made, configuration=configuration)
    done = run("bundles", "inspect", dataset)
    assert done.exit_code == 4
    assert "nnUNetTrainer__nnUNetPlans__net (net)" in done.output
    assert json.loads(run("bundles", "inspect", dataset / "other", "--json").stdout)["name"] == "Dataset001_Made_other"
    best = {"trainer": "nnUNetTrainer", "plans_identifier": "nnUNetPlans", "configuration": "net"}
    information = {"best_model_or_ensemble": {"selected_model_or_models": [best]}}
    (dataset / "inference_information.json").write_text(json.dumps(information))
    record = json.loads(run("bundles", "inspect", dataset, "--json").stdout)
    assert (record["name"], record["nnunet"]["configuration"]) == ("Dataset001_Made_net", "net")


def test_the_best_of_a_dataset_may_be_an_average(tmp_path: Path) -> None:
    """With what nnU-Net found to help it; models' own post-processing is left out."""
    dataset, names = tmp_path / "Dataset001_Made", ("net", "other")
    made = plans(patch_size=[4, 8, 8])
    made["configurations"]["other"] = {"inherits_from": "net", "spacing": [2.0, 1.0, 1.0]}
    step = {"postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"]}
    for label, name in enumerate(names, 1):
        folder = write(dataset / f"nnUNetTrainer__nnUNetPlans__{name}", made, configuration=name, seed=label)
        keep = step | {"postprocessing_kwargs": [{"labels_or_regions": label}]}
        (folder / "postprocessing.json").write_text(json.dumps(keep))
    best = [{"trainer": "nnUNetTrainer", "plans_identifier": "nnUNetPlans", "configuration": name} for name in names]
    information = {"best_model_or_ensemble": {"selected_model_or_models": best}}
    (dataset / "inference_information.json").write_text(json.dumps(information))
    about = json.loads(run("bundles", "inspect", dataset, "--json").stdout)["nnunet"]
    folders = [f"nnUNetTrainer__nnUNetPlans__{name}" for name in names]
    assert (about["average"], about["cleanup"], about["cleanup_unread"]) == (folders, [], True)
    there = dataset / "ensembles" / f"ensemble___{folders[0]}___{folders[1]}___0"
    there.mkdir(parents=True)
    keep = step | {"postprocessing_kwargs": [{"labels_or_regions": [1, 2]}]}
    (there / "postprocessing.json").write_text(json.dumps(keep))
    about = json.loads(run("bundles", "inspect", dataset, "--json").stdout)["nnunet"]
    assert (about["cleanup"], about["cleanup_unread"]) == (["1 and 2"], False)
    own = json.loads(run("bundles", "inspect", dataset / "other", "--json").stdout)["nnunet"]
    assert (own["average"], own["cleanup"]) == ([], ["2"])
    assert verify(load_bundle(dataset))["verified"]
    assert run("bundles", "new", tmp_path / "made", "--nnunet", dataset).exit_code == 2
    shutil.rmtree(dataset / folders[1])
    done = run("bundles", "inspect", dataset)
    assert (done.exit_code, "not all of that is there" in done.output) == (4, True), done.output


@pytest.mark.parametrize(
    ("other", "facts", "words"),
    [
        ({}, {"labels": {"background": 0, "organ": 1, "other": 2}}, "has other labels than the first"),
        ({}, {"channels": ("CT",)}, "has other channels than the first"),
        ({"transpose_forward": [2, 1, 0], "transpose_backward": [2, 1, 0]}, {}, "has other axes than the first"),
    ],
)
def test_models_that_do_not_say_the_same_are_not_averaged(
    other: dict[str, Any], facts: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write(tmp_path / "bundle" / "one")
    write(tmp_path / "bundle" / "two", plans() | other, **facts)
    described(tmp_path / "bundle", average=[{"folder": "one"}, {"folder": "two"}])
    with pytest.raises(InvalidBundle, match=words):
        load_bundle(tmp_path / "bundle")


def test_a_cascade_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    made = plans(previous_stage="net")
    for name in ("one", "two"):
        write(tmp_path / name, made)
    done = run("bundles", "inspect", tmp_path / "one")
    assert (done.exit_code, "leads to itself" in done.output) == (4, True), done.output


def renamed(prefix: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        weights = content["network_weights"]
        content["network_weights"] = {f"{prefix}{name}": tensor for name, tensor in weights.items()}

    return change


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_several_gpus_or_compiled_load(prefix: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    rewrite_checkpoint(folder, renamed(prefix))
    assert verify(load_bundle(folder))["verified"]


def test_numbers_of_older_numpy_load(tmp_path: Path) -> None:
    """numpy 1 called the module of its numbers otherwise."""
    folder = write(tmp_path / "model")
    with zipfile.ZipFile(folder / WEIGHTS) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        for name, part in parts.items():
            assert not name.endswith("data.pkl") or b"numpy._core.multiarray" in part
            archive.writestr(name, part.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert verify(load_bundle(folder))["verified"]


def test_inspect_says_why_a_bundle_does_not_stream(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    file = nifti(tmp_path / "case.nii.gz", noise((8, 16, 18)), make_affine(shape=(8, 16, 18)))
    (stack,) = json.loads(run("inspect", file, "--bundle", folder, "--json").stdout)["stacks"]
    assert stack["fits"] == ["model"]
    assert "the mean and the deviation of the whole volume" in stack["does_not_stream"]["model"][0]


def test_a_bundle_of_our_own_finds_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", channels=("MRI",), labels={"background": 0, "left_kidney": 1, "liver tumor": 2})
    done = run("bundles", "new", tmp_path / "kidney", "--nnunet", folder)
    assert done.exit_code == 0, done.output
    assert run("bundles", "verify", tmp_path / "kidney").exit_code == 0
    kidney, tumour = load_bundle(tmp_path / "kidney").segments
    assert (kidney.type.value, kidney.laterality and kidney.laterality.meaning) == ("64033007", "Left")
    assert tumour.label == "liver tumor"
    affine = make_affine("axial", (1.0, 1.0, 1.0), (9, 11, 13))
    ours, theirs = (labels_of(tmp_path / name, noise((9, 11, 13)), affine) for name in ("kidney", "model"))
    assert np.array_equal(ours, theirs)
    assert not list((tmp_path / "kidney").rglob("*.pth"))
    assert run("bundles", "new", tmp_path / "kidney", "--nnunet", folder).exit_code == 2

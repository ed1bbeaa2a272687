"""nnU-Net's own results on small folders, to the voxel: what nnUNetPredictor made of them on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.dicom.geometry import classify
from medseg.dicom.nifti import read_nifti
from medseg.dicom.phantom import volume_to_series
from medseg.dicom.series import Stack, StackSource
from medseg.inference.nnunet.case import folds_of
from medseg.inference.nnunet.prepare import prepare
from medseg.inference.nnunet.source import Source
from medseg.inference.nnunet.windows import score_planes
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import NETWORKS, segment
from medseg.job.plan import plan_nifti
from tests.medseg.dicom.made import series_of
from tests.medseg.nnunet_folders import copied

SETS = {
    ("ct_aniso", "default"),
    ("ct_aniso", "fold0_no_mirroring"),
    ("ct_aniso", "fold1_no_gaussian_step07"),
    ("mr_regions", "default"),
    ("mr_regions", "no_mirroring"),
    ("cascade", "3d_lowres"),
    ("cascade", "3d_cascade_fullres"),
}


@pytest.fixture(scope="module")
def vectors(shared_data: Path) -> Path:
    folder = shared_data / "nnunet_tiny"
    if not folder.is_dir():
        pytest.skip("nnU-Net's test vectors are not here")
    return folder


@pytest.fixture(scope="module")
def bundles(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Bundle]:
    """A bundle for each setting of each set."""
    made: dict[tuple[str, str], Bundle] = {}
    sets = json.loads((vectors / "settings.json").read_text())["sets"]
    for name, setting in sorted(SETS):
        how = sets[name][setting]
        options: dict[str, Any] = {
            "folds": how["folds"],
            "step": how["tile_step_size"],
            "gaussian": how["use_gaussian"],
        }
        if not how["use_mirroring"]:
            options["mirroring"] = False
        models = sorted((vectors / name).glob("model*"))
        model = next(one for one in models if one.name in ("model", f"model_{setting}"))
        folder = tmp_path_factory.mktemp("bundle") / name
        copied(model, folder, **options)
        for other in models:
            if other is not model:
                copied(other, folder.parent / other.name)
        made[name, setting] = load_bundle(folder)
    return made


def labels_of(stack: Stack, bundle: Bundle) -> NDArray[np.uint8]:
    """Labels (k, j, i) of a stack's slices."""
    spool = LabelSpool()
    segment(StackSource(stack), bundle, spool)
    return np.stack(list(spool))


def series_of_file(path: Path, modality: str) -> Stack:
    """A NIfTI volume as a DICOM series of the same voxels at the same places."""
    stack = read_nifti(path)
    values = np.stack([slice_.read() for slice_ in stack.slices])
    return classify(series_of(volume_to_series(values, stack.affine, modality, "Vectors"))).stacks[0]


def check_alike(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    assert np.mean(found == expected) >= 0.9999
    for label in np.unique(expected)[1:]:
        mine, its = found == label, expected == label
        assert its.sum() < 50 or 2 * (mine & its).sum() / (mine.sum() + its.sum()) >= 0.999


@pytest.mark.parametrize(("name", "setting"), sorted(SETS))
@pytest.mark.parametrize("case", ["a", "b"])
def test_labels_are_those_of_nnunet(
    name: str, setting: str, case: str, vectors: Path, bundles: dict[tuple[str, str], Bundle]
) -> None:
    file = vectors / name / "inputs" / f"{case}_0000.nii.gz"
    stack = plan_nifti(file, [bundles[name, setting]], explicit=True).jobs[0].stack
    check_alike(labels_of(stack, bundles[name, setting]), expected(vectors, name, setting, case))


@pytest.mark.parametrize(
    ("name", "setting"), [(name, how) for name, how in sorted(SETS) if name != "mr_regions" and how != "default"]
)
@pytest.mark.parametrize("case", ["a", "b"])
def test_labels_of_dicom_are_those_of_nnunet(
    name: str, setting: str, case: str, vectors: Path, bundles: dict[tuple[str, str], Bundle]
) -> None:
    stack = series_of_file(vectors / name / "inputs" / f"{case}_0000.nii.gz", "CT" if name == "ct_aniso" else "MR")
    check_alike(labels_of(stack, bundles[name, setting]), expected(vectors, name, setting, case))


def expected(vectors: Path, name: str, setting: str, case: str) -> NDArray[np.uint8]:
    """Labels (k, j, i) by nnU-Net."""
    return np.asarray(nibabel.load(vectors / name / "expected" / setting / f"{case}.nii.gz").dataobj).transpose()


def test_each_stage_is_that_of_nnunet(vectors: Path, bundles: dict[tuple[str, str], Bundle]) -> None:
    stages = np.load(vectors / "ct_aniso/expected/stages_b_fold0_no_mirroring.npz")
    bundle = bundles["ct_aniso", "fold0_no_mirroring"]
    stack = plan_nifti(vectors / "ct_aniso/inputs/b_0000.nii.gz", [bundle], explicit=True).jobs[0].stack
    source = Source(np.stack([[one.read() for one in stack.slices]]), stack)
    assert bundle.nnunet is not None
    prepared = prepare(source.volume(bundle.nnunet), source.spacing_mm(bundle.nnunet), bundle.nnunet)
    grids = prepared.grids
    assert grids.spacing_mm == tuple(stages["spacing"])
    assert grids.whole == tuple(stages["shape_before_cropping"])
    assert [[part.start, part.stop] for part in grids.box] == stages["bbox"].tolist()
    assert np.array_equal(prepared.voxels[:, 0], stages["preprocessed_first_plane"])
    assert np.array_equal(prepared.voxels.astype(np.float16), stages["preprocessed"])
    network = NETWORKS.get(folds_of(bundle)[0], torch.device("cpu"))
    with torch.inference_mode():
        planes = score_planes(prepared.planes(), grids.shape, bundle.nnunet, network, lambda *_: None)
        scores = torch.stack(list(planes), dim=1)
    assert np.array_equal(scores.numpy(), stages["logits"])

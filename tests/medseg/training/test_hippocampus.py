"""The shipped hippocampus bundle: patients it never saw, and a head from elsewhere."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.bundle.weights import USUAL
from medseg.training.evaluate import AS_SHIPPED, evaluate, segment_nifti
from medseg.training.scores import WHOLE
from medseg.training.train import RECORD, plan_of
from tests.medseg.training.conftest import SHIPPED


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(SHIPPED)


def test_the_weights_are_those_of_the_record(bundle: Bundle) -> None:
    record = json.loads((SHIPPED / RECORD).read_text())
    assert record["weights_sha256"] == hashlib.sha256((SHIPPED / USUAL[0]).read_bytes()).hexdigest()
    assert record["plan_sha256"] == plan_of(bundle).digest()
    assert (record["seed"], record["steps"]) == (plan_of(bundle).seed, plan_of(bundle).steps)


def test_patients_set_aside(bundle: Bundle, shared_data: Path) -> None:
    result = evaluate(bundle, shared_data / "labelled" / "msd_hippocampus")
    assert len(result.cases) == 21
    dice = {name: by_measure["dice"] for name, by_measure in result.summaries.items()}
    assert dice[WHOLE].mean >= 0.88
    assert dice["Anterior hippocampus"].mean >= 0.84
    assert dice["Posterior hippocampus"].mean >= 0.84
    assert min(one.worst for one in dice.values()) >= 0.75
    assert result.summaries[WHOLE]["hausdorff95_mm"].mean <= 2


@pytest.fixture(scope="module")
def mni152() -> nibabel.Nifti1Image:
    """The T1 template that the package nilearn carries, 1 mm, RAS."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        pytest.skip("nilearn, which carries the MNI152 T1, is not installed")
    data = Path(spec.origin).parent / "datasets" / "data"
    return nibabel.as_closest_canonical(nibabel.load(data / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"))


def region(head: nibabel.Nifti1Image, centre_mm: tuple[float, ...], size: tuple[int, ...]) -> nibabel.Nifti1Image:
    """A box of 1 mm voxels about a point in RAS millimetres."""
    middle = np.linalg.inv(head.affine) @ [*centre_mm, 1]
    start = np.round(middle[:3] - (np.array(size) - 1) / 2).astype(int)
    return head.slicer[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]


def volume_and_centroid(path: Path, bundle: Bundle) -> tuple[float, np.ndarray]:
    """Millilitres of the whole hippocampus, and its middle in RAS millimetres."""
    whole = segment_nifti(path, bundle, AS_SHIPPED).any(axis=0)
    affine = nibabel.load(path).affine
    centroid = affine @ [*np.argwhere(whole).mean(axis=0), 1]
    return float(whole.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000), centroid[:3]


@pytest.mark.parametrize(
    ("size", "shift"),
    [
        pytest.param((36, 52, 36), (0, 0, 0), id="as in the demo"),
        pytest.param((36, 52, 36), (3, -3, 3), id="off by 5 mm"),
        pytest.param((60, 76, 60), (0, 0, 0), id="more around it"),
        pytest.param((80, 90, 80), (0, 0, 0), id="the largest that fits"),
    ],
)
def test_mni152(
    bundle: Bundle, mni152: nibabel.Nifti1Image, tmp_path: Path, size: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    volumes = {}
    for side, sign in (("left", -1), ("right", 1)):
        centre = np.array([28 * sign, -20, -14]) + np.array(shift) * [sign, 1, 1]
        nibabel.save(region(mni152, tuple(centre), size), tmp_path / f"{side}.nii.gz")
        volumes[side], centroid = volume_and_centroid(tmp_path / f"{side}.nii.gz", bundle)
        assert np.linalg.norm(centroid - [27 * sign, -20, -16]) < 5
        assert 3.0 <= volumes[side] <= 5.0
    assert abs(volumes["left"] - volumes["right"]) <= 0.1 * min(volumes.values())


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "SRA", "ASL"])
def test_stored_in_another_orientation(
    bundle: Bundle, mni152: nibabel.Nifti1Image, tmp_path: Path, axcodes: str
) -> None:
    box = region(mni152, (-28, -20, -14), (36, 52, 36))
    codes = nibabel.orientations.axcodes2ornt(axcodes)
    turned = box.as_reoriented(nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), codes))
    found = []
    for name, image in (("ras", box), ("turned", turned)):
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
        found.append(volume_and_centroid(tmp_path / f"{name}.nii.gz", bundle))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=0.01)

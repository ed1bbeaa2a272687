"""An object placed in patient millimetres comes back in the SEG where it was placed, whatever way it was scanned.

The bundle's network is a threshold, so what should be found is known exactly. Two boxes of different size, off every
axis of symmetry, tell a mirrored or turned mask from a right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from safetensors.torch import save_file

from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import Box, make_affine, make_series, paint, write_series
from medseg.dicom.sources import read_series
from medseg.inference.settings import Settings
from medseg.job.folder import Format
from medseg.job.plan import plan
from medseg.job.run import run
from tests.medseg.bundle import zoo
from tests.orientations import ROW_AND_COLUMN

BOXES = (Box((-9.0, 3.0, -12.0), (1.0, 15.0, 2.0)), Box((6.0, -13.0, 5.0), (12.0, -6.0, 9.0)))
SHAPE = (18, 40, 44)
MODEL_MM = (1.5, 1.5, 2.0)


def oblique(*degrees: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Direction cosines turned about x, y and z."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turned = step @ turned
    return tuple(turned[:, 0]), tuple(turned[:, 1])


def threshold_bundle(folder: Path, *preparing: dict[str, Any]) -> Path:
    """A bundle whose network finds what is brighter than -450 HU: half-way between air and the boxes."""
    steps = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *preparing,
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": -1000,
            "a_max": 100,
            "b_min": 0.0,
            "b_max": 1.0,
            "clip": True,
        },
    ]
    config = {
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25, "mode": "gaussian"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            ],
        },
    }
    metadata = {
        "version": "1.0.0",
        "network_data_format": {
            "inputs": {"image": {"num_channels": 1, "modality": "CT"}},
            "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "box"}}},
        },
    }
    weights = {"weight": torch.tensor([0.0, 20.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([0.0, -10.0])}
    zoo.write_config(folder, config, metadata)
    save_file(weights, folder / "models/model.safetensors")
    return folder


def scan(**how: Any) -> tuple[list[Dataset], NDArray[np.bool_], NDArray[np.float64]]:
    """A series of the boxes; the voxels that hold them (k, j, i); voxel centres (k, j, i, 3) in LPS mm."""
    images = make_series(objects=BOXES, shape=SHAPE, **how)
    affine = make_affine(
        how.get("orientation", "axial"),
        how.get("spacing_mm", (2.0, 1.0, 1.0)),
        SHAPE,
        tilt_deg=how.get("tilt_deg", 0.0),
    )
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return images, paint(affine, SHAPE, BOXES, -1000.0) > -450, index @ affine[:3, :3].T + affine[:3, 3]


def found(folder: Path, bundle: Path, images: Sequence[Dataset]) -> NDArray[np.bool_]:
    """What highdicom reads from the SEG that the pipeline writes, plane by plane in the order of `images`."""
    write_series(images, folder / "study")
    (job,) = plan(read_series(folder / "study"), (load_bundle(bundle),), explicit=True).jobs
    outcome = run(job, folder / "out", frozenset({Format.SEG}), settings=Settings(device="cpu"))
    seg = highdicom.seg.segread(outcome.record["outputs"]["seg"])
    planes = seg.get_pixels_by_source_instance(
        [image.SOPInstanceUID for image in images], combine_segments=True, assert_missing_frames_are_empty=True
    )
    return np.asarray(planes) > 0


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the grid it comes on, as loaded."""
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "native")


@pytest.fixture(scope="module")
def resampling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Turned to RAS and brought to 1.5 x 1.5 x 2 mm."""
    return threshold_bundle(
        tmp_path_factory.mktemp("bundle") / "resampling",
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": MODEL_MM, "mode": "bilinear"},
    )


SCANS = [
    *(pytest.param({"orientation": turn}, id=f"row {turn[0]} column {turn[1]}") for turn in ROW_AND_COLUMN),
    pytest.param({"orientation": oblique(20, -15, 40)}, id="oblique"),
    pytest.param({"spacing_mm": (2.0, 0.5, 0.7)}, id="spacing 0.5, 0.7"),
    pytest.param({"spacing_mm": (3.0, 0.9, 0.7), "orientation": "sagittal"}, id="sagittal, thick"),
    pytest.param({"patient_position": "FFS"}, id="feet first"),
    pytest.param({"patient_position": "HFP"}, id="prone"),
]
TILTED = pytest.param({"tilt_deg": 15.0}, id="gantry tilt")


@pytest.mark.parametrize("how", SCANS)
def test_the_same_voxels_come_back(native: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    images, wanted, _ = scan(**how)
    assert wanted.any()
    np.testing.assert_array_equal(found(tmp_path, native, images), wanted)


@pytest.mark.parametrize("how", SCANS[::6])
def test_the_order_of_files_changes_no_voxel(native: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    images, wanted, _ = scan(**how)
    np.testing.assert_array_equal(found(tmp_path, native, images[::-1])[::-1], wanted)


@pytest.mark.parametrize("how", [*SCANS, TILTED])
def test_within_half_a_voxel_where_the_recipe_resamples(resampling: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    images, wanted, centres = scan(**how)
    mask = found(tmp_path, resampling, images)
    spacing_mm = max(*MODEL_MM, *how.get("spacing_mm", (2.0, 1.0, 1.0)))
    assert distance_mm(centres[mask != wanted]).max(initial=0.0) <= spacing_mm / 2
    np.testing.assert_allclose(centres[mask].mean(axis=0), centres[wanted].mean(axis=0), atol=spacing_mm / 2)


def distance_mm(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """From points (n, 3) to the nearest face of a box, inside or outside."""
    each = []
    for box in BOXES:
        beyond = np.maximum(np.array(box.low_mm) - points, points - np.array(box.high_mm))
        outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=-1)
        each.append(np.where(outside > 0, outside, -beyond.max(axis=-1)))
    return np.min(each, axis=0)

"""A small labelled data set and a small bundle in the shipped bundle's shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "bundles" / "hippocampus_t1_unet3d"
AFFINES = {"RAS": np.diag([1.0, 1, 1, 1]), "LAS": np.diag([-1.0, 1, 1, 1]), "LPS": np.diag([-1.0, -1, 1, 1])}


def write_case(folder: Path, name: str, seed: int, affine: np.ndarray) -> None:
    """Two touching blocks, brighter than a noisy ground and of different brightness."""
    rng = np.random.default_rng(seed)
    label = np.zeros((20, 22, 24), np.uint8)
    i, j, k = rng.integers(4, 8, 3)
    label[i : i + 8, j : j + 6, k : k + 8], label[i : i + 8, j + 6 : j + 12, k : k + 8] = 1, 2
    image = np.choose(label, [100.0, 300.0, 500.0]) + rng.normal(0, 20, label.shape)
    for part, array in (("images", image.astype(np.float32)), ("labels", label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / part / f"{name}.nii.gz")


@pytest.fixture(scope="session")
def phantom_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cases in several orientations, as images/ and labels/."""
    folder = tmp_path_factory.mktemp("cases")
    for number in range(10):
        write_case(folder, f"case_{number}", number, list(AFFINES.values())[number % 3])
    return folder


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """The shipped bundle with a network and a plan that take seconds; without weights."""
    bundle = tmp_path / "small"
    shutil.copytree(SHIPPED / "configs", bundle / "configs")
    shutil.copyfile(SHIPPED / "LICENSE", bundle / "LICENSE")
    window = {"window": [16, 16, 16]}
    inference = bundle / "configs" / "inference.json"
    config = json.loads(inference.read_text()) | window
    config["network_def"] |= {"channels": [8, 16], "strides": [2], "num_res_units": 1}
    inference.write_text(json.dumps(config))
    plan = bundle / "configs" / "train.json"
    short = {"steps": 60, "batch_size": 2, "warmup_steps": 5, "ema_decay": 0.9, "checkpoint_every": 20, "seed": 3}
    config = json.loads(plan.read_text()) | window | short
    config["augment"] |= {"rotation_degrees": 5, "shift_voxels": 3}
    config["optimizer"] |= {"lr": 0.02}
    plan.write_text(json.dumps(config))
    return bundle

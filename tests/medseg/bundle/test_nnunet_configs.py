"""Plans of published models, whose weights are not here: what is built from them, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.bundle.describe import verify
from medseg.bundle.load import load_bundle
from medseg.bundle.network import build_network
from medseg.bundle.nnunet.dataset import read_dataset
from medseg.bundle.nnunet.plans import read_plans
from medseg.bundle.schema import Reader
from medseg.bundle.targets import TARGETS
from medseg.errors import InvalidBundle, WeightsMismatch
from tests.medseg.nnunet_folders import WEIGHTS, checkpoint

DATASET = {"channel_names": {"0": "MRA"}, "labels": {"background": 0, "artery": 1}, "file_ending": ".nii.gz"}


@pytest.fixture(scope="module")
def configs(shared_data: Path) -> Path:
    folder = shared_data / "nnunet_configs"
    if not folder.is_dir():
        pytest.skip("plans of published models are not here")
    return folder


def network_of(plans: Path, configuration: str, dataset: dict[str, Any]) -> torch.nn.Module:
    """The network of a configuration, of shapes alone."""
    about = read_dataset(Reader("model", "dataset.json", dataset))
    network = read_plans(Reader("model", "plans.json", json.loads(plans.read_text())), configuration, about)[1]
    with torch.device("meta"):
        made: torch.nn.Module = TARGETS[network.pop("_target_")].load()(**network)
    return made


@pytest.mark.parametrize(
    ("configuration", "parameters"),
    [("2d", 33471820), ("3d_lowres", 30785994), ("3d_fullres", 31113098), ("3d_cascade_fullres", 31113386)],
)
def test_standard_configurations_are_built(configuration: str, parameters: int, configs: Path) -> None:
    network = network_of(configs / "NexToU_3d_mra/nnUNetPlans.json", configuration, DATASET)
    assert sum(held.numel() for held in network.parameters()) == parameters  # nnU-Net's count


def folder_of(configs: Path, name: str, plans: str, folder: Path, saved: dict[str, Any]) -> Path:
    (folder / "fold_0").mkdir(parents=True)
    shutil.copyfile(configs / name / plans, folder / "plans.json")
    dataset = configs / name / "dataset.json"
    (folder / "dataset.json").write_text(dataset.read_text() if dataset.exists() else json.dumps(DATASET))
    torch.save(saved, folder / WEIGHTS)
    return folder


def test_a_network_of_their_own_is_refused_by_name(configs: Path, tmp_path: Path) -> None:
    """Plans and trainer of NexToU: its plans name a plain U-Net, its trainer builds another network."""
    weights = {"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(33, 1, 3, 3, 3)}
    saved = checkpoint(weights, configuration="3d_fullres_nextou") | {"trainer_name": "nnUNetTrainer_NexToU"}
    folder = folder_of(configs, "NexToU_3d_mra", "nnUNetPlans.json", tmp_path / "model", saved)
    with pytest.raises(WeightsMismatch, match="nnUNetTrainer_NexToU"):
        verify(load_bundle(folder))
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["UNet_class_name"] = "NexToU"
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(InvalidBundle, match="NexToU"):
        load_bundle(folder)


def test_plans_of_pictures_load_with_random_weights(configs: Path, tmp_path: Path) -> None:
    plans = configs / "StenUNet_2d_xa/plans.json"
    dataset = json.loads((configs / "StenUNet_2d_xa/dataset.json").read_text())
    sketch = network_of(plans, "2d", dataset)
    assert sum(held.numel() for held in sketch.parameters()) == 46324558  # nnU-Net's count
    shapes = {name: (tuple(held.shape), id(held)) for name, held in sketch.state_dict(keep_vars=True).items()}
    tensors = {key: torch.rand(shape) / 100 for shape, key in shapes.values()}
    weights = {name: tensors[key] for name, (_, key) in shapes.items()}
    saved = checkpoint(weights, configuration="2d")
    bundle = load_bundle(folder_of(configs, "StenUNet_2d_xa", "plans.json", tmp_path / "model", saved))
    assert bundle.nnunet is not None
    assert (bundle.nnunet.flat, bundle.spatial_dims) == (True, 2)
    assert build_network(bundle).state_dict().keys() == weights.keys()

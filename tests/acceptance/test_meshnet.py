"""MeshNets with the weights of brainchop: a bundle made by `medseg bundles new`, then `medseg infer`."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from medseg.networks import MeshNet
from medseg.networks.meshnet import arguments
from tests.acceptance.conftest import Medseg
from tests.peers import programs

pytestmark = pytest.mark.slow
NAME = "model5_gw_ae"
WHITE, GREY = 1, 2


def dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


@pytest.fixture
def bundle(shared_data: Path, tmp_path: Path, medseg: Medseg) -> Path:
    folder = shared_data / "models" / "meshnet"
    files = ("--weights", folder / f"{NAME}.safetensors", "--architecture", folder / f"{NAME}.json")
    assert medseg("bundles", "new", tmp_path / NAME, "--network", "meshnet", *files).code == 0
    return tmp_path / NAME


def test_tissues_of_mni152(bundle: Path, tmp_path: Path, medseg: Medseg) -> None:
    """Against the template's own tissue maps at 0.5."""
    nilearn = pytest.importorskip("nilearn")
    data = Path(nilearn.__file__).parent / "datasets" / "data"
    ran = medseg(
        "infer", data / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", "--bundle", bundle, "-o", "out", "--json"
    )
    assert ran.code == 0, ran.err
    labels = np.asarray(nibabel.load(tmp_path / ran.records[0]["outputs"]["nifti"]).dataobj)
    for label, tissue, bar in ((WHITE, "wm", 0.80), (GREY, "gm", 0.78)):
        truth = nibabel.load(data / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz").get_fdata() / 255
        assert dice(labels == label, truth >= 0.5) >= bar


def test_a_conformed_head_gets_the_labels_of_the_bare_network(
    shared_data: Path, bundle: Path, tmp_path: Path, medseg: Medseg
) -> None:
    folder = shared_data / "models" / "meshnet"
    path = shared_data / "volumes" / "brainchop_t1" / "t1_crop.nii.gz"
    ran = medseg("infer", path, "--bundle", bundle, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    found = np.asarray(nibabel.load(tmp_path / ran.records[0]["outputs"]["nifti"]).dataobj)
    net = MeshNet(**arguments(json.loads((folder / f"{NAME}.json").read_text("utf-8")))).eval()
    net.load_state_dict(load_file(folder / f"{NAME}.safetensors"))
    head = torch.from_numpy(nibabel.load(path).get_fdata()).float()
    with torch.inference_mode():
        expected = net(((head - head.min()) / (head.max() - head.min()))[None, None])[0].argmax(0).numpy()
    assert (found == expected).mean() > 0.99999


@pytest.mark.peer("dciodvfy")
def test_a_sagittal_series_gets_a_valid_result(shared_data: Path, bundle: Path, tmp_path: Path, medseg: Medseg) -> None:
    ran = medseg("infer", shared_data / "dicom" / "mr_siemens_hfs_t1_sag", "--bundle", bundle, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    white, grey = ran.records[0]["segments"]
    assert white["label"] == "White Matter" and 200 < white["volume_ml"] < 900
    assert grey["label"] == "Grey Matter" and 200 < grey["volume_ml"] < 1500  # slices of 4.8 mm blur it
    assert not programs.dciodvfy(tmp_path / ran.records[0]["outputs"]["seg"])

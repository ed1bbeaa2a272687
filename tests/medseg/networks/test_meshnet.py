from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.networks import MeshNet
from medseg.networks.meshnet import arguments
from tests.medseg.networks.families import count

PYRAMID = (1, 2, 4, 8, 16, 8, 4, 2, 1)
MODELS = (
    "mindgrab",
    "model11_50class",
    "model11_gw_ae",
    "model18cls",
    "model20chan3cls",
    "model21_104class",
    "model30chan18cls",
    "model30chan50cls",
    "model5_gw_ae",
)


def test_parameters_of_the_papers() -> None:
    """21 channels: Fedorov et al. 2017, three tissues; 5, 16 and 26: Fedorov et al. 2025, stroke lesions."""
    first, inner, norm, last = 21 * 27 + 21, 6 * (21 * 21 * 27 + 21), 7 * 2 * 21, 21 * 3 + 3
    assert count(lambda: MeshNet(3, 1, 3)) == first + inner + norm + last == 72_516
    for channels, parameters in ((5, 5_682), (16, 56_194), (26, 147_474)):
        assert count(lambda n=channels: MeshNet(3, 1, 2, channels=n, dilations=PYRAMID)) == parameters


def read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    description = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return description, load_file(folder / f"{name}.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_real_weights_load_strictly_and_compute_what_their_description_says(shared_data: Path, name: str) -> None:
    description, weights = read(shared_data / "models" / "meshnet", name)
    net = MeshNet(**arguments(description)).eval()
    net.load_state_dict(weights, strict=True)
    assert sum(p.numel() for p in net.parameters()) == description["n_params"]

    x = torch.rand(1, 1, 20, 19, 18)
    with torch.no_grad():
        found = net(x)
        assert found.shape == (1, len(description["labels"]), 20, 19, 18)
        torch.testing.assert_close(found, as_described(description, weights)(x), rtol=1e-4, atol=1e-4)


def as_described(description: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The network built word by word from its description, as an oracle."""
    activation = {"relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU}[description["activation"]]
    modules: list[nn.Module] = []
    *hidden, last = description["layers"]
    for i, layer in enumerate((*hidden, last)):
        convolution = nn.Conv3d(**layer)
        convolution.load_state_dict(
            {key: weights[f"layers.{i}.{key}"] for key in ("weight", "bias") if f"layers.{i}.{key}" in weights}
        )
        modules.append(convolution)
        if layer is not last:
            if description["norm_layer"]:
                modules.append(nn.GroupNorm(layer["out_channels"], layer["out_channels"], affine=False))
            modules.append(activation())
    return nn.Sequential(*modules)


def test_real_weights_find_white_and_grey_matter(shared_data: Path) -> None:
    """In the middle of a head all three labels, and white matter the brightest, as in any T1 image."""
    description, weights = read(shared_data / "models" / "meshnet", "model5_gw_ae")
    net = MeshNet(**arguments(description)).eval()
    net.load_state_dict(weights, strict=True)
    image = nibabel.load(shared_data / "volumes" / "brainchop_t1" / "t1_crop.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("L", "I", "A")
    head = torch.from_numpy(image.get_fdata()).float()
    x = ((head - head.min()) / (head.max() - head.min()))[80:176, 80:176, 80:176]
    with torch.no_grad():
        labels = net(x[None, None])[0].argmax(0)
    other, white, grey = (x[labels == n] for n in range(3))
    assert min(len(other), len(white), len(grey)) > 0.1 * x.numel()
    assert white.median() > grey.median() > other.median()


def test_a_bundle_can_hold_the_arguments(shared_data: Path) -> None:
    description, _ = read(shared_data / "models" / "meshnet", "mindgrab")
    found = arguments(description)
    assert json.loads(json.dumps(found)) == found
    assert (found["norm"], found["activation"], found["bias"]) == ("instance", "gelu", False)


GOOD = {
    "activation": "relu",
    "norm_layer": None,
    "layers": [
        {"in_channels": 1, "out_channels": 5, "kernel_size": 3, "padding": 2, "dilation": 2, "bias": True},
        {"in_channels": 5, "out_channels": 5, "kernel_size": 3, "padding": 1, "dilation": 1, "bias": True},
        {"in_channels": 5, "out_channels": 3, "kernel_size": 1, "padding": 0, "dilation": 1, "bias": True},
    ],
}


def test_a_description_becomes_arguments() -> None:
    net = MeshNet(**arguments(GOOD))
    assert [layer.dilation[0] for layer in net.layers] == [2, 1, 1]


@pytest.mark.parametrize(
    ("layer", "change", "says"),
    [
        (0, {"kernel_size": 5}, "layer 0"),
        (1, {"padding": 0}, "layer 1"),
        (1, {"in_channels": 6}, "layer 1"),
        (1, {"bias": False}, "layer 1"),
        (2, {"kernel_size": 3}, "layer 2"),
        (2, {"bias": False}, "layer 2"),
    ],
)
def test_a_description_of_another_network_is_refused(layer: int, change: dict[str, Any], says: str) -> None:
    layers = [dict(each) for each in GOOD["layers"]]  # type: ignore[attr-defined]
    layers[layer].update(change)
    with pytest.raises(UsageError, match=says):
        arguments({**GOOD, "layers": layers})


@pytest.mark.parametrize("change", [{"layers": []}, {"norm_layer": "LayerNorm"}, {"layers": None}])
def test_something_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not the description of a MeshNet"):
        arguments({**GOOD, **change})

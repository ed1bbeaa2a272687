"""New bundles: MONAI's own parser reads them as we do, and they can be trained as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from safetensors.torch import load_file, save_file

from medseg import networks
from medseg.bundle.load import load_bundle
from medseg.bundle.network import build_network, load_network
from medseg.bundle.recipe import ScalePercentiles, ScaleRange
from medseg.bundle.template import FAMILIES, meshnet_bundle, new_bundle
from medseg.errors import UsageError
from medseg.networks import MeshNet
from medseg.training.train import plan_of


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_template_that_can_be_trained(tmp_path: Path, family: str, dims: int) -> None:
    new_bundle(tmp_path / "new", family.lower(), dims, segments=["Liver", "Liver tumour"], modality="CT")
    bundle = load_bundle(tmp_path / "new", trained=False)
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "new/configs/inference.json"))
    with torch.device("meta"):
        ours, monais = build_network(bundle), parser.get_parsed_content("network_def")
    assert type(ours) is type(monais) is getattr(networks, family)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in monais.state_dict().items()}
    assert (bundle.spatial_dims, bundle.in_channels, bundle.out_channels) == (dims, 1, 3)
    assert [segment.label for segment in bundle.segments] == ["Liver", "Liver tumour"]
    assert bundle.recipe.fallback is None
    assert plan_of(bundle).window == bundle.recipe.window.roi


def test_the_modality_decides_how_values_are_scaled(tmp_path: Path) -> None:
    for modality, step in (("CT", ScaleRange), ("MR", ScalePercentiles)):
        new_bundle(tmp_path / modality, "UNet2015", 3, segments=["Liver"], modality=modality)
        bundle = load_bundle(tmp_path / modality, trained=False)
        assert isinstance(bundle.recipe.steps[-1], step)
        assert bundle.expects.modality == (modality,)


def test_what_cannot_be_begun_is_named(tmp_path: Path) -> None:
    new_bundle(tmp_path / "here", "fcn", 2, segments=["Liver"], modality="CT")
    for folder, family, dims, segments, modality, named in (
        ("here", "fcn", 2, ["Liver"], "CT", "there already"),
        ("new", "alexnet", 2, ["Liver"], "CT", "deeplabv3plus"),
        ("new", "fcn", 4, ["Liver"], "CT", "2 or 3"),
        ("new", "fcn", 2, [" "], "CT", "segment"),
        ("new", "fcn", 2, ["Liver"], "XA", "XA"),
    ):
        with pytest.raises(UsageError, match=named):
            new_bundle(tmp_path / folder, family, dims, segments=segments, modality=modality)
    assert not (tmp_path / "new").exists()


def described(network: MeshNet, **changed: object) -> dict[str, object]:
    """As brainchop describes its networks."""
    layers = [
        {
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "kernel_size": layer.kernel_size[0],
            "padding": layer.padding[0],
            "dilation": layer.dilation[0],
            "bias": layer.bias is not None,
        }
        for layer in network.layers
    ]
    source = {"shape": [32, 32, 32], "spacing_mm": [1, 1, 1], "orientation": "LIA (conformed)"}
    intensity = {"type": "quantile", "low": 0.05, "high": 0.95, "clip": [0, 1]}
    labels = {"0": "background", "1": "White Matter", "2": "Grey Matter"}
    about = {"layers": layers, "activation": "relu", "norm_layer": None, "labels": labels}
    return about | {"input": source | {"intensity": intensity}} | changed


def test_a_trained_meshnet_becomes_a_bundle(tmp_path: Path) -> None:
    network = MeshNet(3, 1, 3, channels=4, dilations=(1, 2, 1), norm=None)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(json.dumps(described(network)))
    meshnet_bundle(tmp_path / "bundle", tmp_path / "net.safetensors", tmp_path / "net.json")
    bundle = load_bundle(tmp_path / "bundle")
    loaded = load_network(bundle, torch.device("cpu"))
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in load_file(tmp_path / "net.safetensors").items())
    assert bundle.recipe.window.roi == (32, 32, 32)
    assert ScalePercentiles(5, 95, 0, 1, clip=True) in bundle.recipe.steps
    assert [segment.label for segment in bundle.segments] == ["White Matter", "Grey Matter"]


@pytest.mark.parametrize(
    "changed", [{"labels": {"1": "no background"}}, {"input": {}}, {"norm_layer": "BatchNorm"}, {"layers": []}]
)
def test_what_is_not_a_meshnet_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    network = MeshNet(3, 1, 3, channels=4, dilations=(1, 2, 1), norm=None)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(json.dumps(described(network, **changed)))
    with pytest.raises(UsageError, match="MeshNet"):
        meshnet_bundle(tmp_path / "bundle", tmp_path / "net.safetensors", tmp_path / "net.json")
    assert not (tmp_path / "bundle").exists()

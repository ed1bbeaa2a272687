"""Weights and the network they belong to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from medseg.bundle.load import load_bundle
from medseg.bundle.network import build_network, load_network
from medseg.bundle.targets import TARGETS, Role
from medseg.errors import InvalidBundle, WeightsMismatch
from tests.medseg.bundle import zoo

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return zoo.spleen_like(tmp_path / "spleen")


def state(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "models/model.pt", weights_only=True)
    return weights


def test_both_formats_give_the_same_network_in_eval_mode(folder: Path) -> None:
    patch = torch.rand(1, 1, 16, 16, 16)
    from_pt = load_network(load_bundle(folder), CPU)
    torch.save({"epoch": 3, "model": state(folder)}, folder / "models/model.pt")  # a training checkpoint
    from_checkpoint = load_network(load_bundle(folder), CPU)
    save_file(state(folder)["model"], folder / "models/model.safetensors")  # type: ignore[arg-type]
    bundle = load_bundle(folder)
    assert bundle.weights.name == "model.safetensors"
    from_safetensors = load_network(bundle, CPU)
    assert not from_pt.training
    with torch.inference_mode():
        assert torch.equal(from_pt(patch), from_safetensors(patch))
        assert torch.equal(from_pt(patch), from_checkpoint(patch))


def test_flips_and_members_are_averaged_before_activation(folder: Path) -> None:
    """Against each look at the window on its own: two sets of weights, mirrored along x, z, and both."""
    bundle = load_bundle(folder)
    first = load_network(bundle, CPU)
    second = build_network(bundle).eval()
    save_file(second.state_dict(), folder / "models/second.safetensors")
    both = load_network(replace(bundle, flips=(0, 2), members=(folder / "models/second.safetensors",)), CPU)
    assert not both.training
    patch = torch.rand(2, 1, 16, 16, 16)
    with torch.inference_mode():
        looks = [
            torch.flip(network(torch.flip(patch, dims)), dims)
            for network in (first, second)
            for dims in ([], [2], [4], [2, 4])
        ]
        for together in (1, 3, 4):
            assert torch.allclose(both(patch, together), torch.stack(looks).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("model.0.conv.unit0.conv.weight"), "missing: model.0.conv.unit0.conv.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "not in the network: extra"),
        (
            lambda weights: weights.update({"model.0.conv.unit0.conv.bias": torch.zeros(5)}),
            "of another shape: model.0.conv.unit0.conv.bias (5, expected 4)",
        ),
    ],
)
def test_a_mismatch_is_named(folder: Path, change: Any, words: str) -> None:
    weights = state(folder)
    change(weights)
    torch.save(weights, folder / "models/model.pt")
    with pytest.raises(WeightsMismatch) as error:
        load_network(load_bundle(folder), CPU)
    assert words in str(error.value)


def test_a_network_too_large_for_any_machine_is_compared_before_it_is_made(folder: Path) -> None:
    zoo.rewrite(folder, lambda content: content["network_def"].update(channels=[200_000, 400_000, 800_000]))
    with pytest.raises(WeightsMismatch, match="expected 200000"):
        load_network(load_bundle(folder), CPU)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 100, b"\x80\x02}q\x00."])
def test_damaged_weights(folder: Path, content: bytes) -> None:
    (folder / "models/model.pt").write_bytes(content)
    with pytest.raises((InvalidBundle, WeightsMismatch)) as error:
        load_network(load_bundle(folder), CPU)
    assert "spleen" in str(error.value)
    (folder / "models/model.safetensors").write_bytes(content)
    with pytest.raises(InvalidBundle, match="not a safetensors file"):
        load_network(load_bundle(folder), CPU)


def test_weights_cut_short(folder: Path) -> None:
    file = folder / "models/model.pt"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(InvalidBundle, match=r"models/model\.pt"):
        load_network(load_bundle(folder), CPU)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": [4]}, "cannot be made"),
        ({"colour": "red"}, "cannot be made"),
        ({"norm": "no such norm"}, "cannot be made"),
    ],
)
def test_arguments_that_the_network_refuses(folder: Path, change: dict[str, Any], words: str) -> None:
    zoo.rewrite(folder, lambda content: content["network_def"].update(change))
    with pytest.raises(InvalidBundle, match=words) as error:
        load_network(load_bundle(folder), CPU)
    assert error.value.key == "network_def"


def test_a_class_that_the_installed_monai_lacks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import monai.networks.nets.unet

    monkeypatch.delattr(monai.networks.nets.unet, "UNet")
    with pytest.raises(InvalidBundle, match="UNet is not in MONAI"):
        build_network(load_bundle(folder))


def test_a_package_that_the_network_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(zoo.swin_like(tmp_path / "swin"))
    monkeypatch.setattr("medseg.bundle.network.find_spec", lambda name: None)
    with pytest.raises(InvalidBundle, match="pip install einops"):
        build_network(bundle)


def test_nothing_is_fetched_for_a_pretrained_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("the network was asked for weights")

    monkeypatch.setattr("socket.socket.connect", refuse)
    flexible = {"_target_": "FlexibleUNet", "in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}
    zoo.rewrite(folder, lambda content: content.update(network_def={**flexible, "pretrained": True}))
    zoo.rewrite(folder, lambda content: content["inferer"].update(roi_size=[32, 32]))
    bundle = load_bundle(folder)
    assert bundle.spatial_dims == 2
    assert build_network(bundle).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_every_name_in_the_table_is_a_class_of_its_kind() -> None:
    """MONAI's own locator gives the same class for a short name."""
    import monai.inferers
    import monai.transforms
    from monai.bundle import ComponentLocator

    locator = ComponentLocator(excludes=["monai.bundle"])
    bases = {
        Role.NETWORK: torch.nn.Module,
        Role.TRANSFORM: monai.transforms.Transform,
        Role.INFERER: monai.inferers.Inferer,
    }
    for name, target in TARGETS.items():
        found = target.load()
        if isinstance(found, type):  # MedNeXtSmall and its like are functions that make a network
            assert issubclass(found, bases[target.role])
        if "." not in name:
            module = locator.get_component_module_name(name)
            assert target.module in ([module] if isinstance(module, str) else module or ())

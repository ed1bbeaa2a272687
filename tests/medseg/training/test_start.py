"""A training goes on from the weights that its plan names, and from no others."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from safetensors.torch import save_file
from torch import nn

from medseg.bundle.bundle import Bundle
from medseg.bundle.channels import by_names
from medseg.bundle.inferers import neighbours
from medseg.bundle.load import load_bundle
from medseg.training.start import WrongStart, started


def network(channels: int, seed: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(2, channels, 2, (4, 8), (2,), num_res_units=1, norm="INSTANCE").eval()


@pytest.fixture
def bundle(small_bundle: Path) -> Bundle:
    return load_bundle(small_bundle, trained=False)


def saved(some: nn.Module, folder: Path) -> tuple[str, Path]:
    save_file(some.state_dict(), folder / "start.safetensors")
    return hashlib.sha256((folder / "start.safetensors").read_bytes()).hexdigest(), folder / "start.safetensors"


def test_what_it_saw_it_sees_among_other_images(bundle: Bundle, tmp_path: Path) -> None:
    """Three slices of FLAIR as they were; whatever the other images show, nothing is made of it yet."""
    alone = network(3, seed=0)
    bundle = replace(bundle, channels=replace(by_names(["T1", "FLAIR", "T1ce"]), reference="FLAIR"))
    wide = started(network(9, seed=1), bundle, *saved(alone, tmp_path))
    volume = torch.randn((1, 3, 16, 16, 5), generator=torch.Generator().manual_seed(2))
    of_all, of_flair = neighbours(volume, 4, 3)[..., 2], neighbours(volume[:, 1:2], 4, 3)[..., 2]
    with torch.no_grad():
        torch.testing.assert_close(wide(of_all), alone(of_flair))


def test_by_chance_where_the_plan_names_none(bundle: Bundle, tmp_path: Path) -> None:
    some = network(3, seed=0)
    assert started(some, bundle, None, None) is some
    with pytest.raises(WrongStart, match="by chance"):
        started(some, bundle, None, tmp_path / "any")


def test_other_weights_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    digest, file = saved(network(3, seed=0), tmp_path)
    for wanted, given, why in (
        (digest, None, f"SHA-256 {digest}, none"),
        (digest, tmp_path / "nowhere", "no file"),
        ("0" * 64, file, f"found {digest}"),
    ):
        with pytest.raises(WrongStart, match=why):
            started(network(3, seed=1), bundle, wanted, given)
    with pytest.raises(WrongStart, match="not of this network"):
        started(network(5, seed=1), bundle, digest, file)
    torch.save({}, file)
    with pytest.raises(WrongStart, match="not of this network"):
        started(network(3, seed=1), bundle, hashlib.sha256(file.read_bytes()).hexdigest(), file)

"""`--trust-bundle`: MONAI's parser runs what the safe reader refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.bundle.load import load_bundle
from medseg.bundle.network import load_network
from medseg.bundle.transforms import monai_transforms
from medseg.errors import InvalidBundle
from tests.medseg.bundle import zoo

CPU = torch.device("cpu")

SCRIPT = """
from monai.networks.nets import UNet

class Net(UNet):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A bundle with its own network class, a Lambda in its preprocessing and code in its window."""

    def change(content: dict[str, Any]) -> None:
        content["imports"].append("$import trusted_scripts.net")
        content["network_def"]["_target_"] = "trusted_scripts.net.Net"
        content["preprocessing"]["transforms"].append(
            {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x * 2"}
        )
        content["preprocessing"]["transforms"][0].pop("reader", None)
        content["inferer"]["roi_size"] = "$[int(16 * abs(-1))] * 3"

    made = zoo.rewrite(zoo.spleen_like(tmp_path / "own"), change)
    (made / "trusted_scripts").mkdir()
    (made / "trusted_scripts/net.py").write_text(SCRIPT)
    before = list(sys.path)
    yield made
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("trusted_scripts")]:
        del sys.modules[name]


def test_refused_unless_trusted(folder: Path) -> None:
    with pytest.raises(InvalidBundle) as error:
        load_bundle(folder)
    assert error.value.key == "network_def::_target_"


def test_trusted_code_runs(folder: Path) -> None:
    bundle = load_bundle(folder, trust=True)
    assert bundle.trusted
    assert (bundle.in_channels, bundle.out_channels, bundle.recipe.window.roi) == (1, 2, (16, 16, 16))
    assert bundle.recipe.fallback is not None
    network = load_network(bundle, CPU)
    assert type(network).__name__ == "Net"
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_trusted_transforms_go_there_and_back(folder: Path) -> None:
    from monai.data import MetaTensor

    before, after = monai_transforms(load_bundle(folder, trust=True), CPU)
    image = MetaTensor(torch.full((1, 10, 12, 8), 164.0), affine=torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0])))
    data = before({"image": image})
    assert float(data["image"].max()) == pytest.approx(2)  # the Lambda doubled it
    data["pred"] = MetaTensor(torch.rand(2, *data["image"].shape[1:]), affine=data["image"].affine)
    assert after(data)["pred"].shape == (1, 10, 12, 8)


def test_trust_changes_nothing_where_none_is_needed(tmp_path: Path) -> None:
    folder = zoo.spleen_like(tmp_path / "plain")
    plain, trusted = load_bundle(folder), load_bundle(folder, trust=True)
    assert not trusted.trusted
    assert (plain.digest, plain.recipe) == (trusted.digest, trusted.recipe)


def test_the_digest_of_trusted_code_covers_it(folder: Path) -> None:
    first = load_bundle(folder, trust=True).digest
    (folder / "trusted_scripts/net.py").write_text(SCRIPT + "\nx = 1\n")
    assert load_bundle(folder, trust=True).digest != first

"""Recipes that only MONAI carries out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CropForegroundd,
    Invertd,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from numpy.typing import NDArray

from medseg.bundle.load import load_bundle
from medseg.bundle.network import load_network
from medseg.bundle.recipe import Recipe, Resample
from medseg.dicom.series import StackSource
from medseg.errors import InvalidBundle
from medseg.inference.fallback import reason_for_fallback
from medseg.inference.segment import segment
from tests.medseg.bundle import zoo
from tests.medseg.inference.phantoms import SOFTMAX, WINDOW, Collected, as_monai, blobs, make_stack

CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "margin": 2}


def with_crop(config: dict[str, Any]) -> None:
    config["preprocessing"]["transforms"].append(CROP)


@pytest.fixture
def image() -> NDArray[np.float32]:
    array = blobs((16, 40, 36))
    array[:, :12] = -500.0  # a rim that is cropped away
    return array


@pytest.mark.parametrize("discretises", [True, False])
def test_an_unknown_step_runs_through_monai(discretises: bool, image: NDArray[np.float32], tmp_path: Path) -> None:
    folder = zoo.rewrite(zoo.spleen_like(tmp_path / "bundle", window=(16, 16, 16)), with_crop)
    if not discretises:
        zoo.rewrite(folder, lambda config: config["postprocessing"]["transforms"].pop(2))
    bundle = load_bundle(folder)
    stack = make_stack(image)
    sink = Collected()
    result = segment(StackSource(stack), bundle, sink)
    assert not result.streamed
    assert "CropForegroundd" in result.streamed_reason

    before = Compose(
        [
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (1.5, 1.5, 2.0)),
            ScaleIntensityRanged("image", -57, 164, 0, 1, clip=True),
            CropForegroundd("image", "image", margin=2),
        ]
    )
    data = before({"image": as_monai(image, stack)})
    assert data["image"].shape[2] < 30  # the crop has cropped
    with torch.no_grad():
        network = load_network(bundle, torch.device("cpu"))
        data["pred"] = SlidingWindowInferer((16, 16, 16), 4, 0.5)(data["image"][None], network)[0]
    invert = Invertd("pred", before, "image", nearest_interp=False)
    after = Compose([Activationsd("pred", softmax=True), invert, AsDiscreted("pred", argmax=True)])
    expected = after(data)["pred"].as_tensor()[0].permute(2, 1, 0).numpy()
    assert len(np.unique(expected)) > 1
    assert (sink.labels == expected).mean() >= 0.9999
    assert all(found.confidence is None or found.confidence > 0.5 for found in result.measured)


def test_a_bridged_gap_is_left_out_of_the_fallbacks_labels(image: NDArray[np.float32], tmp_path: Path) -> None:
    folder = zoo.rewrite(zoo.spleen_like(tmp_path / "bundle", window=(16, 16, 16)), with_crop)
    kept = np.delete(np.arange(16.0), 7)
    sink = Collected()
    stack = make_stack(image[kept.astype(int)], coordinates=kept)
    segment(StackSource(stack), load_bundle(folder), sink)
    assert sink.labels.shape == (15, 40, 36)


def test_what_monai_cannot_apply_names_the_bundle(image: NDArray[np.float32], tmp_path: Path) -> None:
    """A crop smaller than nothing: the image has no foreground."""
    folder = zoo.spleen_like(tmp_path / "bundle", window=(16, 16, 16))
    transposed = {"_target_": "Transposed", "keys": "image", "indices": [0, 1, 2, 3, 4]}
    zoo.rewrite(folder, lambda config: config["preprocessing"]["transforms"].append(transposed))
    with pytest.raises(InvalidBundle, match="preprocessing"):
        segment(StackSource(make_stack(image)), load_bundle(folder), Collected())


def test_two_resampling_steps_are_left_to_monai() -> None:
    once = Recipe((Resample((1.0, 1.0, 1.0)),), WINDOW, SOFTMAX)
    twice = Recipe((Resample((1.0, 1.0, 1.0)), Resample((2.0, 2.0, 2.0))), WINDOW, SOFTMAX)
    assert reason_for_fallback(once) is None
    assert reason_for_fallback(twice) == "the recipe resamples twice"

"""What a 2D network learns from: slices of volumes, with their neighbours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg.bundle.load import load_bundle
from medseg.bundle.network import build_network
from medseg.bundle.recipe import Normalize, Step
from medseg.training.augment import Augmentation
from medseg.training.batches import draw, make_batch
from medseg.training.evaluate import evaluate
from medseg.training.plan import SliceDraw, make_plan
from medseg.training.prepare import Sample, SliceStack, intensity, slice_stack
from medseg.training.scores import WHOLE
from medseg.training.train import plan_of, train

STEPS: tuple[Step, ...] = (Normalize(),)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volume() -> Sample:
    """8 x 10 x 6 voxels; slices 2 and 3 along the last axis hold a label."""
    image = torch.randn((1, 8, 10, 6), generator=generator()) * 40 + 300
    label = torch.zeros((8, 10, 6), dtype=torch.uint8)
    label[2:5, 3:7, 2:4] = 1
    return Sample(image, label)


def stack(slices: int = 3) -> SliceStack:
    return slice_stack(volume(), intensity(STEPS), 2, slices)


def seen(found: SliceStack, image: torch.Tensor) -> torch.Tensor:
    return found.darkest + found.contrast * image


def test_slices_are_prepared_with_the_statistics_of_the_whole_volume() -> None:
    found, sample = stack(), volume()
    expected = (sample.image - sample.image.mean()) / sample.image.std(correction=0)
    torch.testing.assert_close(seen(found, found.image), expected.movedim(3, 0))
    assert (float(found.image.min()), float(found.image.max())) == (0, 1)
    assert torch.equal(found.label, sample.label.movedim(2, 0))
    assert found.labelled == (2, 3)


def test_neighbours_repeat_the_edge() -> None:
    found = stack(5)
    for seed in range(20):
        image, label = draw(found, SliceDraw(), generator(seed))
        k = next(n for n in range(6) if torch.equal(found.image[n, 0], image[2]))
        expected = [found.image[min(max(k + away, 0), 5), 0] for away in range(-2, 3)]
        assert torch.equal(image, torch.stack(expected))
        assert torch.equal(label, found.label[k])


def test_slices_with_a_label_are_drawn_as_often_as_asked() -> None:
    found = stack()
    often = [bool(draw(found, SliceDraw(labelled=0.6), generator(seed))[1].any()) for seed in range(600)]
    assert sum(often) / 600 == pytest.approx(0.6 + 0.4 * 2 / 6, abs=0.06)
    empty = replace(found, label=torch.zeros_like(found.label), labelled=())
    assert not draw(empty, SliceDraw(labelled=1.0), generator())[1].any()


def test_neighbours_stand_in_for_other_spacings() -> None:
    found = stack()
    alone, _ = draw(found, SliceDraw(alone=1.0), generator(4))
    assert torch.equal(alone[0], alone[1])
    assert torch.equal(alone[2], alone[1])
    half, _ = draw(found, SliceDraw(labelled=1.0, step=(0.5, 0.5)), generator(4))
    k = next(n for n in found.labelled if torch.equal(half[1], found.image[n, 0]))
    torch.testing.assert_close(half[0], (found.image[k - 1, 0] + found.image[k, 0]) / 2)
    torch.testing.assert_close(half[2], (found.image[k + 1, 0] + found.image[k, 0]) / 2)


def test_a_batch_without_augmentation_is_what_inference_sees() -> None:
    config = {
        "seed": 1,
        "steps": 1,
        "batch_size": 4,
        "window": [8, 10],
        "loss": {"_target_": "DiceLoss"},
        "optimizer": {"_target_": "SGD", "lr": 1.0},
        "slices": {"labelled": 0.5},
    }
    plan = replace(make_plan(config), augment=Augmentation())
    images, labels = make_batch([stack()], 2, intensity(STEPS), plan, 0)
    assert (images.shape, labels.shape) == ((4, 3, 8, 10), (4, 1, 8, 10))
    prepared, truth = intensity(STEPS)(volume().image)[0].movedim(2, 0), volume().label.movedim(2, 0)
    for image, label in zip(images, labels, strict=True):
        k = int((prepared - image[1]).abs().flatten(1).amax(dim=1).argmin())
        torch.testing.assert_close(image[1], prepared[k], atol=1e-4, rtol=0)
        assert torch.equal(label[0], truth[k].long())


def test_a_25d_bundle_learns_and_segments(small_bundle: Path, phantom_cases: Path, tmp_path: Path) -> None:
    """A network of two dimensions that sees three slices: trained on slices, scored as a volume."""
    inference = small_bundle / "configs" / "inference.json"
    config = json.loads(inference.read_text())
    config["network_def"] |= {"spatial_dims": 2, "in_channels": 3}
    config["inferer"] |= {"_target_": "medseg.bundle.inferers.SliceStackInferer", "slices": 3, "spatial_dim": 2}
    config["inferer"] |= {"roi_size": [16, 16]}
    inference.write_text(json.dumps(config))
    path = small_bundle / "configs" / "train.json"
    changes = {"window": [16, 16], "batch_size": 8, "steps": 50, "slices": {"labelled": 0.5, "step": [0.5, 1.5]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    loaded = load_bundle(small_bundle, trained=False)
    assert (loaded.in_channels, loaded.image_channels) == (3, 1)
    torch.manual_seed(0)
    train(loaded, phantom_cases, build_network(loaded), plan_of(loaded), out=tmp_path / "trained")
    found = evaluate(load_bundle(tmp_path / "trained"), phantom_cases)
    assert min(case[WHOLE].dice for case in found.cases.values()) > 0.8

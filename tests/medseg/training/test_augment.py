"""Random variants stay what they were: image and label move together, tissues keep their order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.training import augment
from medseg.training.augment import Augmentation
from tests.examples import SAME_IN_EVERY_RUN

STRONG = Augmentation(
    flip_axes=(0,),
    rotation_degrees=20,
    scale=0.2,
    stretch=0.1,
    shift_voxels=4,
    warp_voxels=1.5,
    clip=0.01,
    gamma=0.4,
    curve=0.4,
    bias=0.3,
    blur_voxels=0.8,
    coarse=1.5,
    noise=0.05,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block(dims: int, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright block off the middle with its label, (1, *S) and (*S)."""
    label = torch.zeros([size] * dims, dtype=torch.uint8)
    label[(slice(5, 13), slice(8, 18), slice(9, 15))[:dims]] = 1
    return label[None].float() * 100 + 20, label


@pytest.mark.parametrize("dims", [2, 3])
def test_nothing_asked_changes_nothing(dims: int) -> None:
    image, label = block(dims)
    cut, cut_label = augment.place(image, label, 2, label.shape, Augmentation(), generator())
    assert torch.equal(cut_label, label.long())
    torch.testing.assert_close(cut, image, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
@settings(SAME_IN_EVERY_RUN, max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_label_follows_the_image(dims: int, seed: int) -> None:
    image, label = block(dims)
    cut, cut_label = augment.place(image, label, 2, [28] * dims, replace(STRONG, shift_voxels=2), generator(seed))
    bright = cut[0] > 70
    agree = 2 * (bright & (cut_label == 1)).sum() / (bright.sum() + (cut_label == 1).sum())
    assert agree > 0.9


def test_flip_is_a_mirror() -> None:
    image, label = block(3)
    how = Augmentation(flip_axes=(0,))
    flips = [augment.place(image, label, 2, label.shape, how, generator(seed))[1] for seed in range(8)]
    straight = [torch.equal(flip, label.long()) for flip in flips]
    mirrored = [torch.equal(flip, label.long().flip(0)) for flip in flips]
    assert any(straight)
    assert any(mirrored)
    assert all(a != b for a, b in zip(straight, mirrored, strict=True))


def test_outside_is_background() -> None:
    image, label = block(3)
    label[:] = 1
    _, cut_label = augment.place(image, label, 2, (48, 24, 24), Augmentation(), generator())
    assert cut_label[24].all()
    assert not cut_label[:8].any()
    assert not cut_label[-8:].any()


def test_centred_on_the_foreground() -> None:
    label = torch.zeros((60, 60, 60), dtype=torch.uint8)
    label[50, 4, 30] = 1
    centre = augment.centre(label, (8, 8, 8), Augmentation(foreground=1.0), generator())
    assert centre.tolist() == [50, 4, 30]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_rescan_keeps_shape_and_range(dims: int, scale: float) -> None:
    image = torch.rand([1] + [20] * dims, generator=generator(3)) * scale
    for seed in range(10):
        again = augment.rescan(image, STRONG, generator(seed))
        assert again.shape == image.shape
        assert torch.isfinite(again).all()
        assert -0.5 < float(again.mean()) < 2


def test_constant_image_stays_finite() -> None:
    assert torch.isfinite(augment.rescan(torch.full((1, 9, 9, 9), 7.0), STRONG, generator())).all()


def test_curve_is_monotone() -> None:
    ramp = torch.linspace(0, 1, 200)
    bent = augment.bend(ramp, 0.5, generator())
    assert (bent.diff() >= 0).all()
    assert bent[0] == 0
    assert float(bent[-1]) == pytest.approx(1, abs=1e-5)


def test_blur_keeps_the_mean() -> None:
    point = torch.zeros((1, 15, 15, 15))
    point[0, 7, 7, 7] = 1
    spread = augment.blur(point, 1.0)
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float(spread.max()) < 0.1


def test_same_seed_same_variant() -> None:
    image, label = block(3)
    a, b = (augment.place(image, label, 2, (20, 20, 20), STRONG, generator(5)) for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])

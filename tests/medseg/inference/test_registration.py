"""Images that lie on each other, and images that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medseg.dicom.series import ChannelImage, Stack
from medseg.inference.labels import Flag
from medseg.inference.registration import LikelyRegistration, alike
from tests.medseg.inference.phantoms import make_stack

SPACING = (4.0, 2.0, 2.0)


def anatomy(seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(26, 48, 44))
    return ndimage.gaussian_filter(noise, (2, 4, 4)).astype(np.float32)


def flags(one: NDArray[np.float32], other: NDArray[np.float32] | None, *, backwards: bool = False) -> list[Flag]:
    stack = make_stack(one, spacing_mm=SPACING)
    beside: Stack | None = None if other is None else make_stack(other, spacing_mm=SPACING)
    stack = replace(stack, channels=(ChannelImage("T1", stack), ChannelImage("FLAIR", beside)))
    found = LikelyRegistration(stack)
    numbers = range(len(one))
    for k in reversed(numbers) if backwards else numbers:
        found.add(k, (one[k], np.zeros_like(one[k]) if other is None else other[k]))
    return list(found.flags())


def of_another_contrast(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.abs(image - np.percentile(image, 40)).astype(np.float32)


def test_another_contrast_of_the_same_is_no_doubt() -> None:
    assert not flags(anatomy(0), of_another_contrast(anatomy(0)))


@pytest.mark.parametrize("axis", range(3))
def test_an_image_that_has_moved_is_doubted(axis: int) -> None:
    by = [0.0, 0.0, 0.0]
    by[axis] = 10 / SPACING[axis]
    moved = ndimage.shift(of_another_contrast(anatomy(0)), by, order=1, mode="nearest")
    (flag,) = flags(anatomy(0), moved)
    assert flag.code == "registration_doubtful"
    assert "channel FLAIR may not lie on channel T1" in flag.message
    assert flags(anatomy(0), moved, backwards=True) == [flag]


@pytest.mark.parametrize("other", [None, np.zeros((26, 48, 44), np.float32)], ids=["absent", "flat"])
def test_nothing_is_said_where_nothing_can_be_told(other: NDArray[np.float32] | None) -> None:
    assert not flags(anatomy(0), other)


def test_images_that_are_too_small_are_left_alone() -> None:
    for size in (8, 1):
        assert not flags(anatomy(0)[:3, :size, :size], anatomy(1)[:3, :size, :size])


def test_slices_that_never_passed_count_for_nothing() -> None:
    one = anatomy(0)
    stack = make_stack(one, spacing_mm=SPACING)
    stack = replace(stack, channels=(ChannelImage("a", stack), ChannelImage("b", make_stack(one, spacing_mm=SPACING))))
    assert not list(LikelyRegistration(stack).flags())


def test_alike_is_mutual_information() -> None:
    one = np.random.default_rng(0).integers(0, 4, 10_000)
    assert alike(one, one) == pytest.approx(np.log(4), abs=1e-3)
    assert alike(one, np.roll(one, 1)) < 1e-2

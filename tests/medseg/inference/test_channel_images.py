"""Planes of a channel's image, however the reference asks for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.series import Stack
from medseg.errors import OutputNotWritable
from medseg.inference.arriving.decoding import Decoder
from medseg.inference.channel_images import ImagePlanes, Sections, nearest_axis
from medseg.inference.grids.prepare import uniform
from tests.medseg.inference.phantoms import make_stack


class Context:
    """What planes ask of a `PipelineContext`."""

    def __init__(self) -> None:
        self.decoder, self.warnings = Decoder(), list[str]()
        self.cancelled = bool
        self.warn = self.warnings.append


def image(*, gap: bool, read: Counter[int]) -> Stack:
    stack = make_stack(np.random.default_rng(0).normal(size=(20, 6, 5)).astype(np.float32))
    slices = [counted(slice_, k, read) for k, slice_ in enumerate(stack.slices)]
    kept = [k for k in range(20) if not (gap and k in (4, 11))]
    coordinates = np.array(kept, dtype=float)
    return replace(stack, slices=tuple(slices[k] for k in kept), coordinates=coordinates)


def counted(slice_: Slice, k: int, read: Counter[int]) -> Slice:
    def count() -> Pixels:
        read[k] += 1
        return slice_.read()

    return replace(slice_, read=count)


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_planes_are_those_of_the_uniform_volume(gap: bool, backwards: bool) -> None:
    read: Counter[int] = Counter()
    stack = image(gap=gap, read=read)
    whole = uniform(torch.from_numpy(np.stack([one.read() for one in stack.slices]))[None], stack.coordinates)
    read.clear()
    planes = ImagePlanes(Context(), "T1", stack, backwards=backwards)  # type: ignore[arg-type]
    places = [(low, min(low + 2, 19)) for low in range(20)]
    for low, high in reversed(places) if backwards else places:
        assert torch.equal(planes.slab(low, high), whole[:, low : high + 1])
    assert set(read.values()) == {1}


@pytest.mark.parametrize("axis", [1, 2])
def test_sections_go_across_the_slices(axis: int) -> None:
    read: Counter[int] = Counter()
    stack = image(gap=False, read=read)
    expected = np.moveaxis(np.stack([one.read() for one in stack.slices]), axis, 0)
    read.clear()
    sections = Sections(ImagePlanes(Context(), "T1", stack), axis)  # type: ignore[arg-type]
    assert sections.shape == expected.shape
    for low, high in ((3, 3), (1, 4), (0, 0)):
        assert np.array_equal(sections.slab(low, high)[0].numpy(), expected[low : high + 1])
    assert set(read.values()) == {1}


def test_sections_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    sections = Sections(ImagePlanes(Context(), "T1", image(gap=False, read=Counter())), 1)  # type: ignore[arg-type]
    with pytest.raises(OutputNotWritable, match="No space left on device, for an image whose slices lie across"):
        sections.slab(0, 0)


def test_least_of_an_image_is_at_hand() -> None:
    stack = image(gap=False, read=Counter())
    for axis in range(3):
        matrix = np.eye(4)[[*np.roll([0, 1, 2], axis), 3]]  # the reference's slices count along that axis
        assert nearest_axis(matrix, (20, 20), stack) == axis

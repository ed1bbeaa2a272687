"""Slices known to be missing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.complete.decision import lacks_slices
from gateway.complete.events import (
    Image,
)


@pytest.mark.parametrize(
    ("positions", "missing"),
    [
        ([], False),
        ([5.0], False),
        ([0, 10], False),
        ([0, 2, 4, 6], False),
        ([0, 2, 6, 8], True),
        ([6, 0, 8, 2], True),
        ([0, 2, 4.2, 6.1], False),  # within what is resampled
        ([0, 4, 8, 12, 6], True),  # interleaved, the second half has begun
        ([0, 2, 4, 0, 2, 4], False),  # two phases
        ([0, 2, 4, 0, 2], True),  # the second of them not whole
        ([0, 0.001, 2, 2.001], False),
        ([3, 3, 3], False),
        ([-4, -2, 0, 6], True),
    ],
)
def test_missing_slices(positions: list[float], missing: bool) -> None:
    assert lacks_slices([Image("", "axial", at_mm) for at_mm in positions]) is missing


def test_orientations_are_looked_at_by_themselves() -> None:
    axial = [Image("", "axial", at_mm) for at_mm in (0, 2, 4)]
    sagittal = [Image("", "sagittal", at_mm) for at_mm in (1, 51, 101)]
    assert not lacks_slices([*axial, *sagittal, Image("", "", None)])
    assert lacks_slices([*axial, *sagittal, Image("", "sagittal", 251)])


@hypothesis_settings(deadline=None)
@given(st.integers(1, 40), st.floats(0.3, 20), st.floats(-500, 500), st.randoms(use_true_random=False))
def test_no_prefix_in_order_lacks_a_slice_and_every_inner_hole_does(
    number: int, spacing_mm: float, first_mm: float, order: random.Random
) -> None:
    images = [Image("", "axial", first_mm + k * spacing_mm) for k in range(number + 3)]
    assert not lacks_slices(images[:number])
    hole = order.randrange(1, len(images) - 1)
    holed = images[:hole] + images[hole + 1 :]
    order.shuffle(holed)
    assert lacks_slices(holed) is (len(holed) > 2)

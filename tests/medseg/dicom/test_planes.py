"""Planes by the normal of an image, whichever way it is turned."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medseg.dicom.planes import OBLIQUE_DEG, plane


def turned(degrees: float, axis: int = 0, start: str = "axial") -> list[str]:
    """The orientation of a plane, turned about an axis of the patient."""
    rows = {"axial": ([1, 0, 0], [0, 1, 0]), "sagittal": ([0, 1, 0], [0, 0, -1]), "coronal": ([1, 0, 0], [0, 0, -1])}
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    turn[first, first] = turn[second, second] = cos
    turn[first, second], turn[second, first] = -sin, sin
    return [str(float(f"{part:.6g}")) for direction in rows[start] for part in turn @ np.array(direction)]


@pytest.mark.parametrize("start", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [-44, -26, -24, 0, 10, 24, 26, 44])
def test_planes_are_named_by_their_normal(start: str, axis: int, degrees: float) -> None:
    normal = {"axial": 2, "sagittal": 0, "coronal": 1}[start]
    oblique = abs(degrees) > OBLIQUE_DEG and axis != normal  # a turn about the normal stays in the plane
    assert plane(list(map(float, turned(degrees, axis, start)))) == ("oblique" if oblique else start)


@pytest.mark.parametrize(
    "orientation",
    [(), ("1", "0", "0"), ("0",) * 6, ("nan",) * 6, tuple("100100"), tuple("100050")],
)
def test_no_plane_where_the_orientation_says_none(orientation: tuple[str, ...]) -> None:
    assert plane(list(map(float, orientation))) == ""

"""Diameters and lesions, beside scipy on the whole volume and beside ellipses whose axes are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.spatial.distance import pdist

from medseg.bundle.bundle import Segment
from medseg.dicom.instance import Plane
from medseg.dicom.phantom import Ellipsoid
from medseg.dicom.series import Stack
from medseg.results.diameters import diameters_of
from tests.medseg.results.stacks import ABNORMAL, LIVER, SPLEEN, findings, make_stack

DOWN, ACROSS = 0.7, 0.9
LESION = replace(LIVER, label="Lesion", category=ABNORMAL)


def plane_of(shape: tuple[int, ...]) -> Plane:
    """Rows and columns run along y and x."""
    axes = np.eye(3)
    return Plane(np.zeros(3), axes[0], axes[1], (DOWN, ACROSS), *shape)


def edges_mm(mask: np.ndarray) -> np.ndarray:
    """(n, 2) x and y of where in and out meet, half-way between voxels."""
    padded = np.pad(mask, 1).astype(int)
    rows, columns = (np.argwhere(np.diff(padded, axis=axis)) - 1.0 for axis in (0, 1))
    points = np.concatenate([rows + (0.5, 0.0), columns + (0.0, 0.5)])  # noqa: RUF005 - arrays
    return points[:, ::-1] * (ACROSS, DOWN)


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(np.any))
@settings(deadline=None, max_examples=50)
def test_diameters_of_any_mask(mask: np.ndarray) -> None:
    found = diameters_of(mask, (0, 0), 0, plane_of(mask.shape))
    points = edges_mm(mask)
    assert found.long_mm == pytest.approx(pdist(points).max())
    long, short = (np.subtract(*ends)[:2] for ends in (found.long, found.short))
    assert abs(long @ short) < 1e-6
    # No wider than the strip along the diameter that holds all points; both ends within it.
    across = np.array([-long[1], long[0]]) / found.long_mm
    spread = points @ across
    assert found.short_mm <= np.ptp(spread) + 1e-9
    assert all(spread.min() - 1e-9 <= np.array(end[:2]) @ across <= spread.max() + 1e-9 for end in found.short)


@given(st.floats(4, 20), st.floats(0.3, 0.95), st.floats(0, np.pi))
@settings(deadline=None, max_examples=20)
def test_axes_of_an_ellipse(half: float, share: float, angle: float) -> None:
    """But for half a voxel's diagonal at each end, by which voxels make it larger or smaller."""
    y, x = np.mgrid[:80, :80] * np.array([DOWN, ACROSS])[:, None, None] - np.array([28.3, 35.6])[:, None, None]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    mask = (along / half) ** 2 + (across / (half * share)) ** 2 <= 1
    found = diameters_of(mask, (0, 0), 0, plane_of(mask.shape))
    assert found.long_mm == pytest.approx(2 * half, abs=np.hypot(DOWN, ACROSS))
    assert found.short_mm == pytest.approx(2 * half * share, abs=np.hypot(DOWN, ACROSS))


def lesions(stack: Stack) -> np.ndarray:
    """Three of known sizes, and one that joins its halves by a corner across two slices."""
    labels = np.zeros(stack.shape, np.uint8)
    labels[0:3, 1:6, 1:5] = labels[2:4, 9:12, 9:12] = labels[4, 1, 15] = 1
    labels[4, 10, 1] = labels[5, 11, 2] = 1
    return labels


@pytest.mark.parametrize("overlapping", [False, True])
def test_lesions_are_those_of_the_volume(overlapping: bool) -> None:
    stack = make_stack(shape=(6, 16, 20), spacing_mm=(2.0, DOWN, ACROSS), objects=[Ellipsoid((0, 0, 0), (6, 4, 5))])
    labels = lesions(stack)
    segments: tuple[Segment, ...] = (LESION, SPLEEN)
    planes = np.stack([labels, np.zeros_like(labels)], axis=1) if overlapping else labels
    finding, nothing = findings(stack, segments, planes, most=3)
    numbered, count = ndimage.label(labels, np.ones((3, 3, 3)))
    sizes = np.bincount(numbered.reshape(-1))[1:]
    assert finding.pieces == count == 4
    assert (nothing.k, nothing.diameters, nothing.lesions, nothing.pieces) == (None, None, (), 0)
    values = np.stack([part.read() for part in stack.slices])
    assert [one.voxels for one in finding.lesions] == sorted(sizes, reverse=True)[:3]
    for one in finding.lesions:
        inside = numbered == 1 + int(np.flatnonzero(sizes == one.voxels)[0])
        assert one.k == inside.sum(axis=(1, 2)).argmax()
        assert one.volume_ml == pytest.approx(one.voxels * stack.voxel_ml(0))
        assert one.within.mean == pytest.approx(values[inside].mean(), abs=1e-4)
        assert one.within.sd == pytest.approx(values[inside].std(), abs=1e-3)
        longest = max(pdist(edges_mm(part == n)).max() for part in _parts(inside) for n in range(1, part.max() + 1))
        assert one.diameters is not None
        assert one.diameters.long_mm == pytest.approx(longest)
        lies = stack.slices[one.diameters.k].plane
        assert all(abs((np.array(end) - lies.position_mm) @ lies.normal) < 1e-9 for end in one.diameters.long)
    assert finding.diameters == finding.lesions[0].diameters
    assert finding.k == 2


def _parts(inside: np.ndarray) -> list[np.ndarray]:
    return [ndimage.label(part, np.ones((3, 3)))[0] for part in inside if part.any()]


def test_an_organ_has_diameters_and_no_lesions_and_thousands_are_limited() -> None:
    stack = make_stack(shape=(6, 64, 64))
    organ = np.zeros(stack.shape, np.uint8)
    organ[1:3, 4:20, 4:8] = 1
    (finding,) = findings(stack, (LIVER,), organ)
    assert (finding.k, finding.pieces, finding.lesions) == (1, 0, ())
    assert finding.diameters is not None
    many = np.zeros(stack.shape, np.uint8)
    many[::2, ::2, ::2] = 1
    (finding,) = findings(stack, (LESION,), many)
    assert (finding.pieces, len(finding.lesions)) == (3 * 32 * 32, 20)
    assert findings(stack, (LESION,), many, most=0)[0].lesions == ()

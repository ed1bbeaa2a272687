"""The overlay picture: directions, proportions, contours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg.dicom.phantom import Ellipsoid
from medseg.dicom.series import Stack
from medseg.inference.planes import LabelSpool
from medseg.results.drawing import display_window, edge_letters, volume_text
from medseg.results.picture import write_picture, write_thumbnail
from tests.medseg.results.stacks import SEGMENTS, blobs, feed, made, make_result, make_stack
from tests.orientations import ROW_AND_COLUMN, Direction


def draw(folder: Path, stack: Stack, labels: np.ndarray, **changes: Any) -> np.ndarray:
    spool = LabelSpool()
    feed(spool, stack, SEGMENTS, labels)
    write_picture(folder / "overlay.png", spool, make_result(stack, SEGMENTS, labels, **changes), made())
    return np.asarray(Image.open(folder / "overlay.png").convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("direction", "letters"),
    [
        ((1, 0, 0), "L"),
        ((-1, 0, 0), "R"),
        ((0, 1, 0), "P"),
        ((0, -1, 0), "A"),
        ((0, 0, 1), "H"),
        ((0, 0, -1), "F"),
        ((0.8, -0.6, 0), "LA"),
        ((0.1, -0.6, -0.79), "FA"),
        ((0.99, 0.1, 0.1), "L"),
    ],
)
def test_letters_follow_the_direction_cosines(direction: tuple[float, float, float], letters: str) -> None:
    assert edge_letters(np.array(direction, float)) == letters


@pytest.mark.parametrize(("row", "column"), ROW_AND_COLUMN[::3])
def test_any_acquisition_is_hung_the_same_way(tmp_path: Path, row: Direction, column: Direction) -> None:
    # a bright ball at the patient's left, front and head, off the middle: up and to the right wherever it can be seen
    ball = Ellipsoid((12.0, -12.0, 12.0), (5.0, 5.0, 5.0), 500.0)
    stack = make_stack(orientation=(row, column), spacing_mm=(1.0, 1.0, 1.0), shape=(40, 40, 40), objects=[ball])
    labels = np.stack([part.read() > 0 for part in stack.slices]).astype(np.uint8)
    sheet = draw(tmp_path, stack, labels)
    normal = int(np.abs(np.cross(row, column)).argmax())
    first = sheet[64:444, 16:396]
    rows, columns = np.nonzero((np.abs(first - SEGMENTS[0].color).sum(axis=-1)) < 30)
    up, right = rows.mean() < 190, columns.mean() > 190
    # axial: left is right, front is up; coronal: left is right, head is up; sagittal: front is left, head is up
    assert (up, right) == [(True, False), (True, True), (True, True)][normal]


def test_a_thumbnail_hangs_as_the_picture_does(tmp_path: Path) -> None:
    ball = Ellipsoid((12.0, -12.0, 4.0), (5.0, 5.0, 5.0), 500.0)
    stack = make_stack(
        orientation=((-1, 0, 0), (0, -1, 0)), spacing_mm=(1.0, 1.0, 1.0), shape=(40, 40, 40), objects=[ball]
    )
    labels = np.stack([part.read() > 0 for part in stack.slices]).astype(np.uint8)
    labels[:, 30:32, 30:32] = 2  # so that the ball is not in the middle
    spool = LabelSpool()
    feed(spool, stack, SEGMENTS, labels)
    write_thumbnail(tmp_path / "thumbnail.jpg", spool)
    assert (tmp_path / "thumbnail.jpg").stat().st_size < 16 << 10
    pixels = np.asarray(Image.open(tmp_path / "thumbnail.jpg").convert("RGB")).astype(int)
    assert pixels.shape == (240, 240, 3)
    rows, columns = np.nonzero(np.abs(pixels - SEGMENTS[0].color).sum(axis=-1) < 90)
    assert len(rows) > 50 and rows.mean() < 110 and columns.mean() > 130


def test_proportions_are_true_for_thick_slices(tmp_path: Path) -> None:
    ball = Ellipsoid((0.0, 0.0, 0.0), (15.0, 15.0, 15.0), 500.0)
    stack = make_stack(spacing_mm=(4.0, 0.5, 1.0), shape=(16, 128, 64), objects=[ball])
    labels = np.stack([part.read() > 0 for part in stack.slices]).astype(np.uint8)
    sheet = draw(tmp_path, stack, labels)
    for left in (16, 412, 808):
        tile = sheet[64:444, left : left + 380]
        rows, columns = np.nonzero((np.abs(tile - SEGMENTS[0].color).sum(axis=-1)) < 30)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.15)


@pytest.mark.parametrize("shape", [(1, 16, 20), (3, 9, 300), (40, 16, 20)])
def test_any_shape_empty_or_not(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    stack = make_stack(shape=(max(shape[0], 3), *shape[1:]))
    assert draw(tmp_path, stack, np.zeros(stack.shape, np.uint8)).size
    assert draw(tmp_path, stack, blobs(stack.shape)).size


def test_overlapping_labels_are_drawn(tmp_path: Path) -> None:
    stack = make_stack()
    labels = np.zeros((6, 3, 16, 20), np.uint8)
    labels[2:4, 0, 4:12, 4:12] = labels[2:4, 1, 6:10, 6:10] = 1
    sheet = draw(tmp_path, stack, labels)
    tile = sheet[64:444, 16:396]
    for segment in SEGMENTS[:2]:
        assert (np.abs(tile - segment.color).sum(axis=-1) < 30).any()


@pytest.mark.parametrize(("inside_hu", "window"), [(60, (-160, 240)), (-800, (-1350, 150)), (700, (-500, 1300))])
def test_ct_takes_the_window_of_what_was_found(inside_hu: int, window: tuple[int, int]) -> None:
    values = np.full((8, 8), -1000, np.float32)
    inside = np.zeros((8, 8), bool)
    inside[2:4], values[2:4] = True, inside_hu
    assert display_window(values, "CT", inside) == window


def test_mr_window_ignores_air_and_survives_a_flat_image() -> None:
    values = np.concatenate([np.zeros(900), np.linspace(100, 1100, 1001)]).astype(np.float32)[None]
    black, white = display_window(values, "MR", np.zeros(values.shape, bool))
    assert (black, white) == pytest.approx((110, 1095), abs=2)
    black, white = display_window(np.zeros((4, 4), np.float32), "MR", np.zeros((4, 4), bool))
    assert white > black


@pytest.mark.parametrize(("volume_ml", "text"), [(0.0, "0.00 ml"), (3.456, "3.46 ml"), (1512.3, "1512 ml")])
def test_volumes_are_said_with_sense(volume_ml: float, text: str) -> None:
    assert volume_text(volume_ml) == text

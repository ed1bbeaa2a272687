"""One picture of a result: views and slices with contours, a legend, and patient directions.

    ┌ title ───────────────────────────────────────────┐
    │ three views through the middle of what was found │ legend: colours, names, volumes, doubts
    │ slices through it, closer                        │
    └ "research use only" ─────────────────────────────┘

Every view is laid out as a radiologist expects it (patient's right on the left, head or front up), whatever way the
series was acquired, in true proportions; letters at the edges are computed from the direction cosines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from medseg.dicom.instance import Vector
from medseg.dicom.series import Stack
from medseg.inference.labels import SegmentationResult
from medseg.inference.planes import LabelSpool
from medseg.results.drawing import (
    BACKGROUND,
    DOUBT,
    FAINT,
    TEXT,
    areas_of,
    contour,
    display_window,
    edge_letters,
    font,
    fullest,
    shortened,
    volume_text,
    wrapped,
)
from medseg.results.files import replacing
from medseg.results.nifti import grid_slices
from medseg.results.provenance import Provenance
from medseg.results.report import sentences

_MARGIN, _LEGEND = 16, 330
_VIEW, _DETAIL, _THUMBNAIL = 380, 285, 240  # pixels of a square tile
_DETAILS = 4


@dataclass(frozen=True, eq=False)
class _View:
    """A 2-D image as displayed, with a mask for each segment in it.

    down, right: unit vectors (LPS) of the display's axes. size_mm: (height, width).
    """

    title: str
    values: NDArray[np.float32]
    masks: dict[int, NDArray[np.bool_]]
    down: Vector
    right: Vector
    size_mm: tuple[float, float]


def write_picture(path: Path, labels: LabelSpool, result: SegmentationResult, provenance: Provenance) -> None:
    """Draw a PNG contact sheet; reads the slices again that it shows.

    Raises OutputNotWritable.
    """
    sheet = _draw(labels, result, provenance)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def write_thumbnail(path: Path, labels: LabelSpool) -> None:
    """Draw a small JPEG: the slice with most of what was found, close by, or the middle one; reads that slice again.

    Raises OutputNotWritable.
    """
    areas = areas_of(labels)
    filled = np.flatnonzero(areas)
    box = _box(labels, filled, labels.stack) if filled.size else (slice(None), slice(None))
    view = _slice_view(labels, fullest(areas), "", box)
    view = replace(view, title="", values=np.nan_to_num(view.values))
    colors = {segment.number: segment.color for segment in labels.segments}
    tile = _tile(view, _THUMBNAIL, _window(view, labels.stack.series.modality), colors)
    with replacing(path) as temporary:
        tile.save(temporary, format="JPEG", quality=80)


def _views(labels: LabelSpool) -> tuple[list[_View], list[_View]]:
    """Three overviews through the middle of what was found, and closer slices of the acquisition."""
    stack = labels.stack
    areas = areas_of(labels)
    filled = np.flatnonzero(areas)
    k = fullest(areas)
    middle = _foreground(labels, k)
    j, i = _middle(middle)
    overviews = [_slice_view(labels, k, f"slice {k + 1} of {len(areas)}")]
    if len(areas) >= 8:
        overviews.extend(_reformats(labels, j, i))
    if not filled.size:
        return overviews, []
    box = _box(labels, filled, stack)
    chosen = filled[np.unique(np.linspace(0, filled.size - 1, _DETAILS + 2).round().astype(int)[1:-1])]
    return overviews, [_slice_view(labels, int(n), f"slice {n + 1}", box) for n in chosen]


def _foreground(labels: LabelSpool, k: int) -> NDArray[np.bool_]:
    plane = labels[k]
    return np.asarray(plane != 0 if labels.exclusive else (plane != 0).any(axis=0))


def _middle(mask: NDArray[np.bool_]) -> tuple[int, int]:
    if not mask.any():
        return mask.shape[0] // 2, mask.shape[1] // 2
    j, i = ndimage.center_of_mass(mask)
    return round(j), round(i)


def _box(labels: LabelSpool, filled: NDArray[np.intp], stack: Stack) -> tuple[slice, slice]:
    """A square around everything found, 12 mm wider on each side, at least a third of the image."""
    seen = np.zeros(stack.shape[1:], bool)
    for k in filled:
        seen |= _foreground(labels, int(k))
    spacing = stack.spacing_mm[1:]
    extents = [np.flatnonzero(seen.any(axis=1 - axis)) for axis in (0, 1)]
    half_mm = max((e[-1] - e[0] + 1) * s / 2 for e, s in zip(extents, spacing, strict=True)) + 12
    half_mm = max(half_mm, min(n * s for n, s in zip(seen.shape, spacing, strict=True)) / 6)
    bounds = []
    for e, s, n in zip(extents, spacing, seen.shape, strict=True):
        half = min(round(half_mm / s), n // 2)
        center = min(max((e[0] + e[-1]) // 2, half), n - half)
        bounds.append(slice(int(center - half), int(center + half)))
    return bounds[0], bounds[1]


def _slice_view(labels: LabelSpool, k: int, title: str, box: tuple[slice, slice] = (slice(None), slice(None))) -> _View:
    stack = labels.stack
    plane = stack.slices[k].plane
    masks = dict(_masks(labels, labels[k][..., *box]))
    values = stack.slices[k].read()[box]
    return _displayed(title, values, masks, plane.column_direction, plane.row_direction, plane.spacing_mm)


def _reformats(labels: LabelSpool, j: int, i: int) -> Iterator[_View]:
    """The two planes across the slices, through row j and through column i, on the uniform grid."""
    stack = labels.stack
    nearest = grid_slices(stack)
    K, J, I = len(nearest), *stack.shape[1:]  # noqa: E741
    across, along = np.zeros((K, I), np.float32), np.zeros((K, J), np.float32)
    channels = () if labels.exclusive else (len(labels.segments),)
    across_labels, along_labels = np.zeros((*channels, K, I), np.uint8), np.zeros((*channels, K, J), np.uint8)
    last = -1
    for g, k in enumerate(nearest):
        if k != last:
            values, plane, last = stack.slices[k].read(), labels[int(k)], int(k)
        across[g], along[g] = values[j], values[:, i]
        across_labels[..., g, :], along_labels[..., g, :] = plane[..., j, :], plane[..., i]
    across_masks, along_masks = (dict(_masks(labels, one)) for one in (across_labels, along_labels))
    lies, spacing = stack.slices[0].plane, stack.spacing_mm
    yield _displayed("", across, across_masks, lies.normal, lies.row_direction, (spacing[0], spacing[2]))
    yield _displayed("", along, along_masks, lies.normal, lies.column_direction, (spacing[0], spacing[1]))


def _masks(labels: LabelSpool, plane: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Of each segment that is there."""
    for index, segment in enumerate(labels.segments):
        mask = plane == segment.number if labels.exclusive else plane[index] != 0
        if mask.any():
            yield segment.number, mask


def _displayed(
    title: str,
    values: NDArray[np.float32],
    masks: dict[int, NDArray[np.bool_]],
    down: Vector,
    right: Vector,
    spacing_mm: tuple[float, float],
) -> _View:
    """Turn and flip a view whose axes run `down` and `right` until it hangs as usual."""
    # up is the head where an axis runs along the body, else the front
    heights = [(abs(d[2]) > 0.5, abs(d[2]) if abs(d[2]) > 0.5 else abs(d[1])) for d in (down, right)]
    turn = heights[1] > heights[0]
    if turn:
        down, right, spacing_mm = right, down, (spacing_mm[1], spacing_mm[0])
    flip_down = down[2] > 0 if abs(down[2]) > 0.5 else down[1] < 0
    flip_right = right[0] < 0 if abs(right[0]) >= abs(right[1]) else right[1] < 0

    def hang(array: NDArray[np.generic]) -> NDArray[np.generic]:
        array = array.T if turn else array
        return array[:: -1 if flip_down else 1, :: -1 if flip_right else 1]

    size_mm = (
        (values.shape[1] if turn else values.shape[0]) * spacing_mm[0],
        (values.shape[0] if turn else values.shape[1]) * spacing_mm[1],
    )
    down, right = -down if flip_down else down, -right if flip_right else right
    normal = np.abs(np.cross(down, right))
    name = ("Sagittal", "Coronal", "Axial")[int(normal.argmax())]
    return _View(
        f"{name}, {title}" if title else name,
        np.asarray(hang(values), np.float32),
        {number: np.asarray(hang(mask), np.bool_) for number, mask in masks.items()},
        down,
        right,
        size_mm,
    )


def _draw(labels: LabelSpool, result: SegmentationResult, provenance: Provenance) -> Image.Image:
    overviews, details = _views(labels)
    window = _window(overviews[0], labels.stack.series.modality)
    colors = {segment.number: segment.color for segment in labels.segments}
    views_width = 3 * _VIEW + 2 * _MARGIN
    width = views_width + _LEGEND + 3 * _MARGIN
    top = 64
    second = top + _VIEW + _MARGIN
    height = second + (_DETAIL + _MARGIN if details else 0) + 34
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    for column, view in enumerate(overviews):
        sheet.paste(_tile(view, _VIEW, window, colors), (_MARGIN + column * (_VIEW + _MARGIN), top))
    for column, view in enumerate(details):
        step = (views_width - _DETAIL) / (_DETAILS - 1)
        sheet.paste(_tile(view, _DETAIL, window, colors), (_MARGIN + round(column * step), second))
    draw = ImageDraw.Draw(sheet)
    series = labels.stack.series
    draw.text((_MARGIN, 14), f"{provenance.bundle} {provenance.bundle_version}", fill=TEXT, font=font(22))
    name = f"{series.modality} series {series.number or 'without number'}" if series.modality else series.description
    draw.text((_MARGIN, 42), f"{name}, {labels.stack.shape[0]} slices", fill=FAINT, font=font(14))
    _legend(draw, result, (views_width + 2 * _MARGIN, top), height)
    footer = (
        "Made by medseg. For research use only, not for diagnosis." if provenance.research_use else "Made by medseg."
    )
    draw.text((_MARGIN, height - 28), footer, fill=FAINT, font=font(14))
    return sheet


def _window(view: _View, modality: str) -> tuple[float, float]:
    inside = np.zeros(view.values.shape, bool)
    for mask in view.masks.values():
        inside |= mask
    return display_window(view.values, modality, inside)


def _tile(view: _View, side: int, window: tuple[float, float], colors: dict[int, tuple[int, int, int]]) -> Image.Image:
    """The view in a square of `side` pixels, in true proportions."""
    scale = side / max(view.size_mm)
    rows, columns = (max(round(mm * scale), 1) for mm in view.size_mm)
    black, white = window
    gray = np.clip((view.values - black) / (white - black), 0, 1) * 255
    image = Image.fromarray(gray.astype(np.uint8)).resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.convert("RGB"), np.float32)
    for number, mask in view.masks.items():
        edge = contour(mask, (columns, rows))[..., None]
        pixels = pixels * (1 - edge) + np.array(colors[number], np.float32) * edge
    tile = Image.new("RGB", (side, side), (0, 0, 0))
    left, top = (side - columns) // 2, (side - rows) // 2
    tile.paste(Image.fromarray(pixels.round().astype(np.uint8)), (left, top))
    _annotate(tile, view, scale)
    return tile


def _annotate(tile: Image.Image, view: _View, scale: float) -> None:
    draw, side, letters = ImageDraw.Draw(tile), tile.width, font(15)

    def text(at: tuple[float, float], words: str, anchor: str) -> None:
        draw.text(at, words, fill=TEXT, font=letters, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))

    middle = side / 2
    text((middle, 5), edge_letters(-view.down), "ma")
    text((middle, side - 5), edge_letters(view.down), "md")
    text((6, middle), edge_letters(-view.right), "lm")
    text((side - 6, middle), edge_letters(view.right), "rm")
    text((7, 5), view.title, "la")
    length_mm = max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm * scale <= side / 3), default=1)
    end = side - 10
    draw.line([(end - length_mm * scale, side - 10), (end, side - 10)], fill=TEXT, width=2)
    text((end - length_mm * scale / 2, side - 13), f"{length_mm} mm", "md")


def _legend(draw: ImageDraw.ImageDraw, result: SegmentationResult, at: tuple[int, int], bottom: int) -> None:
    x, y = at
    shown = [found for found in result.measured if found.voxels] or list(result.measured)
    room = max((bottom - y - 150) // 26, 1)
    for found in shown[:room]:
        draw.rounded_rectangle((x, y + 2, x + 16, y + 18), 3, fill=found.segment.color)
        draw.text((x + 26, y), shortened(found.segment.label, 24), fill=TEXT, font=font(16))
        draw.text((x + _LEGEND, y), volume_text(found.volume_ml), fill=TEXT, font=font(16), anchor="ra")
        y += 26
    if len(shown) > room:
        draw.text((x + 26, y), f"and {len(shown) - room} more", fill=FAINT, font=font(14))
        y += 26
    y += 10
    for sentence in sentences(result, research_use=False):
        for line in wrapped(sentence, 44):
            if y > bottom - 50:
                return
            draw.text((x, y), line, fill=DOUBT, font=font(14))
            y += 19
        y += 5

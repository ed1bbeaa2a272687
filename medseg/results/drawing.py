"""What pictures of a result share: window, contours, letters, words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont
from scipy import ndimage

from medseg.dicom.instance import Vector
from medseg.inference.planes import LabelSpool

BACKGROUND, TEXT, FAINT, DOUBT = (16, 18, 22), (235, 237, 240), (140, 146, 156), (255, 190, 90)
CONTOUR = 1.6  # pixels


def areas_of(labels: LabelSpool) -> NDArray[np.intp]:
    """Of each slice, how many voxels have a label, each label counted."""
    return np.array([np.count_nonzero(plane) for plane in labels], np.intp)


def fullest(areas: NDArray[np.intp]) -> int:
    """The slice with most labels; the middle one where there are none."""
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def edge_letters(direction: Vector) -> str:
    """Where a direction (LPS) points in the patient: "R", "LA" ... by falling share (PS3.3 C.7.6.1.1.1)."""
    names = ("LR", "PA", "HF")
    order = np.argsort(-np.abs(direction))
    return "".join(names[a][0 if direction[a] > 0 else 1] for a in order if abs(direction[a]) > 0.3)


def display_window(values: NDArray[np.float32], modality: str, inside: NDArray[np.bool_]) -> tuple[float, float]:
    """(black, white) in modality values. CT: the customary window of what was found; else percentiles of the tissue."""
    if modality == "CT":
        middle = float(np.median(values[inside])) if inside.any() else 40.0
        if middle < -400:
            return -1350.0, 150.0  # lung
        if middle > 300:
            return -500.0, 1300.0  # bone
        return -160.0, 240.0  # soft tissue
    tissue = values[values > values.min()]
    if tissue.size == 0:
        return float(values.min()), float(values.min()) + 1.0
    black, white = (float(v) for v in np.percentile(tissue, (1, 99.5)))
    return black, max(white, black + 1e-6)


def volume_text(volume_ml: float) -> str:
    """A volume with three or more significant figures, as one would say it."""
    decimals = 2 if volume_ml < 10 else 1 if volume_ml < 100 else 0
    return f"{volume_ml:.{decimals}f} ml"


def contour(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float32]:
    """Opacity (0-1) of the outline of a mask drawn at another size: the half-way line of the interpolated mask."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    inside = np.asarray(image) > 127
    distance = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside)
    return np.asarray(np.clip(CONTOUR + 0.5 - distance, 0, 1), np.float32)


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def wrapped(text: str, length: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > length:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

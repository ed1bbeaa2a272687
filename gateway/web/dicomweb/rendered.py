"""Images as people see them (PS3.18 10.4.1.1.3): PNG or JPEG, of the size of the frame, or made to fit one.

    stored values -> modality values -> window -> 8 bits        the window of the request, else of the header, else of
                                                                the values; MONOCHROME1 the other way round

Where a size is asked for, pixels become square. Colours are given as they are stored, or as baseline JPEG has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit

from gateway.web.dicomweb.pixels import PixelSource
from gateway.web.dicomweb.problems import Problem
from medseg.dicom.decode import read_plane, stored_plane
from medseg.dicom.headers import Attributes, frames, look
from medseg.dicom.instance import Pixels
from medseg.dicom.stored import scaling
from medseg.errors import UndecodablePixels, UnreadableInstance

THUMBNAIL: Final = 128  # pixels of its longer side
MOST: Final = 4096  # pixels of a side that may be asked for
QUALITY: Final = 90


class Curve(StrEnum):
    """VOI LUT Function (PS3.3 C.11.2.1)."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True)
class Window:
    center: float
    width: float
    curve: Curve = Curve.LINEAR

    def applied(self, values: Pixels) -> NDArray[np.float32]:
        """From 0 to 1."""
        if self.curve is Curve.SIGMOID:
            with np.errstate(over="ignore"):
                return np.asarray(1 / (1 + np.exp(-4 * (values - self.center) / self.width)), np.float32)
        less = 0.5 if self.curve is Curve.LINEAR else 0.0
        width = max(self.width - 2 * less, 1e-6)
        return np.asarray(np.clip((values - (self.center - less)) / width + 0.5, 0, 1), np.float32)


@dataclass(frozen=True)
class Look:
    """How an image is to look. size: (width, height) that it is to fit."""

    window: Window | None = None
    size: tuple[int, int] | None = None
    quality: int = QUALITY


def window_of(text: str) -> Window:
    """From `window=center,width,function` (PS3.18 8.3.5.1.4). Raises Problem."""
    parts = text.split(",")
    try:
        center, width = float(parts[0]), float(parts[1])
        curve = Curve(parts[2].strip().upper().replace("-", "_")) if len(parts) > 2 else Curve.LINEAR
    except (ValueError, IndexError):
        center = width = np.nan
        curve = Curve.LINEAR
    least = 1.0 if curve is Curve.LINEAR else 1e-30
    if len(parts) > 3 or not (np.isfinite(center) and np.isfinite(width) and width >= least):
        functions = ", ".join(one.value.lower().replace("_", "-") for one in Curve)
        raise Problem(HTTPStatus.BAD_REQUEST, f"window: expected center,width or center,width,function of {functions}")
    return Window(center, width, curve)


def size_of(text: str) -> tuple[int, int]:
    """From `viewport=width,height` (PS3.18 8.3.5.1.3); a part of the image is not shown by itself. Raises Problem."""
    parts = text.split(",")
    sides = [int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 6]
    if len(parts) != 2 or len(sides) != 2 or not all(1 <= side <= MOST for side in sides):
        raise Problem(HTTPStatus.BAD_REQUEST, f"viewport: expected width,height, each of 1 to {MOST} pixels")
    return sides[0], sides[1]


def image_of(source: PixelSource, frame: int, kind: str, asked: Look) -> bytes:
    """A frame as an image file. kind: image/png or image/jpeg. Raises Problem, UndecodablePixels."""
    seen = _attributes(source, frame)
    try:
        image = _gray(source, frame, seen, asked.window) if source.samples == 1 else _colour(source, frame, seen)
    except ValueError as error:
        raise UndecodablePixels(source.instance.sop_instance_uid, source.syntax.name, str(error)) from error
    if asked.size is not None:
        image = _fitted(image, asked.size, seen)
    written = BytesIO()
    if kind == "image/png":
        image.save(written, "PNG", compress_level=1)
    else:
        image.save(written, "JPEG", quality=asked.quality)
    return written.getvalue()


def _attributes(source: PixelSource, frame: int) -> Attributes:
    """What holds for a frame."""
    header = source.instance.header
    if "PerFrameFunctionalGroupsSequence" in header:
        try:
            return frames(header)[frame - 1]
        except (UnreadableInstance, IndexError):
            pass
    return look(header)


def _gray(source: PixelSource, frame: int, seen: Attributes, window: Window | None) -> Image.Image:
    instance, number = source.instance, frame if source.frames > 1 else None
    photometric = look(instance.header).text("PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        raise ValueError("its colours are in a palette: not shown")
    if source.bits == 1:
        values = stored_plane(instance, number).astype(np.float32)
        window = Window(0.5, 1, Curve.LINEAR_EXACT)
    else:
        values = read_plane(instance, number, scaling(seen, look(instance.header).text("Modality")))
        window = window or _stated(seen) or _of_values(values)
    gray = np.rint(window.applied(np.nan_to_num(values)) * 255).astype(np.uint8)
    return Image.fromarray(255 - gray if photometric == "MONOCHROME1" else gray)


def _stated(seen: Attributes) -> Window | None:
    center, width = seen.number("WindowCenter"), seen.number("WindowWidth")
    curve = seen.text("VOILUTFunction")
    if center is None or width is None or not (np.isfinite(center) and np.isfinite(width)):
        return None
    curve_ = Curve(curve) if curve in set(Curve) else Curve.LINEAR
    return Window(center, width, curve_) if width >= (1 if curve_ is Curve.LINEAR else 1e-30) else None


def _of_values(values: Pixels) -> Window:
    """Nearly all of them."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (1, 99.5)) if finite.size else (0.0, 1.0)
    return Window(float(low + high) / 2, max(float(high - low), 1e-6), Curve.LINEAR_EXACT)


def _colour(source: PixelSource, frame: int, seen: Attributes) -> Image.Image:
    photometric = seen.text("PhotometricInterpretation")
    if source.syntax == JPEGBaseline8Bit and photometric in ("YBR_FULL_422", "YBR_FULL"):
        return Image.open(BytesIO(source.stored(frame))).convert("RGB")
    if source.encapsulated or source.bits != 8 or source.samples != 3 or photometric not in ("RGB", "YBR_FULL"):
        raise ValueError(f"{photometric} with {source.samples} samples of {source.bits} bits: not shown")
    samples = np.frombuffer(source.plain(frame), np.uint8)
    if seen.number("PlanarConfiguration"):
        samples = samples.reshape(3, source.rows, source.columns).transpose(1, 2, 0)
    pixels = np.ascontiguousarray(samples.reshape(source.rows, source.columns, 3))
    return Image.fromarray(pixels, "RGB" if photometric == "RGB" else "YCbCr").convert("RGB")


def _fitted(image: Image.Image, size: tuple[int, int], seen: Attributes) -> Image.Image:
    """As large as fits, in true proportions."""
    spacing: Any = seen.numbers("PixelSpacing") or seen.numbers("PixelAspectRatio")
    tall, wide = spacing if len(spacing) == 2 and min(spacing) > 0 else (1.0, 1.0)
    width, height = image.width * wide, image.height * tall
    scale = min(size[0] / width, size[1] / height)
    fitted = max(round(width * scale), 1), max(round(height * scale), 1)
    return image.resize(fitted, Image.Resampling.BILINEAR)

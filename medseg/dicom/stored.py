"""Stored values: which bits of a sample are its value, and what they mean.

    bit  15 14 13 12 11 10 ... 1 0         BitsAllocated 16, BitsStored 12, HighBit 11
          o  -  -  -  v  v      v v        v: the value, whose highest bit is its sign where PixelRepresentation is 1
                                           others are no part of it and may hold anything, an overlay for one

(PS3.5 8.1.1), however the samples are encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.headers import Attributes
from medseg.dicom.instance import Pixels


@dataclass(frozen=True)
class Bits:
    """low: bits below the value. signed: whether its highest bit is its sign."""

    allocated: int
    stored: int
    low: int
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the most of values."""
        half = 1 << (self.stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    def values(self, samples: NDArray[Any]) -> NDArray[Any]:
        """The values of samples of all allocated bits, signed or unsigned as the samples are."""
        allocated = 8 * samples.dtype.itemsize
        if self.stored == allocated:
            return samples
        return (samples << (allocated - self.stored - self.low)) >> (allocated - self.stored)


def bits_of(attributes: Attributes) -> Bits:
    """What a header says of its samples; HighBit is BitsStored - 1 unless it says otherwise.

    Raises ValueError where its numbers make no sense.
    """
    allocated = _whole(attributes, "BitsAllocated", 16)
    stored = _whole(attributes, "BitsStored", allocated)
    high = _whole(attributes, "HighBit", stored - 1)
    representation = _whole(attributes, "PixelRepresentation", 0)
    if not 1 <= stored <= allocated <= 64:
        raise ValueError(f"BitsStored {stored} of BitsAllocated {allocated}: expected 1 to {allocated}, 64 at most")
    if not stored - 1 <= high < allocated:
        raise ValueError(
            f"HighBit {high} with BitsStored {stored} of {allocated}: expected {stored - 1}, {allocated - 1} at most"
        )
    if representation not in (0, 1):
        raise ValueError(f"PixelRepresentation {representation}: expected 0 or 1")
    return Bits(allocated, stored, high - stored + 1, representation == 1)


def _whole(attributes: Attributes, keyword: str, otherwise: int) -> int:
    if not attributes.text(keyword):
        return otherwise
    number = attributes.number(keyword)
    if number is None or not float(number).is_integer():
        raise ValueError(f"{keyword} is not a whole number")
    return int(number)


@dataclass(frozen=True)
class Scaling:
    """From stored values to modality values (PS3.3 C.11.1): value = stored * slope + intercept.

    padding: (least, most) stored value that is no image (PS3.3 C.7.5.1.1.2), or None.
    floor: the modality value that stands for padding.
    """

    slope: float = 1.0
    intercept: float = 0.0
    padding: tuple[float, float] | None = None
    floor: float = 0.0

    def apply(self, stored: NDArray[Any]) -> Pixels:
        """Modality values, float32; padding becomes the floor. Not finite where there is none."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = stored.astype(np.float32)
            if self.slope != 1.0:
                values *= np.float32(self.slope)
            if self.intercept != 0.0:
                values += np.float32(self.intercept)
        if self.padding is not None:
            least, most = self.padding
            values[(stored >= least) & (stored <= most)] = self.floor
        return values


def scaling(attributes: Attributes, modality: str) -> Scaling:
    """How a plane's stored values are scaled; slope 1, intercept 0 where nothing is said.

    Raises ValueError where the numbers for it, or for the samples' bits, make no sense.
    """
    bits = bits_of(attributes)
    slope = _number(attributes, "RescaleSlope", 1.0)
    intercept = _number(attributes, "RescaleIntercept", 0.0)
    with np.errstate(over="ignore"):
        usable = np.isfinite(np.float32(slope)) and np.isfinite(np.float32(intercept)) and np.float32(slope) != 0
    if not usable:
        found = f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g}"
        raise ValueError(f"{found}: expected finite numbers, a slope other than 0")
    return Scaling(slope, intercept, _padding(attributes, bits), floor_of(modality))


def floor_of(*modalities: str) -> float:
    """The modality value of what is no image: air where it is a CT for certain, nothing elsewhere."""
    return -1024.0 if modalities == ("CT",) else 0.0


def _number(attributes: Attributes, keyword: str, otherwise: float) -> float:
    if not attributes.text(keyword):
        return otherwise
    number = attributes.number(keyword)
    if number is None:
        raise ValueError(f"{keyword} is not a number")
    return number


def _padding(attributes: Attributes, bits: Bits) -> tuple[float, float] | None:
    for keyword in ("FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue"):
        value = attributes.number(keyword)
        if value is not None:
            limit = attributes.number(keyword.replace("Value", "RangeLimit"))
            low, high = sorted([value, value if limit is None else limit])
            return low, high
    value = attributes.number("PixelPaddingValue")
    if value is None or not np.isfinite(value):
        return None
    limit = attributes.number("PixelPaddingRangeLimit")
    low, high = sorted(_as_stored(end, bits) for end in (value, value if limit is None else limit))
    return low, high


def _as_stored(value: float, bits: Bits) -> int:
    """Some writers give a negative padding value as unsigned: 63536 for -2000."""
    stored = int(value) % (1 << bits.allocated)
    return stored - (1 << bits.allocated) if bits.signed and stored >> (bits.allocated - 1) else stored

"""Standardized uptake values of PET by body weight, from DICOM's attributes alone (PS3.3 C.8.9.1; QIBA FDG-PET/CT).

    SUVbw = Bq/ml x weight in g / dose in Bq, as it was when decay correction refers to

    DecayCorrection ADMIN    the dose as given
    DecayCorrection START    the dose as decayed from its administration until the scan's start
    Units GML                g/ml: SUVbw already (SUVType BW, or not stated)

The scan's start is the series' reference time (SeriesDate and SeriesTime). Where software after the scan has written a
later one, it is what FrameReferenceTime counts from (to the moment of a frame's mean count rate), else the first
acquisition.
Nothing is guessed: what is missing is named. Messages tell attributes, and no date or time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from medseg.dicom.headers import Attributes, look
from medseg.dicom.moments import moment_s

_DAY_S: Final = 86400.0
_WEIGHT_KG: Final = (0.3, 500.0)
_DOSE_BQ: Final = (1e4, 1e11)
_HALF_LIFE_S: Final = (60.0, 1e6)
_MOST_HALF_LIVES: Final = 12.0


class NoSuv(ValueError):
    """Why SUVbw cannot be computed, in a phrase."""


@dataclass(frozen=True)
class Uptake:
    """What SUVbw needs to know of a series in Bq/ml. dose_bq: as it was at the time that values were corrected to."""

    weight_kg: float
    dose_bq: float

    @property
    def factor(self) -> float:
        """From Bq/ml to g/ml."""
        return self.weight_kg * 1000.0 / self.dose_bq


def suv_factor(images: Sequence[Attributes]) -> float:
    """By what the modality values of a series are to be multiplied. images: all of its images. Raises NoSuv."""
    for keyword in ("Units", "DecayCorrection", "PatientWeight"):
        if len({one.text(keyword) for one in images}) > 1:
            raise NoSuv(f"{keyword} differs among its images")
    first = images[0]
    units = first.text("Units").upper()
    if units == "GML":
        kind = first.text("SUVType").upper() or "BW"
        if kind != "BW":
            raise NoSuv(f"SUVType is {kind}, expected BW")
        return 1.0
    if units != "BQML":
        raise NoSuv(f"Units is {units or 'absent'}, expected BQML or GML")
    return _uptake(images).factor


def _uptake(images: Sequence[Attributes]) -> Uptake:
    first = images[0]
    corrections = first.texts("CorrectedImage")
    for needed in ("ATTN", "DECY"):
        if corrections and needed not in corrections:
            raise NoSuv(f"CorrectedImage lacks {needed}")
    items = list(first.value("RadiopharmaceuticalInformationSequence") or ())
    if len(items) != 1:
        many = f"has {len(items)} items, expected one" if items else "is absent"
        raise NoSuv(f"RadiopharmaceuticalInformationSequence {many}")
    drug = look(items[0])
    weight = _within(first, "PatientWeight", _WEIGHT_KG, "kg")
    dose = _within(drug, "RadionuclideTotalDose", _DOSE_BQ, "Bq")
    correction = first.text("DecayCorrection").upper()
    if correction == "ADMIN":
        return Uptake(weight, dose)
    if correction != "START":
        raise NoSuv(f"DecayCorrection is {correction or 'absent'}, expected START or ADMIN")
    half_life = _within(drug, "RadionuclideHalfLife", _HALF_LIFE_S, "s")
    passed = _passed_s(images, drug, half_life)
    return Uptake(weight, dose * 2.0 ** (-passed / half_life))


def _within(attributes: Attributes, keyword: str, limits: tuple[float, float], unit: str) -> float:
    number = attributes.number(keyword)
    if number is None:
        raise NoSuv(f"{keyword} is absent, or no number")
    least, most = limits
    if not least <= number <= most:
        raise NoSuv(f"{keyword} is not from {least:g} to {most:g} {unit}")
    return number


def _passed_s(images: Sequence[Attributes], drug: Attributes, half_life: float) -> float:
    """From the administration to the scan's start."""
    start = _scan_start_s(images, half_life)
    whole = moment_s("", drug.text("RadiopharmaceuticalStartDateTime"), images[0].text("TimezoneOffsetFromUTC"))
    if whole is not None:
        passed = start - whole
    else:
        time = moment_s(images[0].text("SeriesDate"), drug.text("RadiopharmaceuticalStartTime"))
        if time is None:
            raise NoSuv("RadiopharmaceuticalStartDateTime and RadiopharmaceuticalStartTime are absent")
        passed = (start - time) % _DAY_S  # a time of day alone: of the scan's day, or the evening before
    if not 0 <= passed <= _MOST_HALF_LIVES * half_life:
        raise NoSuv(
            f"from the administration to the scan's start are {passed / half_life:.1f} half-lives, "
            f"expected 0 to {_MOST_HALF_LIVES:g}"
        )
    return passed


def _scan_start_s(images: Sequence[Attributes], half_life: float) -> float:
    stated = moment_s(images[0].text("SeriesDate"), images[0].text("SeriesTime"))
    acquired = [moment_s(one.text("AcquisitionDate"), one.text("AcquisitionTime")) for one in images]
    known = [(when, one) for when, one in zip(acquired, images, strict=True) if when is not None]
    if not known:
        if stated is None:
            raise NoSuv("SeriesTime and AcquisitionTime are absent")
        return stated
    earliest, image = min(known, key=lambda pair: pair[0])
    if stated is not None and stated <= earliest:
        return stated
    offset_ms, length_ms = image.number("FrameReferenceTime"), image.number("ActualFrameDuration")
    if offset_ms and length_ms and offset_ms > 0 and length_ms > 0:
        return earliest + mean_rate_s(length_ms / 1000.0, half_life) - offset_ms / 1000.0
    return earliest


def mean_rate_s(length_s: float, half_life_s: float) -> float:
    """When, from a frame's begin, activity equals its mean over the frame."""
    rate = math.log(2.0) / half_life_s
    return math.log(rate * length_s / -math.expm1(-rate * length_s)) / rate

"""SUV by body weight, against an independent computation, and what is refused."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import pytest
from pydicom import Dataset

from medseg.dicom.headers import look
from medseg.dicom.suv import NoSuv, mean_rate_s, suv_factor

HALF_LIFE_S = 6586.2
INJECTED = datetime(2020, 3, 1, 9, 30)


def pet(minutes: float = 60.0, **changes: object) -> Dataset:
    """An image of a series that began so many minutes after the injection. changes: None deletes."""
    begun = INJECTED + timedelta(minutes=minutes)
    image = Dataset()
    image.Units, image.DecayCorrection, image.PatientWeight = "BQML", "START", "81.5"
    image.CorrectedImage = ["DECY", "ATTN", "SCAT"]
    for what in ("Series", "Acquisition"):
        setattr(image, f"{what}Date", begun.strftime("%Y%m%d"))
        setattr(image, f"{what}Time", begun.strftime("%H%M%S.%f"))
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = "368000000", str(HALF_LIFE_S)
    drug.RadiopharmaceuticalStartTime = INJECTED.strftime("%H%M%S")
    image.RadiopharmaceuticalInformationSequence = [drug]
    for keyword, value in changes.items():
        at = drug if keyword.startswith("Radio") and "Sequence" not in keyword else image
        if value is None:
            delattr(at, keyword)
        else:
            setattr(at, keyword, value)
    return image


def factor(*images: Dataset) -> float:
    return suv_factor([look(image) for image in images])


def oracle(minutes: float) -> float:
    """By the mean life, step by step: another way round than ours."""
    remaining_mbq = 368.0 * math.exp(-minutes / (HALF_LIFE_S / 60.0 / math.log(2.0)))
    return 81.5 / remaining_mbq / 1000.0


def night(**changes: object) -> Dataset:
    """Injected before midnight."""
    return pet(RadiopharmaceuticalStartTime="233000", SeriesTime="003000", AcquisitionTime="003000", **changes)


@pytest.mark.parametrize(
    ("image", "minutes"),
    [
        (pet(60.0), 60.0),
        (pet(0.0), 0.0),
        (pet(145.25), 145.25),
        (pet(60.0, DecayCorrection="ADMIN"), 0.0),
        (pet(60.0, RadiopharmaceuticalStartDateTime="20200301093000"), 60.0),
        (pet(60.0, RadiopharmaceuticalStartDateTime="20200301093000.000", RadiopharmaceuticalStartTime=None), 60.0),
        (pet(60.0, RadiopharmaceuticalStartDateTime="20200301083000+0100", TimezoneOffsetFromUTC="+0200"), 60.0),
        (pet(60.0, RadiopharmaceuticalStartDateTime="20200301093000+0100"), 60.0),  # local, as all times beside it
        (night(), 60.0),
        (pet(60.0, SeriesTime=None, SeriesDate="20200301"), 60.0),
        # written anew after the scan: what FrameReferenceTime counts from, else the first acquisition
        (pet(60.0, SeriesTime="180000"), 60.0),
        (pet(60.0, SeriesTime="180000", FrameReferenceTime="200000", ActualFrameDuration="120000"), 57.657),
        (pet(60.0, AcquisitionTime="104500"), 60.0),  # a later bed: the series' time is the reference
        (pet(60.0, CorrectedImage=None), 60.0),
    ],
)
def test_by_dose_weight_and_decay(image: Dataset, minutes: float) -> None:
    assert factor(image) == pytest.approx(oracle(minutes), rel=1e-3)


def test_the_first_of_all_images_is_when_a_scan_began() -> None:
    beds = [pet(60.0, SeriesTime="180000"), pet(57.0, SeriesTime="180000"), pet(63.0, SeriesTime="180000")]
    assert factor(*beds) == pytest.approx(oracle(57.0), rel=1e-6)


def test_mean_rate_is_where_activity_is_its_mean() -> None:
    when, length = mean_rate_s(1200.0, 6586.2), 1200.0
    steps = 200_000
    mean = sum(2 ** (-(n + 0.5) * length / steps / 6586.2) for n in range(steps)) / steps
    assert 2 ** (-when / 6586.2) == pytest.approx(mean, rel=1e-9)


def test_grams_per_millilitre_pass_as_they_are() -> None:
    assert factor(pet(Units="GML", RadiopharmaceuticalInformationSequence=None, PatientWeight=None)) == 1.0
    assert factor(pet(Units="GML", SUVType="BW")) == 1.0


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (pet(Units="CNTS"), "Units is CNTS, expected BQML or GML"),
        (pet(Units=None), "Units is absent"),
        (pet(Units="GML", SUVType="LBM"), "SUVType is LBM, expected BW"),
        (pet(PatientWeight=None), "PatientWeight is absent"),
        (pet(PatientWeight="0"), "PatientWeight is not from"),
        (pet(RadionuclideTotalDose=None), "RadionuclideTotalDose is absent"),
        (pet(RadionuclideTotalDose="368"), "RadionuclideTotalDose is not from 10000"),  # MBq
        (pet(RadionuclideHalfLife=None), "RadionuclideHalfLife is absent"),
        (pet(RadiopharmaceuticalInformationSequence=None), "RadiopharmaceuticalInformationSequence is absent"),
        (pet(RadiopharmaceuticalStartTime=None), "StartDateTime and RadiopharmaceuticalStartTime are absent"),
        (pet(RadiopharmaceuticalStartDateTime="20200302093000"), "half-lives"),  # after the scan
        (pet(RadiopharmaceuticalStartDateTime="20200201093000"), "half-lives"),
        (pet(DecayCorrection="NONE"), "DecayCorrection is NONE, expected START or ADMIN"),
        (pet(DecayCorrection=None), "DecayCorrection is absent"),
        (pet(CorrectedImage=["DECY"]), "CorrectedImage lacks ATTN"),
        (pet(SeriesTime=None, AcquisitionTime=None), "SeriesTime and AcquisitionTime are absent"),
    ],
)
def test_what_is_missing_is_named(image: Dataset, why: str) -> None:
    with pytest.raises(NoSuv, match=why):
        factor(image)


def test_images_that_differ_are_not_of_one_kind() -> None:
    with pytest.raises(NoSuv, match="Units differs"):
        factor(pet(), pet(Units="GML"))
    with pytest.raises(NoSuv, match="PatientWeight differs"):
        factor(pet(), pet(PatientWeight="80"))
    with pytest.raises(NoSuv, match="has 2 items"):
        image = pet()
        image.RadiopharmaceuticalInformationSequence.append(Dataset())
        factor(image)

"""What scanners, consoles and archives file in one series with its slices, made of one of these."""

from __future__ import annotations

import copy
from collections.abc import Callable

from pydicom import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    DigitalXRayImageStorageForPresentation,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    XRayRadiationDoseSRStorage,
)

GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID")
IMAGE = ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel")


def _without(one: Dataset, *keywords: str) -> Dataset:
    for keyword in keywords:
        if keyword in one:
            del one[keyword]
    return one


def _object(sop_class: str, modality: str, **tags: object) -> Callable[[Dataset], Dataset]:
    """An object without an image."""

    def make(one: Dataset) -> Dataset:
        one.SOPClassUID, one.Modality = sop_class, modality
        for keyword, value in tags.items():
            setattr(one, keyword, value)
        return _without(one, *GEOMETRY, *IMAGE, "ImageType")

    return make


def _screen_save(one: Dataset) -> Dataset:
    one.SOPClassUID, one.ImageType = SecondaryCaptureImageStorage, ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    one.SeriesDescription, one.Modality = "Protocol", "OT"
    return _without(one, *GEOMETRY)


def _screen_save_in_place(one: Dataset) -> Dataset:
    """With the geometry of a slice, as some consoles write it."""
    one.SOPClassUID, one.ImageType = SecondaryCaptureImageStorage, ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    return one


def _radiograph(one: Dataset) -> Dataset:
    one.SOPClassUID, one.Modality, one.SeriesDescription = DigitalXRayImageStorageForPresentation, "DX", "Chest"
    return _without(one, *GEOMETRY)


def _localizer(one: Dataset) -> Dataset:
    one.ImageType, one.SeriesDescription = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "Topogram"
    one.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    return one


def _made_by_us(one: Dataset) -> Dataset:
    one.Manufacturer = "medseg"
    return one


#: By the words in which it is counted as passed by.
BESIDE: dict[str, Callable[[Dataset], Dataset]] = {
    "Secondary Capture Image Storage": _screen_save,
    "Secondary Capture Image Storage ": _screen_save_in_place,
    "X-Ray Radiation Dose SR Storage": _object(XRayRadiationDoseSRStorage, "SR", SeriesDescription="Dose"),
    "Basic Text SR Storage": _object(BasicTextSRStorage, "SR"),
    "Key Object Selection Document Storage": _object(KeyObjectSelectionDocumentStorage, "KO"),
    "Grayscale Softcopy Presentation State Storage": _object(GrayscaleSoftcopyPresentationStateStorage, "PR"),
    "Segmentation Storage": _object(SegmentationStorage, "SEG"),
    "RT Structure Set Storage": _object(RTStructureSetStorage, "RTSTRUCT"),
    "Encapsulated PDF Storage": _object(EncapsulatedPDFStorage, "DOC"),
    "Digital X-Ray Image Storage - For Presentation, no_orientation": _radiograph,
    "CT Image Storage, localizer": _localizer,
    "CT Image Storage, cannot be read": lambda one: _without(one, "PixelData"),
    "CT Image Storage, without pixel data": lambda one: _without(one, *IMAGE),
    "CT Image Storage, made by medseg": _made_by_us,
}


def beside(like: Dataset, what: str) -> Dataset:
    """An object of the series of a slice."""
    one = copy.deepcopy(like)
    one.SOPInstanceUID = f"{like.SeriesInstanceUID}.9.{list(BESIDE).index(what)}"
    return BESIDE[what](one)

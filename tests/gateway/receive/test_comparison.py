"""Other bytes of an image: the same in another form, a poorer copy, or another image."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from gateway.receive.comparison import Comparison, Sameness, compare
from medseg.dicom.headers import read_instance
from medseg.dicom.instance import Instance
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import inbox


def image(**changes: Any) -> Dataset:
    """A CT slice as a modality sends it."""
    one = phantom(slices=3, PatientID="P", PatientName="Doe^John", PatientBirthDate="19700101", PatientSex="O")[1]
    one.AccessionNumber = "ACC1"
    for keyword, value in changes.items():
        setattr(one, keyword, value)
    return one


def encoded(one: Dataset, syntax: str = ExplicitVRLittleEndian, **options: Any) -> Instance:
    """As a file in a transfer syntax."""
    plain, buffer = BytesIO(), BytesIO()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(plain, one, enforce_file_format=True)
    plain.seek(0)
    again = dcmread(plain)
    if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLSNearLossless):
        again.compress(syntax, generate_instance_uid=False, **options)
    elif syntax == ExplicitVRBigEndian:
        again.PixelData = np.frombuffer(again.PixelData, "<u2").astype(">u2").tobytes()
    again.file_meta.TransferSyntaxUID = syntax
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dcmwrite(buffer, again, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return read_instance(lambda: BytesIO(buffer.getvalue()), "image")


def with_private(one: Dataset) -> None:
    one.add_new(0x00090010, "LO", "SOMEBODY")
    one.add_new(0x00091001, "OB", bytes(200))


def with_overhead(one: Dataset) -> None:
    one.add_new(0x00080000, "UL", 4)
    one.add_new(0xFFFCFFFC, "OB", bytes(100))


def coerced(one: Dataset) -> None:
    """What an archive lays over what it keeps."""
    one.RetrieveAETitle, one.InstitutionName, one.InstanceAvailability = "PACS", "Clinic", "ONLINE"
    one.StudyDescription, one.ReferringPhysicianName, one.IssuerOfPatientID = "CT ABDOMEN", "Ward^A", "CLINIC"
    one.OriginalAttributesSequence = Items([Dataset()])


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLSLossless,
    ],
)
def test_another_transfer_syntax_is_the_same_image(syntax: str) -> None:
    assert compare(encoded(image()), encoded(image(), syntax)) is Sameness.SAME
    assert compare(encoded(image(), syntax), encoded(image())) is Sameness.SAME


@pytest.mark.parametrize(
    "change",
    [
        with_private,
        with_overhead,
        coerced,
        lambda one: setattr(one, "PatientName", "DOE^JOHN^^^ "),
        lambda one: setattr(one, "PatientID", "p "),
        lambda one: delattr(one, "AccessionNumber"),
        lambda one: delattr(one, "PatientSex"),
        lambda one: setattr(one, "SpecificCharacterSet", "ISO_IR 192"),
        lambda one: setattr(one, "ImagePositionPatient", [f"{float(part):.6f}" for part in one.ImagePositionPatient]),
    ],
    ids=["private", "overhead", "coerced", "name", "id", "no accession", "no sex", "character set", "digits"],
)
def test_what_does_not_matter_is_no_difference(change: Callable[[Dataset], None]) -> None:
    other = image()
    change(other)
    assert compare(encoded(image()), encoded(other, ImplicitVRLittleEndian)) is Sameness.SAME


def pixel(one: Dataset) -> None:
    pixels = np.frombuffer(one.PixelData, "<u2").copy()
    pixels[100] += 1
    one.PixelData = pixels.tobytes()


def moved(one: Dataset) -> None:
    x, y, z = one.ImagePositionPatient
    one.ImagePositionPatient = [x, y, float(z) + 1]


@pytest.mark.parametrize(
    "change",
    [
        pixel,
        moved,
        lambda one: setattr(one, "PatientName", "Doe^Jane"),
        lambda one: setattr(one, "PatientBirthDate", "19710101"),
        lambda one: setattr(one, "AccessionNumber", "ACC2"),
        lambda one: setattr(one, "RescaleIntercept", float(one.RescaleIntercept) + 1),
        lambda one: setattr(one, "PixelSpacing", [1.5, 1.5]),
        lambda one: setattr(one, "ImageOrientationPatient", [-1, 0, 0, 0, 1, 0]),
        lambda one: setattr(one, "FrameOfReferenceUID", "1.2.3"),
        lambda one: setattr(one, "AcquisitionNumber", 7),
        lambda one: setattr(one, "ImageType", ["DERIVED", "SECONDARY", "LOCALIZER"]),
    ],
    ids=[
        "pixel", "moved", "name", "born", "accession", "rescale", "spacing", "mirrored", "frame", "phase", "localizer"
    ],
)  # fmt: skip
def test_what_matters_is_another_image(change: Callable[[Dataset], None]) -> None:
    other = image()
    change(other)
    assert compare(encoded(image()), encoded(other)) is Sameness.DIFFERENT


def test_a_lossy_copy_is_poorer_and_what_it_was_made_of_better() -> None:
    lossy = encoded(image(), JPEGLSNearLossless, jls_error=3)
    assert compare(encoded(image()), lossy) is Sameness.POORER
    assert compare(lossy, encoded(image())) is Sameness.DIFFERENT
    inverted = image()
    inverted.PixelData = (4000 - np.frombuffer(inverted.PixelData, "<u2")).astype("<u2").tobytes()
    assert compare(encoded(image()), encoded(inverted, JPEGLSNearLossless, jls_error=3)) is Sameness.DIFFERENT


def test_what_cannot_be_decoded_replaces_nothing_that_can() -> None:
    cut, buffer = image(), BytesIO()
    dcmwrite(buffer, cut, enforce_file_format=True)
    short = read_instance(lambda: BytesIO(buffer.getvalue()[:-100]), "image")
    assert compare(encoded(image()), short) is Sameness.UNDECODABLE
    assert compare(short, encoded(image())) is Sameness.DIFFERENT


def test_what_cannot_be_segmented_is_compared_as_it_is_stored() -> None:
    other = image(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert compare(encoded(other), encoded(other, ImplicitVRLittleEndian)) is Sameness.SAME
    changed = image(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    pixel(changed)
    assert compare(encoded(other), encoded(changed)) is Sameness.DIFFERENT


def test_a_version_again_in_another_form_is_nothing_new(tmp_path: Path) -> None:
    """First, corrected, first again otherwise encoded, corrected again otherwise encoded: the correction counts."""
    first, corrected = image(), image()
    pixel(corrected)
    again, corrected_again = image(), image()
    with_private(again)
    pixel(corrected_again)
    with_private(corrected_again)
    with inbox(tmp_path) as box:
        box.send([first])
        for one in (corrected, again, corrected_again):
            box.send([one])
            assert Comparison(box.ledger, box.folder).step() and not Comparison(box.ledger, box.folder).step()
        assert [row.state for row in box.rows("instance")] == ["superseded", "conflict", "copy", "copy"]
        assert [(row.instances, row.revision) for row in box.rows("series")] == [(1, 2)]
        assert [row.kind for row in box.rows("event")] == ["instance.conflict", "instance.copy", "instance.copy"]
        for one in (corrected, again, corrected_again, first):
            box.send([one])
        assert len(box.rows("instance")) == 4 and not Comparison(box.ledger, box.folder).step()

"""Copies of source images, in every transfer syntax; and what is refused since its pixels may name somebody."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from medseg.deidentify.burned_in import burned_in
from medseg.deidentify.copies import write_copy
from medseg.deidentify.pseudonyms import Pseudonyms
from medseg.dicom.headers import frames, read_instance
from medseg.dicom.instance import Instance
from medseg.dicom.sources import find_instances
from tests.medseg.deidentify.judge import complaints
from tests.peers.programs import dciodvfy

NAMES = Pseudonyms(b"k" * 32)


def copied(file: Path, folder: Path) -> tuple[Instance, Path]:
    instance = read_instance(lambda: file.open("rb"), file.name)
    return instance, write_copy(instance, NAMES.person(instance.header), folder)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",  # with private elements
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_RLE.dcm",
        "image_dfl.dcm",  # deflated
        "J2K_pixelrep_mismatch.dcm",
    ],
)
def test_a_copy_has_the_pixels_of_its_source(name: str, tmp_path: Path) -> None:
    file = Path(str(get_testdata_file(name)))
    instance, path = copied(file, tmp_path)
    copy = dcmread(path)
    assert complaints(copy) == []
    assert copy.PixelData == dcmread(file).PixelData
    assert path.name == f"{copy.SOPInstanceUID}.dcm" == f"{NAMES.uid(instance.sop_instance_uid)}.dcm"
    assert copy.file_meta.MediaStorageSOPInstanceUID == copy.SOPInstanceUID
    assert path.read_bytes()[:128] == bytes(128)


def test_frames_lie_where_they_did(shared_data: Path, tmp_path: Path) -> None:
    """Functional groups are gone through, and no number of theirs is changed."""
    instance, path = copied(shared_data / "dicom" / "pydicom_files" / "eCT_Supplemental.dcm", tmp_path)
    again = read_instance(lambda: path.open("rb"), path.name)
    assert complaints(again.header) == []
    places = [[view.text("ImagePositionPatient") for view in frames(one.header)] for one in (instance, again)]
    assert places[0] == places[1] and all(places[0])


@pytest.mark.peer("dciodvfy")
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_a_copy_has_no_new_errors(name: str, tmp_path: Path) -> None:
    file = Path(str(get_testdata_file(name)))
    _, path = copied(file, tmp_path)
    assert errors(path) <= errors(file)


@pytest.mark.peer("dciodvfy")
@pytest.mark.slow
def test_copies_of_vendors_images_have_no_new_errors(shared_data: Path, tmp_path: Path) -> None:
    """An image of each series of real scanners, where the source can be judged at all."""
    judged = 0
    for archive in sorted((shared_data / "dicom_vendors").glob("*.zip")):
        for series in find_instances(archive).series():
            instance = series.instances[0]
            file = tmp_path / "source.dcm"
            with instance.open() as stream:
                file.write_bytes(stream.read())
            path = write_copy(instance, NAMES.person(instance.header), tmp_path)
            if not any(why in line for line in errors(file) for why in ("Object Not found", "Tags out of order")):
                assert errors(path) <= errors(file) | OF_ANIMALS, f"{archive.name}: {instance.name}"
                judged += 1
    assert judged > 20


#: Type 2C where the patient is an animal, and to be removed.
OF_ANIMALS = {
    f"Error - Missing attribute Type 2C Conditional Element=<Responsible{who}> Module=<Patient>"
    for who in ("Person", "Organization")
}


def errors(file: Path) -> set[str]:
    return {re.sub(r"<[\d.]+>", "<UID>", line) for line in dciodvfy(file)}


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"Modality": "CT"}, False),
        ({"Modality": "CT", "BurnedInAnnotation": "YES"}, True),
        ({"Modality": "US"}, True),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, False),
        ({"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True),
        ({"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, True),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "MPR"]}, False),
        ({"Modality": "MR", "ConversionType": "SD"}, True),
        ({"Modality": "CR", "OverlayBitPosition": 12}, True),
        ({"Modality": "CR", "OverlayBitPosition": 0}, False),
    ],
)
def test_what_may_be_written_on_is_refused(values: dict[str, object], refused: bool) -> None:
    header = Dataset()
    for keyword, value in values.items():
        if keyword == "OverlayBitPosition":
            header.add_new(0x60000102, "US", value)
        else:
            setattr(header, keyword, value)
    instance = Instance(header, lambda: pytest.fail("pixels are not looked at"), "")
    assert (burned_in([instance]) is not None) is refused

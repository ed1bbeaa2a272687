"""WADO-RS: what is given out is what was sent, as it was or in Explicit VR Little Endian; to pydicom's own readers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from io import BytesIO

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
)

from tests.gateway.phantoms import phantom
from tests.gateway.receiving import make_ct
from tests.gateway.web.held import HeldStudy, hold
from tests.gateway.web.served import Answer, Served, served
from tests.medseg.dicom.encoders import COMPRESSED, PLAIN, file_of, frame_of, with_frame

AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
FRAMES = 'multipart/related; type="application/octet-stream"'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("retrieve")) as one:
        yield one


@pytest.fixture(scope="module")
def study(site: Served) -> HeldStudy:
    return hold(site)


@pytest.fixture(scope="module")
def client(site: Served) -> DICOMwebClient:
    return DICOMwebClient(f"http://127.0.0.1:{site.port}/dicom-web")


def address(one: Dataset) -> str:
    uids = one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID
    return "/dicom-web/studies/{}/series/{}/instances/{}".format(*uids)


def parts(answer: Answer) -> list[tuple[str, bytes]]:
    """Content type and content of each part, as the standard library reads them."""
    whole = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode() + answer.content
    several = message_from_bytes(whole).get_payload()
    return [(one["Content-Type"], one.get_payload(decode=True)) for one in several if isinstance(one, Message)]


def put(site: Served, content: bytes) -> Dataset:
    """A file, received as any other."""
    peer = site.box.open()
    site.box.store_file(peer, content)
    return dcmread(BytesIO(content), force=True)


# ---- objects


def test_a_study_comes_back_as_it_was_sent(client: DICOMwebClient, study: HeldStudy) -> None:
    objects = {one.SOPInstanceUID: one for one in client.retrieve_study(study.uid)}
    assert len(objects) == len(study.images) + 2
    for image in study.images:
        back = objects[image.SOPInstanceUID]
        assert back == image and back.PixelData == image.PixelData
    seg = dcmread(study.seg)
    assert objects[seg.SOPInstanceUID] == seg


def test_an_object_by_itself_is_a_file(site: Served, study: HeldStudy) -> None:
    seg = dcmread(study.seg)
    answer = site.get(address(seg), accept="application/dicom")
    assert answer.content == study.seg.read_bytes()
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"


@pytest.mark.parametrize("syntax", PLAIN, ids=lambda one: one.name)
def test_any_plain_transfer_syntax_in_explicit_little_endian(site: Served, syntax: UID) -> None:
    sent = make_ct(16, seed=3, SeriesNumber=4)
    sent.add_new(0x00091001, "OB", b"\1\2")  # of somebody's own
    sent.add_new(0x00090010, "LO", "SOMEBODY")
    pixels = sent.pixel_array
    if syntax == ExplicitVRBigEndian:
        sent.PixelData = pixels.byteswap().tobytes()
    put(site, file_of(sent, syntax))
    as_stored = dcmread(BytesIO(parts(site.get(address(sent), accept=AS_STORED))[0][1]))
    back = dcmread(BytesIO(parts(site.get(address(sent)))[0][1]))
    assert (as_stored.file_meta.TransferSyntaxUID, back.file_meta.TransferSyntaxUID) == (syntax, ExplicitVRLittleEndian)
    assert (back.pixel_array == pixels).all()
    assert (back.SeriesNumber, back[0x00091001].value) == (4, b"\1\2")


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda one: one.name)
def test_what_is_compressed_is_decoded_unless_it_is_asked_for_as_it_is(site: Served, syntax: UID) -> None:
    sent = make_ct(32, PixelRepresentation=0, BitsStored=12, HighBit=11)
    words = np.random.default_rng(1).integers(0, 4096, (32, 32), np.uint16)
    frame = frame_of(words, syntax, 12)
    content = BytesIO()
    with_frame(sent, syntax, frame).save_as(content, enforce_file_format=True)
    put(site, content.getvalue())
    back = dcmread(BytesIO(parts(site.get(address(sent)))[0][1]))
    assert (np.frombuffer(back.PixelData, "<u2").reshape(32, 32) == words).all()
    ((kind, plain),) = parts(site.get(f"{address(sent)}/frames/1", accept=FRAMES))
    assert plain == words.tobytes() and kind.endswith(f"transfer-syntax={ExplicitVRLittleEndian}")
    ((kind, stored),) = parts(site.get(f"{address(sent)}/frames/1", accept=f"{FRAMES}; transfer-syntax=*"))
    assert stored.rstrip(b"\0") == frame.rstrip(b"\0") and kind.endswith(f"transfer-syntax={syntax}")
    assert site.get(address(sent), accept=f'{AS_STORED[:-1]}"1.2.3"').status == 406


def test_colours_that_nothing_decodes_are_given_as_they_are_stored(site: Served) -> None:
    jpeg = BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(jpeg, "JPEG")
    sent = make_ct(16, SOPClassUID=SecondaryCaptureImageStorage, SamplesPerPixel=3, PlanarConfiguration=0,
                   PhotometricInterpretation="YBR_FULL_422", BitsAllocated=8, BitsStored=8, HighBit=7,
                   PixelRepresentation=0)  # fmt: skip
    content = BytesIO()
    with_frame(sent, JPEGBaseline8Bit, jpeg.getvalue()).save_as(content, enforce_file_format=True)
    put(site, content.getvalue())
    refused = site.get(address(sent))
    assert refused.status == 406 and "transfer-syntax=*" in json.loads(refused.body)["detail"]
    assert parts(site.get(address(sent), accept=AS_STORED))[0][1].endswith(content.getvalue()[-200:])
    ((kind, frame),) = parts(site.get(f"{address(sent)}/frames/1", accept='multipart/related; type="image/jpeg"'))
    assert kind.startswith("image/jpeg") and frame.rstrip(b"\0") == jpeg.getvalue().rstrip(b"\0")
    shown = Image.open(BytesIO(site.get(f"{address(sent)}/rendered", accept="image/png").content))
    assert np.abs(np.array(shown.getpixel((8, 8))) - (200, 30, 30)).max() < 4


# ---- metadata, frames, bulk data


def test_metadata_say_what_the_objects_say(client: DICOMwebClient, study: HeldStudy) -> None:
    by_uid = {one["00080018"]["Value"][0]: one for one in client.retrieve_study_metadata(study.uid)}
    for sent in (*study.images, dcmread(study.seg), dcmread(study.sr)):
        told = Dataset.from_json(by_uid[sent.SOPInstanceUID], lambda *_: None)
        for element in sent:
            if element.keyword not in ("PixelData", "SpecificCharacterSet"):
                assert told[element.tag] == element
    (of_one,) = [client.retrieve_instance_metadata(study.uid, study.series_uid, study.images[0].SOPInstanceUID)]
    assert of_one == by_uid[study.images[0].SOPInstanceUID]


def test_frames_of_one_bit_a_pixel_begin_with_a_byte(client: DICOMwebClient, site: Served) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, 7), np.uint8)  # 35 bits: no frame ends with a byte
    sent = make_ct(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Rows=5, Columns=7, NumberOfFrames=3, BitsAllocated=1,
                   BitsStored=1, HighBit=0, PixelRepresentation=0)  # fmt: skip
    sent.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes() + b"\0" * 0
    content = file_of(sent, ExplicitVRBigEndian)
    put(site, content)
    uids = sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID
    for number, frame in zip((3, 1), client.retrieve_instance_frames(*uids, [3, 1]), strict=True):
        got = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:35].reshape(5, 7)
        assert (got == bits[number - 1]).all()
    back = dcmread(BytesIO(parts(site.get(address(sent)))[0][1]))
    assert back.PixelData[:14] == sent.PixelData[:14]


def test_bulk_data_by_the_address_in_the_metadata(client: DICOMwebClient, site: Served) -> None:
    sent = phantom(3, slices=1)[0]
    item = Dataset()
    item.add_new(0x00420011, "OB", bytes(range(256)) * 16)  # EncapsulatedDocument
    sent.add_new(0x0040A730, "SQ", [Dataset(), item])
    site.box.send([sent])
    told = client.retrieve_instance_metadata(sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID)
    inner = told["0040A730"]["Value"][1]["00420011"]
    assert client.retrieve_bulkdata(inner["BulkDataURI"]) == [item[0x00420011].value]
    assert client.retrieve_bulkdata(told["7FE00010"]["BulkDataURI"]) == [sent.PixelData]
    at = told["7FE00010"]["BulkDataURI"].split(str(site.port))[1]
    assert site.get(at, accept="application/octet-stream").content == sent.PixelData
    assert site.get(f"{at[:-8]}0040A730/7/00420011").status == 404


# ---- rendered


def test_a_rendered_frame_is_the_window_of_its_values(site: Served, study: HeldStudy) -> None:
    image = study.images[1]
    values = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    answer = site.get(f"{address(image)}/rendered?window=40,400,linear-exact", accept="image/png")
    shown = np.asarray(Image.open(BytesIO(answer.content)))
    expected = np.rint(np.clip((values - 40) / 400 + 0.5, 0, 1) * 255)
    assert answer.headers["content-type"] == "image/png" and (shown == expected).all()
    jpeg = Image.open(BytesIO(site.get(f"{address(image)}/rendered?viewport=64,20").content))
    assert (jpeg.format, jpeg.size) == ("JPEG", (20, 20))
    several = parts(site.get(f"/dicom-web/studies/{study.uid}/series/{study.series_uid}/rendered"))
    assert len(several) == len(study.images)
    assert site.get(f"{address(image)}/rendered?window=40").status == 400


def test_the_other_way_round_and_not_square(site: Served) -> None:
    sent = phantom(4, slices=1)[0]
    sent.PhotometricInterpretation, sent.PixelSpacing = "MONOCHROME1", [1, 2]
    site.box.send([sent])
    shown = Image.open(BytesIO(site.get(f"{address(sent)}/rendered?window=40,400", accept="image/png").content))
    assert (shown.getpixel((0, 0)), shown.size) == (255, (32, 32))  # air, which was black
    small = Image.open(BytesIO(site.get(f"{address(sent)}/thumbnail").content))
    assert small.size == (128, 64)


@pytest.mark.parametrize("what", ["/rendered", "/thumbnail", "/frames/1"])
def test_a_report_has_no_picture(site: Served, study: HeldStudy, what: str) -> None:
    assert site.get(f"{address(dcmread(study.sr))}{what}").status == 404


# ---- what there is not, and who may ask


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/frames/0", 404), ("/frames/2", 404), ("/frames/x", 400), ("/frames/1,,1", 400), ("/frames/-1", 400),
        ("/bulkdata/00080018", 404), ("/bulkdata/junk", 404), ("/bulkdata/../../x", 404), ("/nothing", 404),
    ],
)  # fmt: skip
def test_what_is_not_there(site: Served, study: HeldStudy, path: str, status: int) -> None:
    answer = site.get(f"{address(study.images[0])}{path}")
    assert (answer.status, json.loads(answer.body)["status"]) == (status, status)


def test_hostile_uids_are_of_nothing(site: Served) -> None:
    for uid in ("..%2F..%2Fetc", "%00", "'%20OR%201=1", "x" * 300):
        assert site.get(f"/dicom-web/studies/{uid}/metadata").status == 404


def test_damaged_pixels_break_no_promise(site: Served) -> None:
    sent = make_ct(16)
    content = BytesIO()
    with_frame(sent, JPEG2000Lossless, b"\xff\x4f\xff\x51 no image").save_as(content, enforce_file_format=True)
    put(site, content.getvalue())
    assert site.get(f"{address(sent)}/frames/1").status == 406
    assert site.get(f"{address(sent)}/rendered").status == 406
    assert site.get(address(sent), accept=AS_STORED).status == 200


def test_another_name_of_this_machine_is_refused(site: Served, study: HeldStudy) -> None:
    """What a page does whose host was made to lead here (DNS rebinding)."""
    assert site.get(f"/dicom-web/studies/{study.uid}", host="evil.example:80").status == 400
    headers = site.get("/dicom-web/studies").headers
    assert "access-control-allow-origin" not in headers and headers["cross-origin-resource-policy"] == "same-origin"

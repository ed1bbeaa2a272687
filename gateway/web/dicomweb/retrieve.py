"""WADO-RS (PS3.18 10.4): objects, their metadata, frames and bulk data; each as it is stored, or in Explicit VR Little
Endian where nothing else is asked for. Whatever is asked for is given whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)
from starlette.responses import Response

from gateway.dicomweb.dataset_json import Json, array_of, data_set_json, name_of, tag_of, value
from gateway.dicomweb.media import ANY, DICOM, DICOM_JSON, JSON, OCTETS, Choice, Offer
from gateway.web.dicomweb.answers import Part, in_parts, streamed
from gateway.web.dicomweb.holdings import Given, Held, given
from gateway.web.dicomweb.pixels import PixelSource, pieces, source_of
from gateway.web.dicomweb.places import Place, accepted, site_of
from gateway.web.dicomweb.plain import explicit, why_not
from gateway.web.dicomweb.problems import Problem, not_here
from gateway.web.dicomweb.search import SYNTAXES
from medseg.dicom.encoding import find_encoding
from medseg.dicom.headers import MALFORMED, read_header
from medseg.dicom.pixel_element import PIXEL_KEYWORDS, pixel_element

router = APIRouter(tags=["retrieve"])
MOST_FRAMES: Final = 10_000  # in one request
_PARTLY = '299 medseg "{} images of the study were deleted by retention ([retain] inputs_s) and are left out."'
#: What the frames of a transfer syntax are called by themselves (PS3.18 table 8.7.3-5).
_KINDS: Final[tuple[tuple[Sequence[UID], str], ...]] = (
    ((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), "image/jphc"),
    (JPEG2000TransferSyntaxes, "image/jp2"),
    (JPEGLSTransferSyntaxes, "image/jls"),
    (JPEGTransferSyntaxes, "image/jpeg"),
    ((RLELossless,), "image/dicom-rle"),
)


@router.get("/studies/{study_uid}")
def study(request: Request, study_uid: str) -> Response:
    """All objects of a study."""
    return objects(request, given(site_of(request), study_uid))


@router.get("/studies/{study_uid}/series/{series_uid}")
def series(request: Request, study_uid: str, series_uid: str) -> Response:
    """All objects of a series."""
    return objects(request, given(site_of(request), study_uid, series_uid))


@router.get("/studies/{study_uid}/series/{series_uid}/instances/{instance_uid}")
def instance(request: Request, study_uid: str, series_uid: str, instance_uid: str) -> Response:
    """An object."""
    return objects(request, given(site_of(request), study_uid, series_uid, instance_uid), single=True)


def objects(request: Request, found: Given, *, single: bool = False) -> Response:
    """Files, each as it is stored or in Explicit VR Little Endian. single: one may come by itself."""
    reasons: list[str] = []
    for choice in accepted(request, [Offer(DICOM, multipart=True), *([Offer(DICOM)] if single else [])]):
        wanted = [_as_stored(one, choice.transfer_syntax) for one in found.objects]
        why = _why_not(found.objects, wanted, choice)
        if not why:
            break
        reasons.append(why)
    else:
        raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"{reasons[0]}: ask for transfer-syntax=* to have it as it is stored")
    parts = [_file(one, stored) for one, stored in zip(found.objects, wanted, strict=True)]
    if choice.offer.multipart:
        status, headers = _partly(found)
        return in_parts(DICOM, parts, status, headers)
    ((described, content),) = parts
    return streamed(content, described["Content-Type"], headers=described)


def _as_stored(one: Held, transfer_syntax: str | None) -> bool:
    """Whether a file goes out as it is, to be in a transfer syntax."""
    own = one.known.transfer_syntax_uid
    return transfer_syntax == ANY or own == (transfer_syntax or ExplicitVRLittleEndian)


def _why_not(several: Sequence[Held], as_stored: Sequence[bool], choice: Choice) -> str:
    """Why files cannot go out as they are asked for; empty where they can."""
    for one, stored in zip(several, as_stored, strict=True):
        if not stored and choice.transfer_syntax not in (None, ExplicitVRLittleEndian):
            why = f"it is in {UID(one.known.transfer_syntax_uid).name}, and turned into Explicit VR Little Endian alone"
        else:
            why = "" if stored else why_not(one.path)
        if why:
            return f"instance {one.sop_instance_uid}: {why}"
    return ""


def _file(one: Held, as_stored: bool) -> Part:
    try:
        length = one.path.stat().st_size
    except OSError as error:
        raise not_here(f"the file of instance {one.sop_instance_uid}") from error
    own = one.known.transfer_syntax_uid
    if as_stored or own == ExplicitVRLittleEndian:
        headers = {"Content-Type": f"{DICOM}; transfer-syntax={own}", "Content-Length": str(length)}
        return headers, pieces(one.path)
    return {"Content-Type": f"{DICOM}; transfer-syntax={ExplicitVRLittleEndian}"}, explicit(one.path, own)


def _partly(found: Given) -> tuple[int, dict[str, str]]:
    if not found.deleted:
        return HTTPStatus.OK, {}
    return HTTPStatus.PARTIAL_CONTENT, {"Warning": _PARTLY.format(found.deleted)}


# ---- metadata


@router.get("/studies/{study_uid}/metadata")
def metadata_of_study(request: Request, study_uid: str) -> Response:
    """Attributes of all objects of a study; long binary values by their addresses."""
    return metadata(request, given(site_of(request), study_uid))


@router.get("/studies/{study_uid}/series/{series_uid}/metadata")
def metadata_of_series(request: Request, study_uid: str, series_uid: str) -> Response:
    """Attributes of all objects of a series."""
    return metadata(request, given(site_of(request), study_uid, series_uid))


@router.get("/studies/{study_uid}/series/{series_uid}/instances/{instance_uid}/metadata")
def metadata_of_instance(request: Request, study_uid: str, series_uid: str, instance_uid: str) -> Response:
    """Attributes of an object."""
    return metadata(request, given(site_of(request), study_uid, series_uid, instance_uid))


def metadata(request: Request, found: Given) -> Response:
    choice = accepted(request, [Offer(DICOM_JSON), Offer(JSON)])[0]
    place = Place.of(request)
    status, headers = _partly(found)
    return streamed(array_of(_attributes(one, place) for one in found.objects), choice.offer.kind, status, headers)


def _attributes(one: Held, place: Place) -> Json:
    bulk = f"{place.instance(one)}/bulkdata/"
    try:
        with one.path.open("rb") as stream:
            coded = find_encoding(stream)
            header = read_header(stream, coded)
            deflated = coded.syntax == DeflatedExplicitVRLittleEndian
            element = None if deflated else pixel_element(stream, implicit=coded.implicit, little=coded.little)
        told = data_set_json(header, lambda at: bulk + at)
    except MALFORMED:  # which no viewer could use, either
        told, element = {"00080018": value("UI", one.sop_instance_uid)}, None
    if element is not None:
        tag = next(tag for tag, keyword in PIXEL_KEYWORDS.items() if keyword == element.keyword)
        vr = {"FloatPixelData": "OF", "DoubleFloatPixelData": "OD"}.get(element.keyword, "OW")
        told[name_of(tag)] = {"vr": vr, "BulkDataURI": bulk + name_of(tag)}
    return told | {SYNTAXES: value("UI", one.known.transfer_syntax_uid)}


# ---- frames


@router.get("/studies/{study_uid}/series/{series_uid}/instances/{instance_uid}/frames/{frames}")
def frames(
    request: Request,
    study_uid: str,
    series_uid: str,
    instance_uid: str,
    frames: Annotated[str, InPath(description="numbers from 1 on, with commas between them", max_length=100_000)],
) -> Response:
    """Frames of an object, decoded unless they are asked for as they are stored."""
    (one,) = given(site_of(request), study_uid, series_uid, instance_uid).objects
    source = source_of(one.path)
    numbers = frame_numbers(frames, source)
    kind = next((kind for several, kind in _KINDS if source.syntax in several), OCTETS)
    offers = [Offer(OCTETS, multipart=True), *([Offer(kind, multipart=True)] if kind != OCTETS else [])]
    if len(numbers) == 1:
        offers += [Offer(one.kind) for one in offers]
    for choice in accepted(request, offers):
        stored = _frames_stored(source, choice)
        if stored is not None:
            return _frames(source, numbers, choice, stored)
    why = f"instance {instance_uid}: its frames are in {source.syntax.name}"
    raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"{why}: ask for transfer-syntax=* to have them as they are stored")


def frame_numbers(text: str, source: PixelSource) -> list[int]:
    """From the path of a request. Raises Problem."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts) or len(parts) > MOST_FRAMES:
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected up to {MOST_FRAMES} frame numbers with commas between them")
    numbers = [int(part) for part in parts]
    if not all(1 <= number <= source.frames for number in numbers):
        raise not_here(f"of {source.frames} frames one with a number beyond")
    return numbers


def _frames_stored(source: PixelSource, choice: Choice) -> bool | None:
    """Whether frames go out as they are stored, or plain; None where neither is what is asked for."""
    syntax = choice.transfer_syntax
    if choice.offer.kind != OCTETS or (source.encapsulated and syntax in (ANY, source.syntax)):
        return True if syntax in (None, ANY, source.syntax) else None
    return False if source.decodable and syntax in (None, ANY, ExplicitVRLittleEndian) else None


def _frames(source: PixelSource, numbers: Sequence[int], choice: Choice, stored: bool) -> Response:
    syntax = source.syntax if stored else ExplicitVRLittleEndian
    read = source.stored if stored else source.plain
    content_type = f"{choice.offer.kind}; transfer-syntax={syntax}"
    first = read(numbers[0])  # what cannot be decoded is said before anything is sent

    def parts() -> Iterator[Part]:
        for place, number in enumerate(numbers):
            yield {"Content-Type": content_type}, [read(number) if place else first]

    if choice.offer.multipart:
        return in_parts(choice.offer.kind, parts())
    return Response(first, media_type=content_type)


# ---- bulk data


@router.get("/studies/{study_uid}/series/{series_uid}/instances/{instance_uid}/bulkdata/{at:path}")
def bulk_data(request: Request, study_uid: str, series_uid: str, instance_uid: str, at: str) -> Response:
    """A long binary value, by the address that metadata give."""
    (one,) = given(site_of(request), study_uid, series_uid, instance_uid).objects
    choices = accepted(request, [Offer(OCTETS, multipart=True), Offer(OCTETS)])
    tag = tag_of(at)
    if tag is not None and int(tag) in PIXEL_KEYWORDS:
        source = source_of(one.path)
        for choice in choices:
            stored = _frames_stored(source, choice)
            if stored is not None and (choice.offer.multipart or not stored):
                return _all_frames(source, choice, stored)
        why = f"instance {instance_uid}: its pixels are in {source.syntax.name}"
        raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"{why}: ask for transfer-syntax=* in parts to have them so")
    data = _binary(one.path, at)
    if data is None:
        raise not_here(f"a binary value of instance {instance_uid} at that place")
    content_type = f"{OCTETS}; transfer-syntax={ExplicitVRLittleEndian}"
    if choices[0].offer.multipart:
        return in_parts(OCTETS, [({"Content-Type": content_type}, [data])])
    return Response(data, media_type=content_type)


def _all_frames(source: PixelSource, choice: Choice, stored: bool) -> Response:
    if stored:
        return _frames(source, range(1, source.frames + 1), choice, stored)
    content_type = f"{OCTETS}; transfer-syntax={ExplicitVRLittleEndian}"
    content = source.all_plain()
    return (
        in_parts(OCTETS, [({"Content-Type": content_type}, content)])
        if choice.offer.multipart
        else streamed(content, content_type)
    )


def _binary(path: Path, at: str) -> bytes | None:
    """The value at a place in the header of the object in a file; None where there is none that is binary."""
    tags = at.split("/")
    try:
        with path.open("rb") as stream:
            data_set = read_header(stream, find_encoding(stream))
        for sequence, number in zip(tags[:-1:2], tags[1::2], strict=True):
            data_set = data_set[Tag(int(sequence, 16))].value[int(number)]
        found = data_set[Tag(int(tags[-1], 16))].value
    except MALFORMED:
        return None
    return found if isinstance(found, bytes) else None

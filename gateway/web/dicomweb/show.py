"""Rendered images and thumbnails (PS3.18 10.4.1.1.3 and 10.4.1.1.4) of studies, series, instances and frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from gateway.dicomweb.media import JPEG, PNG, Offer
from gateway.web.dicomweb.answers import Part, in_parts
from gateway.web.dicomweb.holdings import Given, Held, given
from gateway.web.dicomweb.pixels import PixelSource, source_of
from gateway.web.dicomweb.places import accepted, site_of
from gateway.web.dicomweb.problems import Problem, not_here
from gateway.web.dicomweb.rendered import QUALITY, THUMBNAIL, Look, image_of, size_of, window_of
from gateway.web.dicomweb.retrieve import frame_numbers
from medseg.dicom.classes import is_image_class
from medseg.errors import InputError

router = APIRouter(tags=["show"])
_STUDY = "/studies/{study_uid}"
_SERIES = _STUDY + "/series/{series_uid}"
_INSTANCE = _SERIES + "/instances/{instance_uid}"
_FRAMES = _INSTANCE + "/frames/{frames}"


def shown(
    window: Annotated[str | None, Query(max_length=100, description="center,width or center,width,function")] = None,
    viewport: Annotated[str | None, Query(max_length=100, description="width,height")] = None,
    quality: Annotated[int, Query(ge=1, le=100)] = QUALITY,
) -> Look:
    """From the parameters of a request. Raises Problem."""
    return Look(window_of(window) if window else None, size_of(viewport) if viewport else None, quality)


Shown = Annotated[Look, Depends(shown)]


@router.get(_STUDY + "/rendered")
def rendered_study(request: Request, asked: Shown, study_uid: str) -> Response:
    """All images of a study, in parts."""
    return _all(request, given(site_of(request), study_uid), asked)


@router.get(_SERIES + "/rendered")
def rendered_series(request: Request, asked: Shown, study_uid: str, series_uid: str) -> Response:
    """All images of a series, in parts."""
    return _all(request, given(site_of(request), study_uid, series_uid), asked)


@router.get(_INSTANCE + "/rendered")
def rendered_instance(request: Request, asked: Shown, study_uid: str, series_uid: str, instance_uid: str) -> Response:
    """An image; in parts, where it has several frames."""
    return _all(request, given(site_of(request), study_uid, series_uid, instance_uid), asked)


@router.get(_FRAMES + "/rendered")
def rendered_frames(
    request: Request, asked: Shown, study_uid: str, series_uid: str, instance_uid: str, frames: str
) -> Response:
    """Frames; in parts, where they are several."""
    (one,) = given(site_of(request), study_uid, series_uid, instance_uid).objects
    source = source_of(one.path)
    return _rendered(request, [(source, number) for number in frame_numbers(frames, source)], asked)


@router.get(_STUDY + "/thumbnail")
def thumbnail_of_study(request: Request, asked: Shown, study_uid: str) -> Response:
    """A small image of the middle of a study's first series of images."""
    found = given(site_of(request), study_uid)
    series_uid = next((one.series_uid for one in found.objects if is_image_class(one.sop_class_uid)), None)
    return _thumbnail(request, [one for one in found.objects if one.series_uid == series_uid] or found.objects, asked)


@router.get(_SERIES + "/thumbnail")
def thumbnail_of_series(request: Request, asked: Shown, study_uid: str, series_uid: str) -> Response:
    """A small image of the middle of a series."""
    return _thumbnail(request, given(site_of(request), study_uid, series_uid).objects, asked)


@router.get(_INSTANCE + "/thumbnail")
def thumbnail_of_instance(
    request: Request, asked: Shown, study_uid: str, series_uid: str, instance_uid: str
) -> Response:
    """A small image of an object, of its middle frame."""
    return _thumbnail(request, given(site_of(request), study_uid, series_uid, instance_uid).objects, asked)


@router.get(_FRAMES + "/thumbnail")
def thumbnail_of_frame(
    request: Request, asked: Shown, study_uid: str, series_uid: str, instance_uid: str, frames: str
) -> Response:
    """A small image of a frame."""
    (one,) = given(site_of(request), study_uid, series_uid, instance_uid).objects
    source = source_of(one.path)
    return _small(request, source, frame_numbers(frames, source)[0], asked)


def _all(request: Request, found: Given, asked: Look) -> Response:
    """What of several objects has pixels."""
    sources = [source for one in found.objects if (source := _source(one)) is not None]
    if not sources:
        raise not_here("an image among what was asked for")
    return _rendered(request, [(one, number) for one in sources for number in range(1, one.frames + 1)], asked)


def _source(one: Held) -> PixelSource | None:
    try:
        return source_of(one.path)
    except Problem:
        return None


def _rendered(request: Request, wanted: Sequence[tuple[PixelSource, int]], asked: Look) -> Response:
    parted = [Offer(JPEG, multipart=True), Offer(PNG, multipart=True)]
    alone = [Offer(JPEG), Offer(PNG)] if len(wanted) == 1 else []
    offer = accepted(request, [*alone, *parted])[0].offer
    first = image_of(*wanted[0], offer.kind, asked)  # what cannot be shown is said before anything is sent
    if not offer.multipart:
        return Response(first, media_type=offer.kind)

    def parts() -> Iterator[Part]:
        for place, (source, number) in enumerate(wanted):
            yield {"Content-Type": offer.kind}, [image_of(source, number, offer.kind, asked) if place else first]

    return in_parts(offer.kind, parts())


def _thumbnail(request: Request, several: Sequence[Held], asked: Look) -> Response:
    """Of the one in the middle, or the next that can be shown."""
    middle = len(several) // 2
    for one in [*several[middle:], *several[:middle]]:
        source = _source(one)
        if source is None:
            continue
        try:
            return _small(request, source, (source.frames + 1) // 2, asked)
        except InputError:
            continue
    raise Problem(HTTPStatus.NOT_FOUND, "nothing of what was asked for can be shown")


def _small(request: Request, source: PixelSource, frame: int, asked: Look) -> Response:
    kind = accepted(request, [Offer(JPEG), Offer(PNG)])[0].offer.kind
    look = Look(asked.window, asked.size or (THUMBNAIL, THUMBNAIL), asked.quality)
    return Response(image_of(source, frame, kind, look), media_type=kind)

"""What the headers of a series announce and is not there.

attribute                        PS3.3            announces
ImagesInAcquisition              C.7.6.1          images of the acquisition, or of the series
InConcatenationTotalNumber       C.7.6.16.2.2.4   objects that together are one multi-frame image
NumberOfSlices (x time slices)   C.8.9.1          images of a PET series
NumberOfTemporalPositions        C.8.3.1          moments of a dynamic MR series
NumberOfSeriesRelatedInstances   PS3.4 C.3.4      objects of the series, where an archive wrote it into them

Frames that NumberOfFrames announces have their own errors: functional groups that are not one for each frame are
refused (`medseg.dicom.headers.frames`), and pixel data that ends early cannot be decoded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from medseg.dicom.headers import Attributes, look
from medseg.dicom.instance import Instance
from medseg.dicom.series import LeftOut, Series

CODE = "announced"


def missing(series: Series) -> tuple[LeftOut, ...]:
    """Each announcement that what is here falls short of."""
    headers = [look(one.header) for one in series.instances]
    found = (*_acquisitions(headers), *_concatenations(headers), *_pet(headers), *_moments(headers))
    return (*found, *([] if found else _of_the_series(series.instances)))


def _short(announced: int, here: int, of: str, keyword: str) -> Iterator[LeftOut]:
    if announced > here:
        yield LeftOut(CODE, announced - here, of, f"{keyword} announces {announced}, {here} came", here=False)


def _count(view: Attributes, keyword: str) -> int:
    """A number of things; 0 where there is none."""
    number = view.number(keyword)
    return int(number) if number is not None and 0 < number < 2**31 else 0


def _images(views: Sequence[Attributes]) -> int:
    """A frame is an image where several share an object."""
    return sum(max(_count(view, "NumberOfFrames"), 1) for view in views)


def _acquisitions(views: Sequence[Attributes]) -> Iterator[LeftOut]:
    """By AcquisitionNumber; vendors also give each image of several acquisitions the number of them all."""
    parts: dict[str, list[Attributes]] = defaultdict(list)
    for view in views:
        parts[view.text("AcquisitionNumber")].append(view)
    announced = [max(_count(view, "ImagesInAcquisition") for view in part) for part in parts.values()]
    here = [_images(part) for part in parts.values()]
    if len(set(announced)) == 1 and announced[0] >= sum(here):
        announced, here = announced[:1], [sum(here)]
    for most, count in zip(announced, here, strict=True):
        yield from _short(most, count, "images", "ImagesInAcquisition")


def _concatenations(views: Sequence[Attributes]) -> Iterator[LeftOut]:
    parts: dict[str, list[Attributes]] = defaultdict(list)
    for view in views:
        if view.text("ConcatenationUID"):
            parts[view.text("ConcatenationUID")].append(view)
    for part in parts.values():
        announced = max(_count(view, "InConcatenationTotalNumber") for view in part)
        here = len({view.text("InConcatenationNumber") for view in part})
        yield from _short(announced, here, "objects", "InConcatenationTotalNumber")


def _pet(views: Sequence[Attributes]) -> Iterator[LeftOut]:
    first = views[0]
    if first.text("Modality") != "PT" or any(_count(view, "NumberOfFrames") > 1 for view in views):
        return
    kind = first.texts("SeriesType")[:1]
    slices = max(_count(view, "NumberOfSlices") for view in views)
    times = max(_count(view, "NumberOfTimeSlices") for view in views) if kind == ("DYNAMIC",) else 1
    keyword = "NumberOfSlices" if times <= 1 else "NumberOfSlices by NumberOfTimeSlices"
    yield from _short(slices * max(times, 1), len(views), "images", keyword)


def _moments(views: Sequence[Attributes]) -> Iterator[LeftOut]:
    identifiers = {view.text("TemporalPositionIdentifier") for view in views} - {""}
    if identifiers:
        announced = max(_count(view, "NumberOfTemporalPositions") for view in views)
        yield from _short(announced, len(identifiers), "moments", "NumberOfTemporalPositions")


def _of_the_series(instances: Sequence[Instance]) -> Iterator[LeftOut]:
    announced = max(_count(look(one.header), "NumberOfSeriesRelatedInstances") for one in instances)
    yield from _short(announced, len(instances), "objects", "NumberOfSeriesRelatedInstances")

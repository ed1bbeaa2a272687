"""Which instances of a series are images that can be segmented, and what such a series says of itself.

A series may hold more than its slices: screen saves, dose reports, key objects, a localizer, results of somebody else.
DICOM gives no order to its instances (PS3.4 B.1), so that none of them speaks for the others: a series is what most of
its images that can be segmented say, each attribute by itself; where equally many say different things, the first of
these in the order of their text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from medseg.dicom.classes import IMAGES
from medseg.dicom.headers import look
from medseg.dicom.instance import Instance
from medseg.dicom.slices import check_image, expand
from medseg.errors import GeometryRefused

T = TypeVar("T")


def refusal(instance: Instance) -> GeometryRefused | None:
    """Why an image is part of no volume whatever lies beside it; None where it may be.

    Of an image with many frames only what its header says for all of them: the rest takes long to read.
    """
    try:
        if "PerFrameFunctionalGroupsSequence" in instance.header:
            check_image(instance, look(instance.header))
        else:
            expand(instance)
    except GeometryRefused as error:
        return error
    return None


def images_of(instances: Sequence[Instance]) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
    """The instances of one series that are its images, and those that lie beside them, by their classes.

    A series without any image of `IMAGES` is whatever it is: a volume saved as secondary captures is one.
    """
    images = tuple(one for one in instances if one.sop_class_uid in IMAGES)
    if not images or len(images) == len(instances):
        return tuple(instances), ()
    return images, tuple(one for one in instances if one.sop_class_uid not in IMAGES)


def agreed(values: Iterable[T]) -> T:
    """What most of several say; of what equally many say, the first in the order of its text."""
    counted = Counter(values)
    most = max(counted.values())
    return min((value for value, count in counted.items() if count == most), key=str)


def said_by(instances: Sequence[Instance], keywords: Sequence[str]) -> dict[str, str]:
    """What a series says of itself: by keyword, what most of its images that can be segmented say."""
    views = [look(one.header) for one in instances]
    values = [tuple(view.text(keyword) for keyword in keywords) for view in views]
    if len(set(values)) > 1:  # which of them can be segmented matters only then
        values = [one for one, instance in zip(values, instances, strict=True) if refusal(instance) is None] or values
    return {keyword: agreed(column) for keyword, column in zip(keywords, zip(*values, strict=True), strict=True)}

"""What happens around arriving instances: the events of `gateway.complete.arrivals`, in the order of their life."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from pydicom import Dataset

from medseg.dicom.headers import look


@dataclass(frozen=True)
class Image:
    """What is known of an instance.

    digest: of its bytes; tells a repetition from a correction.
    stack: same text, same orientation; position_mm: along the normal; None where the instance has no one plane.
    acquisition: AcquisitionNumber; images_in_acquisition: (0020,1002).
    """

    digest: str
    stack: str = ""
    position_mm: float | None = None
    acquisition: str | None = None
    images_in_acquisition: int | None = None

    @classmethod
    def from_header(cls, header: Dataset, digest: str) -> Image:
        """From a header, leniently: what is absent or malformed is not known."""
        seen = look(header)
        stack, position_mm = _place(seen.numbers("ImageOrientationPatient"), seen.numbers("ImagePositionPatient"))
        declared = seen.number("ImagesInAcquisition")
        return cls(
            digest,
            stack,
            position_mm,
            seen.text("AcquisitionNumber") or None,
            int(declared) if declared and 0 < declared < math.inf else None,
        )


@dataclass(frozen=True)
class AssociationOpened:
    """association: unique for all time; a STOW request is one, too. sender: who, in any spelling that stays."""

    association: str
    sender: str


@dataclass(frozen=True)
class AssociationReleased:
    association: str


@dataclass(frozen=True)
class AssociationAborted:
    """Aborted by either side, cut, or lost with its receiver; also a STOW request that broke off."""

    association: str


@dataclass(frozen=True)
class RequestEnded:
    """A STOW request came to its end, and all of it was stored."""

    association: str


@dataclass(frozen=True)
class InstanceArrived:
    """An instance is in the spool, whether for the first time or again."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    image: Image
    sender: str
    association: str


@dataclass(frozen=True)
class InstancesListed:
    """A storage commitment request: what its sender says it has sent.

    uids: without those that are in the spool and belong to studies that are not observed any more.
    """

    uids: frozenset[str]


@dataclass(frozen=True)
class CountAnswered:
    """A C-FIND or QIDO answer: how many instances `source` has of a series, or of the study (series_uid None)."""

    source: str
    study_uid: str
    series_uid: str | None
    count: int


@dataclass(frozen=True)
class Decided:
    """A decision on the series was carried out: a job was made of what is here."""

    study_uid: str
    series_uid: str


#: The ways an association ends.
Ended: TypeAlias = AssociationReleased | AssociationAborted | RequestEnded
Event: TypeAlias = AssociationOpened | Ended | InstanceArrived | InstancesListed | CountAnswered | Decided


def _place(orientation: tuple[float, ...], position: tuple[float, ...]) -> tuple[str, float | None]:
    """Name of the orientation, and position (mm) along the normal (PS3.3 C.7.6.2.1.1)."""
    if len(orientation) != 6 or len(position) != 3 or not all(map(math.isfinite, (*orientation, *position))):
        return "", None
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    name = ",".join(f"{component + 0.0:.3f}" for component in orientation)
    return name, sum(n * p for n, p in zip(normal, position, strict=True))

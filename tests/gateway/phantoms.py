"""The series that the gateway's tests send: small, and made by somebody else."""

from __future__ import annotations

import uuid
from typing import Any

from pydicom import Dataset

from medseg.dicom.phantom import Ellipsoid, make_series

ORGAN = Ellipsoid((0.0, 0.0, 0.0), (25.0, 20.0, 15.0), 90.0)


def phantom(seed: int = 0, slices: int = 6, **changes: Any) -> list[Dataset]:
    """A CT series of 32 x 32 with an organ in its middle; its UIDs follow from the seed.

    changes: attributes of each instance, by keyword.
    """
    series = make_series(spacing_mm=(3.0, 2.0, 2.0), shape=(slices, 32, 32), objects=[ORGAN], seed=seed)
    for instance in series:
        for keyword, value in ({"Manufacturer": "Phantom"} | changes).items():  # medseg's own is never segmented
            setattr(instance, keyword, value)
    return series


def new_phantom(seed: int = 0, slices: int = 8, **changes: Any) -> list[Dataset]:
    """One with UIDs that no series had before: for tests that share a service."""
    study, name = (f"2.25.{uuid.uuid4().int}" for _ in range(2))
    series = phantom(seed, slices)
    for k, instance in enumerate(series):
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": name, "SOPInstanceUID": f"{name}.{k}"}
        for keyword, value in (uids | changes).items():
            setattr(instance, keyword, value)
        instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    return series

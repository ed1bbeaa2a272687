"""Series made in memory for the tests of this folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medseg.dicom.headers import read_instance
from medseg.dicom.instance import Instance
from medseg.dicom.series import Series, Stack
from medseg.dicom.sources import to_series


def to_bytes(dataset: Dataset) -> bytes:
    """A data set as a DICOM file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def instance_of(content: bytes | Dataset, name: str = "made.dcm") -> Instance:
    """An instance whose file lies in memory."""
    encoded = to_bytes(content) if isinstance(content, Dataset) else content
    return read_instance(partial(io.BytesIO, encoded), name)


def series_of(datasets: Iterable[Dataset]) -> Series:
    """A series as reading would give it, in the order given."""
    return to_series([instance_of(dataset, f"{place}.dcm") for place, dataset in enumerate(datasets)])


def voxels_of(stack: Stack) -> NDArray[Any]:
    """All planes of a stack: (k, j, i)."""
    return np.stack([plane.read() for plane in stack.slices])


def each(datasets: Sequence[Dataset], change: Callable[[Dataset], object]) -> list[Dataset]:
    """All data sets, changed in place."""
    for dataset in datasets:
        change(dataset)
    return list(datasets)


def moved(dataset: Dataset, offset_mm: Sequence[float]) -> Dataset:
    """Put a slice elsewhere."""
    position = np.array([float(value) for value in dataset.ImagePositionPatient]) + np.array(offset_mm)
    dataset.ImagePositionPatient = [f"{value:.10g}" for value in position]
    return dataset


def renamed(dataset: Dataset, suffix: int) -> Dataset:
    """Another object of the same series."""
    dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{suffix}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset

"""NIfTI volumes, read as a stack of slices (nifti1.h; nibabel)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from medseg.dicom.instance import Pixels, Plane, Slice, Vector
from medseg.dicom.nifti_header import DAMAGED, affine_of, lies_as_meant, one_line, opened, shape_of, volumes_of
from medseg.dicom.series import Series, Stack, Stored
from medseg.errors import NoSuchInput, OutOfMemory, UnreadableInstance

#: Between the axes of DICOM and of NIfTI, either way: x and y run against each other.
LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHEARED = 1e-3
_ROUNDING = 1e-4


def is_nifti(path: Path) -> bool:
    """Whether a path names a NIfTI volume, by its ending."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path) -> Stack:
    """Read a volume; its planes lie along the third array axis, voxel [i, j, k] is column i, row j of slice k.

    The affine is the sform where it is set, else the qform (nibabel's order), turned from RAS to LPS, in mm. Values are
    read when a slice asks for them, with scl_slope and scl_inter applied.

    Raises:
        NoSuchInput: the path does not exist.
        UnreadableInstance: not NIfTI, damaged, no single volume of grey values, or an affine that is none.
    """
    if not path.exists():
        raise NoSuchInput(path)
    return _stack(_Volume(path))


def read_volumes(path: Path) -> tuple[Stack, ...]:
    """Read a file of one volume or of several along its fourth axis, on one grid. Raises as `read_nifti`."""
    if not path.exists():
        raise NoSuchInput(path)
    count = volumes_of(opened(path))
    return tuple(_stack(_Volume(path, number if count > 1 else None)) for number in range(count))


def _stack(volume: _Volume) -> Stack:
    columns, rows, count = volume.shape
    path = volume.path
    to_lps = LPS_TO_RAS @ volume.affine
    edges = to_lps[:3, :3]
    size = np.linalg.norm(edges, axis=0)
    row, column = edges[:, 0] / size[0], edges[:, 1] / size[1]
    if abs(float(row @ column)) > _SHEARED:
        raise UnreadableInstance(str(path), "rows and columns are not at right angles (sheared affine)")
    # Where i, j, k are left-handed, slices run against row x column; they are turned round, as in any other stack.
    backward = float(np.linalg.det(edges)) < 0
    numbers = range(count - 1, -1, -1) if backward else range(count)
    slices = tuple(
        Slice(
            Plane(
                position_mm=to_lps[:3, 3] + k * edges[:, 2],
                row_direction=row,
                column_direction=column,
                spacing_mm=(float(size[1]), float(size[0])),
                rows=rows,
                columns=columns,
            ),
            partial(volume.plane, k),
        )
        for k in numbers
    )
    affine = np.eye(4)
    affine[:3, 0] = -edges[:, 2] if backward else edges[:, 2]
    affine[:3, 1], affine[:3, 2] = edges[:, 1], edges[:, 0]
    affine[:3, 3] = slices[0].plane.position_mm
    normal = slices[0].plane.normal
    thickness = float(abs(edges[:, 2] @ normal))
    tilt = float(np.degrees(np.arccos(min(thickness / size[2], 1.0))))
    return Stack(
        series=Series("", "", "", None, "", "", ()),
        slices=slices,
        coordinates=np.arange(count, dtype=np.float64),
        affine=affine,
        thickness_mm=np.full(count, thickness),
        frame_of_reference_uid="",
        tilt_deg=tilt if tilt > 0.5 else 0.0,
        findings=volume.findings,
        stored=Stored(_as_written(volume.zooms, size), backward),
    )


def _as_written(zooms: Sequence[float], size: Vector) -> tuple[float, float, float]:
    """Spacing (k, j, i): the header's own numbers where the affine's edges are these, but for rounding."""
    i, j, k = (
        zoom if abs(zoom - edge) <= _ROUNDING * edge else float(edge) for zoom, edge in zip(zooms, size, strict=True)
    )
    return k, j, i


class _Volume:
    """A volume of a NIfTI file. number: of one of several.

    Values that lie in the file as they are meant, neither packed nor scaled, are read plane by plane; others all at
    once, when one is first asked for.
    """

    def __init__(self, path: Path, number: int | None = None) -> None:
        self.path = path
        self._image, self._number = opened(path), number
        self.shape = shape_of(path, self._image, several=number is not None)
        self.affine, self.findings = affine_of(path, self._image)
        self.zooms = [float(zoom) for zoom in self._image.header.get_zooms()[:3]]
        self._lock = threading.Lock()
        self._plane: Callable[[int], Pixels] | None = None

    def plane(self, k: int) -> Pixels:
        """(rows, columns) of plane k along the third axis."""
        with self._lock:
            if self._plane is None:
                self._plane = self._opened()
        return np.ascontiguousarray(self._plane(k).T)

    def _opened(self) -> Callable[[int], Pixels]:
        """What gives planes (i, j). Raises UnreadableInstance where no value is finite."""
        plane = self._from_file if lies_as_meant(self.path, self._image) else self._from_memory()
        if not any(np.isfinite(plane(k)).any() for k in range(self.shape[2])):
            raise UnreadableInstance(str(self.path), f"none of its {math.prod(self.shape)} values is finite")
        return plane

    def _from_memory(self) -> Callable[[int], Pixels]:
        values = self._read(... if self._number is None else (..., self._number)).reshape(self.shape)
        return lambda k: values[:, :, k]

    def _from_file(self, k: int) -> Pixels:
        behind = (self._number or 0, *(0,) * len(self._image.shape))[: len(self._image.shape) - 3]
        return self._read((slice(None), slice(None), k, *behind))

    def _read(self, part: Any) -> Pixels:
        there = self._image.dataobj
        try:
            with np.errstate(all="ignore"):  # what is not finite has no value, which is told of later
                return np.asanyarray(there if part is ... else there[part], dtype=np.float32)
        except DAMAGED as error:
            raise UnreadableInstance(str(self.path), f"its values cannot be read ({one_line(error)})") from error
        except MemoryError as error:
            size = " x ".join(map(str, self.shape))
            raise OutOfMemory(f"{self.path}: not enough memory for {size} values") from error

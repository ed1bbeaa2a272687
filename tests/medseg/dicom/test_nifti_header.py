"""NIfTI headers that make no sense: one sentence that names the file; or what every reader makes of them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg.dicom.nifti import read_nifti
from medseg.errors import MedsegError, UnreadableInstance
from medseg.inference.planes import LabelSpool
from medseg.results.nifti import write_nifti
from tests.medseg.inference.phantoms import make_segment
from tests.medseg.results.stacks import made

SHAPE = (5, 4, 3)
AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])
VALUES = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def saved(path: Path, array: np.ndarray[Any, Any] = VALUES, change: Callable[[Any], object] | None = None) -> Path:
    image = nibabel.Nifti1Image(array, AFFINE)
    if change is not None:
        change(image)
    nibabel.save(image, path)
    return path


def patched(path: Path, offset: int, form: str, *values: float) -> Path:
    data = bytearray(saved(path).read_bytes())
    struct.pack_into(form, data, offset, *values)
    path.write_bytes(bytes(data))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UnreadableInstance) as refused:
        for one in read_nifti(path).slices:
            one.read()
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    return refused.value.why


COLOUR = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
COLOUR_ALPHA = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])
NOT_GREY = [
    (COLOUR, "colour (R, G, B)"),
    (COLOUR_ALPHA, "colour (R, G, B, A)"),
    (VALUES.astype(np.complex64), "complex"),
    (VALUES.astype(np.complex128), "complex"),
]


@pytest.mark.parametrize(("array", "said"), NOT_GREY)
def test_values_that_are_not_grey(tmp_path: Path, array: np.ndarray[Any, Any], said: str) -> None:
    assert f"values of type {said}" in refusal(saved(tmp_path / "v.nii", array))


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_grey_type_in_either_byte_order(tmp_path: Path, kind: str, order: str) -> None:
    values = (VALUES % 100).astype(kind)
    image = nibabel.Nifti1Image(values, AFFINE, nibabel.Nifti1Header(endianness=order), dtype=kind)
    nibabel.save(image, tmp_path / "v.nii.gz")
    slices = read_nifti(tmp_path / "v.nii.gz").slices
    assert all(np.array_equal(slices[2 - k].read(), (VALUES % 100)[:, :, k].T) for k in range(3)) or all(
        np.array_equal(slices[k].read(), (VALUES % 100)[:, :, k].T) for k in range(3)
    )


PATCHES = {
    "datatype unknown": (70, "<h", [26996], "data code 26996"),
    "datatype none": (70, "<h", [0], ""),
    "one bit": (70, "<h", [1], ""),
    "nine dimensions": (40, "<h", [9], ""),
    "no dimensions": (40, "<h", [0], ""),
    "two dimensions": (40, "<h", [2], "expected one three-dimensional volume"),
    "several volumes": (40, "<5h", [4, 5, 4, 3, 7], "expected one three-dimensional volume"),
    "several vectors": (40, "<6h", [5, 5, 4, 3, 1, 3], "expected one three-dimensional volume"),
    "a size of 0": (42, "<h", [0], "expected one three-dimensional volume"),
    "a negative size": (44, "<h", [-4], ""),
    "more than is there": (46, "<h", [300], "cut short: 5 x 4 x 300 values take 12000 bytes"),
    "as much as can be": (42, "<3h", [32767, 32767, 32767], "cut short"),
    "vox_offset beyond": (108, "<f", [1e6], ""),
    "vox_offset no number": (108, "<f", [np.nan], ""),
    "vox_offset infinite": (108, "<f", [np.inf], ""),
    "vox_offset inside the header": (108, "<f", [100.0], ""),
    "magic": (344, "<4s", [b"ni1\0"], ""),
    "no magic (ANALYZE)": (344, "<4s", [b"\0\0\0\0"], ""),
    "scl_inter infinite": (112, "<2f", [2.0, np.inf], ""),
    "sform of NaN": (280, "<f", [np.nan], "does not span a volume"),
    "sform with an origin out of reach": (292, "<f", [2.5e30], "does not span a volume"),
    "sform with an edge of nothing": (280, "<f", [5.8e-39], "does not span a volume"),
    "sform flat": (280, "<12f", [0.0] * 12, "does not span a volume"),
}


@pytest.mark.parametrize(("offset", "form", "values", "said"), PATCHES.values(), ids=PATCHES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_headers_that_make_no_sense(
    tmp_path: Path, offset: int, form: str, values: list[Any], said: str, ending: str
) -> None:
    path = patched(tmp_path / "v.nii", offset, form, *values)
    if ending == ".nii.gz":
        plain, path = path, tmp_path / "v.nii.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
        said = "" if said.startswith("cut short: 5") else said  # which a packed file does not tell
    assert said in refusal(path)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_is_none_scales_nothing(tmp_path: Path, slope: float) -> None:
    """nifti1.h: 0 says that values are as they are; others that are not finite every reader takes alike."""
    path = patched(tmp_path / "v.nii", 112, "<2f", slope, 5.0)
    assert np.array_equal(read_nifti(path).slices[0].read(), read_nifti(saved(tmp_path / "w.nii")).slices[0].read())


@pytest.mark.parametrize("size", [0.0, -0.8, np.nan, np.inf])
def test_distances_that_make_no_sense_are_no_guess(tmp_path: Path, size: float) -> None:
    """Without an sform the distances are those of pixdim, which libraries mend, each in its own way."""
    path = patched(tmp_path / "v.nii", 80, "<f", size)
    data = bytearray(path.read_bytes())
    struct.pack_into("<2h", data, 252, 1, 0)  # qform alone
    path.write_bytes(bytes(data))
    assert "pixdim is" in refusal(path)
    struct.pack_into("<2h", data, 252, 0, 2)  # the sform says all
    path.write_bytes(bytes(data))
    assert read_nifti(path).spacing_mm == pytest.approx((2.0, 0.8, 0.8))


def test_a_quaternion_that_is_none(tmp_path: Path) -> None:
    path = patched(tmp_path / "v.nii", 256, "<3f", 1.0, 1.0, 1.0)
    data = bytearray(path.read_bytes())
    struct.pack_into("<2h", data, 252, 1, 0)
    path.write_bytes(bytes(data))
    assert refusal(path)


def _two(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], codes: tuple[int, int]) -> Callable[[Any], None]:
    def change(image: Any) -> None:
        image.set_sform(first, codes[0])
        image.set_qform(second, codes[1])

    return change


MIRRORED = np.diag([0.8, -0.8, 2.0, 1.0])
TURNED = np.diag([0.8, 0.8, 2.0, 1.0])
LARGER = np.diag([-1.0, -0.8, 2.0, 1.0])


@pytest.mark.parametrize(
    ("other", "codes", "said"),
    [
        (MIRRORED, (1, 1), "contradict"),
        (MIRRORED, (4, 1), "contradict"),
        (TURNED, (2, 2), "contradict"),
        (TURNED, (4, 1), None),
        (LARGER, (1, 1), ["sform_and_qform"]),
        (LARGER, (2, 1), None),
        (AFFINE, (1, 1), None),
    ],
)
def test_sform_against_qform(
    tmp_path: Path, other: np.ndarray[Any, Any], codes: tuple[int, int], said: str | list[str] | None
) -> None:
    """Two answers to one question; or ways into two spaces, which are not mirrored."""
    path = saved(tmp_path / "v.nii", change=_two(AFFINE, other, codes))
    if isinstance(said, str):
        assert said in refusal(path)
    else:
        assert [finding.code for finding in read_nifti(path).findings] == (said or [])


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("meter", 1e3), ("micron", 1e-3), ("unknown", 1.0)])
def test_distances_are_in_their_unit(tmp_path: Path, unit: str, factor: float) -> None:
    """And the labels' grid is the image's, in its unit."""
    source = saved(tmp_path / "v.nii", change=lambda image: image.header.set_xyzt_units(unit))
    stack = read_nifti(source)
    assert stack.spacing_mm == pytest.approx((2.0 * factor, 0.8 * factor, 0.8 * factor))
    labels = LabelSpool()
    labels.begin(stack, (make_segment(1),), exclusive=True)
    for k in range(3):
        labels.plane(k, np.zeros((4, 5), np.uint8))
    labels.end()
    write_nifti(tmp_path / "labels.nii.gz", labels, made(), like=source)
    written = nibabel.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(written.affine, nibabel.load(source).affine)
    assert written.header.get_xyzt_units()[0] == ("mm" if unit == "unknown" else unit)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_packed_files_cut_short(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path / "v.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert refusal(path)


def test_values_none_of_which_is_finite(tmp_path: Path) -> None:
    assert "none of its 60 values is finite" in refusal(saved(tmp_path / "v.nii", np.full(SHAPE, np.nan)))


def test_values_beyond_float32_have_no_value(tmp_path: Path) -> None:
    array = VALUES.astype(np.float64)
    array[0, 0, 0] = 1e300
    slices = read_nifti(saved(tmp_path / "v.nii", array)).slices
    assert sum(int((~np.isfinite(one.read())).sum()) for one in slices) == 1


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "v.nii").mkdir()
    with pytest.raises(MedsegError, match=r"v\.nii"):
        read_nifti(tmp_path / "v.nii")

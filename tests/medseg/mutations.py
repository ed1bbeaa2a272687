"""Small inputs of each kind, and what chance makes of them: NIfTI, zip, DICOMDIR, DICOM in each transfer syntax.

Each case follows from its number alone, so that one that fails can be made again: `mutated(kind, case)`.
"""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medseg.dicom.phantom import make_series, write_series
from tests.medseg.dicom.encoders import file_of, frame_of, with_frame
from tests.medseg.dicom.made import to_bytes

SHAPE = (4, 33, 34)
TELLING = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01", b"\0\0\0\0", b"\xff" * 4, b"\0\0\xc0\x7f", b"\0\0\x80\x7f")
NAMES = (b"../../../../x", b"/etc/passwd\0", b"..\\..\\x", b"\xff\xfe\xfd", b"\\\\\\")
NUMBERS = (b"nan", b"inf", b"-1", b"1e99", b"0")


@dataclass(frozen=True)
class Input:
    """Files by their name below a folder, and the path below it that is given to medseg."""

    files: dict[str, bytes]
    path: str


def _niftis() -> list[Input]:
    values = np.random.default_rng(0).integers(-1000, 1000, (10, 9, 4))
    floats = np.where(values > 900, np.nan, values).astype(np.float32)
    affine = np.diag([-0.8, 0.8, 2.0, 1.0])
    images = [
        nibabel.Nifti1Image(values.astype(np.int16), affine),
        nibabel.Nifti1Image(floats, affine, nibabel.Nifti1Header(endianness=">")),
        nibabel.Nifti2Image(values.astype(np.int32), affine),
    ]
    images[1].set_qform(affine, 1)
    made = [Input({"v.nii": image.to_bytes()}, "v.nii") for image in images]
    return [*made, Input({"v.nii.gz": gzip.compress(images[0].to_bytes(), mtime=0)}, "v.nii.gz")]


def _series() -> list[Dataset]:
    return make_series(shape=SHAPE, spacing_mm=(2.0, 1.0, 1.0))


def _compressed(dataset: Dataset, syntax: str) -> Dataset:
    words = np.frombuffer(dataset.PixelData, "<u2").reshape(SHAPE[1:])
    return with_frame(dataset, syntax, frame_of(words, syntax, 16))  # type: ignore[arg-type]


def _dicoms() -> list[Input]:
    """Series, each in its own transfer syntax."""
    kinds: list[Callable[[Dataset], bytes]] = [
        to_bytes,
        lambda dataset: file_of(dataset, ImplicitVRLittleEndian),
        lambda dataset: file_of(dataset, ExplicitVRBigEndian),
        lambda dataset: file_of(dataset, DeflatedExplicitVRLittleEndian),
        lambda dataset: to_bytes(_compressed(dataset, RLELossless)),
        lambda dataset: to_bytes(_compressed(dataset, JPEG2000Lossless)),
        lambda dataset: to_bytes(_compressed(dataset, JPEGLSLossless)),
        lambda dataset: to_bytes(_compressed(dataset, JPEGLosslessSV1)),
    ]
    return [Input({f"{k}.dcm": kind(one) for k, one in enumerate(_series())}, ".") for kind in kinds]


def _zips() -> list[Input]:
    made = []
    for how in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", how) as archive:
            for k, one in enumerate(_series()):
                archive.writestr(zipfile.ZipInfo(f"series/{k}.dcm"), to_bytes(one), how)
        made.append(Input({"study.zip": packed.getvalue()}, "study.zip"))
    return made


def medium(folder: Path) -> Input:
    """A medium with its DICOMDIR."""
    files = FileSet()
    for one in write_series(_series(), folder / "source"):
        files.add(dcmread(one))
    files.write(folder / "medium")
    paths = [path for path in sorted((folder / "medium").rglob("*")) if path.is_file()]
    return Input({str(path.relative_to(folder / "medium")): path.read_bytes() for path in paths}, "DICOMDIR")


KINDS = ("nifti", "dicom", "zip", "dicomdir")


@cache
def originals(kind: str, folder: Path) -> list[Input]:
    """folder: for what has to be on disk for a moment."""
    if kind == "dicomdir":
        return [medium(folder)]
    return {"nifti": _niftis, "dicom": _dicoms, "zip": _zips}[kind]()


def mutated(kind: str, case: int, folder: Path) -> Input:
    """One of the inputs, one file of which is changed in one to eight places."""
    chance = random.Random(f"{kind} {case}")
    whole = chance.choice(originals(kind, folder))
    names = ["DICOMDIR"] if kind == "dicomdir" and chance.random() < 0.8 else sorted(whole.files)
    name = chance.choice(names)
    content = bytearray(whole.files[name])
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        _change(content, chance)
    return Input({**whole.files, name: bytes(content)}, whole.path)


def _change(content: bytearray, chance: random.Random) -> None:
    """Headers lie at the beginning, directories at the end: half of the changes are there."""
    size = max(len(content), 1)
    at = min(chance.choice((chance.randrange(size), chance.randrange(min(size, 1600)))), size - 1)
    if chance.random() < 0.1:
        at = size - 1 - chance.randrange(min(size, 200))
    match chance.randrange(8):
        case 0 | 1:
            content[at : at + 1] = bytes([chance.randrange(256)])
        case 2:
            content[at : at + 1] = bytes([(content[at] if content else 0) ^ 1 << chance.randrange(8)])
        case 3:
            value = chance.choice(TELLING)
            content[at : at + len(value)] = value
        case 4:
            text = chance.choice(NAMES + NUMBERS)
            content[at : at + len(text)] = text
        case 5:
            del content[at : at + chance.choice((1, 2, 8, 300))]
        case 6:
            content[at:at] = content[chance.randrange(size) :][: chance.choice((1, 4, 64))]
        case 7:
            if chance.random() < 0.3:
                del content[at:]
            else:  # a whole element's worth from elsewhere
                other = chance.randrange(size)
                content[at : at + 16] = content[other : other + 16]

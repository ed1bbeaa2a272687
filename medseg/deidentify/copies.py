"""Copies of source images without who they are of: the pixels to the byte, in the transfer syntax they had."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

import medseg
from medseg.deidentify.dataset import deidentified
from medseg.deidentify.pseudonyms import Person
from medseg.dicom.encoding import find_encoding, inflated
from medseg.dicom.headers import MALFORMED, read_instance, transfer_syntax
from medseg.dicom.instance import Instance
from medseg.dicom.pixel_element import PIXEL_KEYWORDS
from medseg.errors import InputError, VerificationFailed
from medseg.names import IMPLEMENTATION_CLASS_UID

_MOST_INFLATED: Final = 1 << 31
_UIDS: Final = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


class CannotBeCopied(InputError):
    """An image whose bytes cannot be written anew."""

    code = "cannot_be_copied"


def write_copy(instance: Instance, person: Person, folder: Path) -> Path:
    """Write a copy into a folder, named by its new UID; the file.

    Raises CannotBeCopied, VerificationFailed where it does not read back, OSError.
    """
    uid = person.uid(instance.sop_instance_uid)
    path = folder / f"{uid}.dcm"
    try:
        source = _read(instance)
        copy = deidentified(source, person)
        for keyword in _UIDS:  # which may have been put there when it was read
            setattr(copy, keyword, person.uid(str(instance.header[keyword].value)))
        copy.SOPClassUID = instance.header.SOPClassUID
        syntax = transfer_syntax(instance.header)
        copy.file_meta = _meta(copy, ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax)
        dcmwrite(
            path,
            copy,
            enforce_file_format=True,
            implicit_vr=source.is_implicit_VR,
            little_endian=source.is_little_endian,
        )
    except MALFORMED as error:
        raise CannotBeCopied(f"image {uid}: cannot be written anew: {type(error).__name__}") from error
    _verify(path, uid, source)
    return path


def _read(instance: Instance) -> Dataset:
    """The whole data set, pixels included, as its bytes are."""
    with instance.open() as stream:
        coded = find_encoding(stream)
        stream.seek(coded.offset)
        data: BinaryIO = stream
        if coded.syntax == DeflatedExplicitVRLittleEndian:
            data = inflated(stream, _MOST_INFLATED)
        return read_dataset(BytesIO(data.read()), coded.implicit, coded.little)


def _meta(copy: Dataset, syntax: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = copy.SOPClassUID, copy.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = f"MEDSEG_{medseg.__version__}"[:16]
    return meta


def _verify(path: Path, uid: str, source: Dataset) -> None:
    """Read a copy again, and compare its pixels with the source's byte by byte. Raises VerificationFailed."""
    copy = _read(read_instance(lambda: path.open("rb"), path.name))
    for tag in PIXEL_KEYWORDS:
        before, after = (_value(dataset, tag) for dataset in (source, copy))
        if after not in (before, before + b"\0"):  # an odd length is made even (PS3.5 7.1.1)
            raise VerificationFailed(f"image {uid}: the pixels of its copy are not those of the source")


def _value(dataset: Dataset, tag: int) -> bytes:
    element = dataset.get_item(tag)
    return b"" if element is None else bytes(element.value)

"""What all our DICOM objects share: the source's patient and study as they stand, our equipment, and the file form.

highdicom builds each object from a well-formed stand-in of the source; the real patient and study are then laid over
it byte for byte, so a malformed name or date in the source neither stops us nor gets changed.
"""

from __future__ import annotations

import logging
import struct
import unicodedata
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import cast

import highdicom
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_dataset, write_file_meta_info
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag, Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import VR, format_number_as_ds

import medseg
from medseg.bundle.bundle import Bundle
from medseg.dicom.series import Stack
from medseg.results.identity import ResultKey, named_uid

logger = logging.getLogger(__name__)

MANUFACTURER = "medseg"
IMPLEMENTATION_CLASS_UID = named_uid("medseg implementation class")

# Patient, General Study, Patient Study, Clinical Trial Subject and Clinical Trial Study modules (PS3.3 C.7.1, C.7.2)
# without retired attributes; study attributes outside them (RequestingService ...) are not part of our IODs.
_PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "StudyDescription",
    "ProcedureCodeSequence",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "ReferencedStudySequence",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "OtherPatientNames",
    "OtherPatientIDsSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientBodyMassIndex",
    "MedicalAlerts",
    "Allergies",
    "EthnicGroup",
    "Occupation",
    "SmokingStatus",
    "AdditionalPatientHistory",
    "PatientComments",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "QualityControlSubject",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    "ClinicalTrialProtocolEthicsCommitteeName",
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
    "StudyID",
)
_TYPE_2 = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
)
# What pydicom raises for a value that breaks its VR.
_BAD_VALUE = (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, NotImplementedError)


@dataclass(frozen=True)
class Predecessor:
    """The result that a new one takes the place of: its key, and which of its objects there are."""

    key: ResultKey
    seg: bool
    sr: bool


@dataclass(frozen=True)
class Provenance:
    """Who made a result, when, and under which key.

    bundle_digest: SHA-256 (hex) of the bundle's configuration and weights.
    made_at: goes into ContentDate and ContentTime; never into a UID.
    research_use: mark the objects as not for diagnosis (ContentQualification RESEARCH, PS3.3 C.8.13.2.1.1).
    predecessors: what this result takes the place of, because images came late or were corrected.
    weights: the file that was loaded, within the bundle.
    """

    key: ResultKey
    bundle: str
    bundle_version: str
    bundle_digest: str
    made_at: datetime
    research_use: bool = True
    predecessors: tuple[Predecessor, ...] = ()
    weights: str = ""

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        key: ResultKey,
        made_at: datetime,
        *,
        research_use: bool = True,
        predecessors: tuple[Predecessor, ...] = (),
    ) -> Provenance:
        """What `bundle` makes under `key`; a bundle for research only stays marked as such."""
        research_use = research_use or bundle.research_only
        weights = bundle.weights.relative_to(bundle.path).as_posix()
        return cls(key, bundle.name, bundle.version, bundle.digest, made_at, research_use, predecessors, weights)

    def description(self, kind: str) -> str:
        """A SeriesDescription (LO, 64 characters) such as "AI hippocampus SEG, updated (research use)"."""
        ending = f" {kind}{', updated' if self.predecessors else ''}{' (research use)' if self.research_use else ''}"
        return f"AI {plain(self.bundle)}"[: 64 - len(ending)] + ending

    @property
    def algorithm(self) -> highdicom.AlgorithmIdentificationSequence:
        """Algorithm Identification Macro (PS3.3 10.16)."""
        return highdicom.AlgorithmIdentificationSequence(
            name=plain(self.bundle)[:64],
            family=codes.cid7162.ArtificialIntelligence,
            version=plain(self.bundle_version)[:64],
            source=MANUFACTURER,
            parameters={"bundle_sha256": self.bundle_digest},
        )

    @property
    def equipment(self) -> Dataset:
        """An item of ContributingEquipmentSequence: the algorithm, as IHE AI Results asks of each one."""
        item = Dataset()
        item.Manufacturer = MANUFACTURER
        item.ManufacturerModelName = plain(self.bundle)[:64]
        item.DeviceSerialNumber = self.bundle_digest
        item.SoftwareVersions = plain(self.bundle_version)[:64]
        item.DeviceUID = named_uid(f"bundle {self.bundle_digest}")
        item.ContributionDateTime = self.made_at.strftime("%Y%m%d%H%M%S")
        item.ContributionDescription = "Segmentation algorithm"
        item.PurposeOfReferenceCodeSequence = [highdicom.sr.CodedConcept.from_code(codes.cid7005.ProcessingEquipment)]
        return item


def series_reference(series_uid: str, instances: Iterable[tuple[str, str]], *, keyword: str) -> Dataset:
    """A series and instances of it, as (SOP class, SOP instance) UIDs in the sequence `keyword`.

    Series and Instance Reference Macros: ReferencedSOPSequence (PS3.3 10.3), ReferencedInstanceSequence (C.12.2).
    """
    series = Dataset()
    series.SeriesInstanceUID = series_uid
    tag = Tag(tag_for_keyword(keyword) or 0)
    items = b"".join(item(*reference_elements(sop_class, instance)) for sop_class, instance in instances)
    series[tag] = raw_element(tag, "SQ", items)
    return series


def reference_elements(sop_class_uid: str, sop_instance_uid: str) -> tuple[bytes, bytes]:
    """SOP Instance Reference Macro (PS3.3 10.8) as bytes: there are as many as slices."""
    return element("ReferencedSOPClassUID", "UI", sop_class_uid), element(
        "ReferencedSOPInstanceUID", "UI", sop_instance_uid
    )


def instance_reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """SOP Instance Reference Macro (PS3.3 10.8)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def plain(text: str) -> str:
    """ASCII of a text of ours, so that it can stand under any character set the source came with."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def series_number(source: int | None, offset: int) -> int:
    """Number of a result series: behind its source's in a list that is sorted by number, within IS (PS3.5 6.2)."""
    number = (source or 0) * 100 + offset
    return number if 0 < number < 2**31 else offset


def stand_in(stack: Stack) -> Dataset:
    """A well-formed image that lies where the stack's first slice lies: what highdicom reads of a source, no more."""
    plane = stack.slices[0].plane
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = named_uid("stand-in")
    image.StudyInstanceUID = stack.series.study_uid
    image.SeriesInstanceUID = stack.series.series_uid
    image.Modality = stack.series.modality
    for keyword in _TYPE_2:
        setattr(image, keyword, "")
    image.FrameOfReferenceUID = stack.frame_of_reference_uid
    image.PositionReferenceIndicator = ""
    image.Rows, image.Columns = plane.rows, plane.columns
    image.ImagePositionPatient = [decimal(value) for value in plane.position_mm]
    image.ImageOrientationPatient = [decimal(value) for value in (*plane.row_direction, *plane.column_direction)]
    image.PixelSpacing = [decimal(value) for value in plane.spacing_mm]
    image.SliceThickness = decimal(_slice_thickness_mm(stack))
    return image


def decimal(value: float) -> str:
    """A DS of at most 16 characters, without a negative zero."""
    return format_number_as_ds(float(value) + 0.0)


def finish(dataset: Dataset, stack: Stack, provenance: Provenance) -> None:
    """Lay the source's patient and study over an object of highdicom's, and put our equipment and time in."""
    headers = [part.instance.header for part in stack.slices if part.instance is not None]
    made_at = provenance.made_at
    dataset.InstanceCreationDate = dataset.ContentDate = made_at.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = made_at.strftime("%H%M%S")
    dataset.ContributingEquipmentSequence = [provenance.equipment]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    dataset.file_meta.ImplementationVersionName = f"MEDSEG_{medseg.__version__}"[:16]
    dataset.StudyInstanceUID = stack.series.study_uid
    for keyword in _PATIENT_AND_STUDY:
        copy_element(headers[0], dataset, keyword)
    for keyword in _TYPE_2:
        if keyword not in dataset:
            setattr(dataset, keyword, "")


def under_identity(header: Dataset, identity: Dataset) -> Dataset:
    """A header with the patient and study of another one, in the character set of that."""
    changed = deepcopy(header)
    for keyword in _PATIENT_AND_STUDY:
        copy_element(identity, changed, keyword)
    if "SpecificCharacterSet" not in identity and "SpecificCharacterSet" in changed:
        del changed.SpecificCharacterSet
    implicit, little = changed.original_encoding
    changed.set_original_encoding(implicit, little, identity.original_character_set)
    return changed


def copy_element(source: Dataset, target: Dataset, keyword: str) -> None:
    """Copy one element with its bytes as they are; leave it out where it cannot be read at all."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    if tag in target:
        del target[tag]
    if tag not in source:
        return
    if keyword == "SpecificCharacterSet" and not source.get(keyword):  # type 1C: empty says nothing and is an error
        return
    element = cast(DataElement | RawDataElement, source.get_item(tag))
    vr = dictionary_VR(tag)
    if isinstance(element, RawDataElement) and vr != VR.SQ:
        value = element.value or b""
    else:
        try:
            value = _value_bytes(source[tag], source)
        except _BAD_VALUE as error:
            logger.warning("attribute left out: %s: %s", keyword, type(error).__name__)
            return
    if len(value) % 2:
        value += b"\0" if vr == VR.UI else b" "
    target[tag] = raw_element(tag, vr, value)


def raw_element(tag: BaseTag, vr: str, value: bytes) -> RawDataElement:
    """An element whose bytes go to the file as they are (Explicit VR Little Endian)."""
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


def element(keyword: str, vr: str, value: str | bytes) -> bytes:
    """An element of ours in Explicit VR Little Endian (PS3.5 7.1.2). value: ASCII, or bytes of even length; of a
    sequence its items."""
    data = value.encode("ascii") if isinstance(value, str) else value
    if len(data) % 2:
        data += b"\0" if vr == VR.UI else b" "
    length = struct.pack("<HI", 0, len(data)) if vr == VR.SQ else struct.pack("<H", len(data))
    return _tag(keyword) + vr.encode("ascii") + length + data


def item(*elements: bytes) -> bytes:
    """An item of a sequence (PS3.5 7.5), of elements by increasing tag."""
    length = sum(map(len, elements))
    return b"".join((b"\xfe\xff\x00\xe0", struct.pack("<I", length), *elements))


@cache
def _tag(keyword: str) -> bytes:
    tag = Tag(tag_for_keyword(keyword) or 0)
    return struct.pack("<HH", tag.group, tag.element)


def encode(dataset: Dataset) -> bytes:
    """A data set of ours (ASCII text) in Explicit VR Little Endian."""
    buffer = _buffer()
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def file_head(dataset: Dataset) -> bytes:
    """A DICOM file (PS3.10) up to the end of the elements of `dataset`, raw ones untouched."""
    buffer = _buffer()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, dataset.file_meta, enforce_standard=True)
    for tag in sorted(dataset.keys()):
        write_data_element(buffer, dataset.get_item(tag))
    return buffer.getvalue()


def _buffer() -> DicomBytesIO:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    return buffer


def _value_bytes(element: DataElement, source: Dataset) -> bytes:
    buffer = _buffer()
    write_data_element(buffer, element, source.get("SpecificCharacterSet") or "iso8859")
    encoded = buffer.getvalue()
    # tag 4, VR 2, then a length of 2, or 2 reserved and a length of 4 (PS3.5 7.1.2)
    return encoded[12:] if encoded[4:6] in (b"SQ", b"UN", b"UT", b"UC") else encoded[8:]


def _slice_thickness_mm(stack: Stack) -> float:
    instance = stack.slices[0].instance
    try:
        nominal = float(instance.header.SliceThickness) if instance is not None else 0.0
    except _BAD_VALUE:
        nominal = 0.0
    return nominal if nominal > 0 else float(stack.thickness_mm[0])

"""What all our DICOM objects share: the source's patient and study as they stand, and our equipment.

highdicom builds each object from a well-formed stand-in of the source; the real patient and study are then laid over
it byte for byte, so a malformed name or date in the source neither stops us nor gets changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from datetime import datetime

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

import medseg
from medseg.dicom.series import Stack
from medseg.names import IMPLEMENTATION_CLASS_UID, named_uid
from medseg.results.encoding import BAD_VALUE, copy_element, decimal, element, item, raw_element
from medseg.results.provenance import MANUFACTURER, Provenance

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


def study_reference(stack: Stack, series: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> Dataset:
    """Hierarchical SOP Instance Reference Macro (PS3.3 C.17.2.1): series UIDs with (SOP class, SOP instance) UIDs."""
    return references_in(stack.series.study_uid, series)


def references_in(study_uid: str, series: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> Dataset:
    """The same of a study by its UID."""
    study = Dataset()
    study.StudyInstanceUID = study_uid
    study.ReferencedSeriesSequence = [
        series_reference(uid, instances, keyword="ReferencedSOPSequence") for uid, instances in series
    ]
    return study


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


def series_number(source: int | None, offset: int) -> int:
    """Number of a result series: behind its source's in a list that is sorted by number, within IS (PS3.5 6.2)."""
    number = (source or 0) * 100 + offset
    return number if 0 < number < 2**31 else offset


def placeholder_image(stack: Stack) -> Dataset:
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


def add_common_modules(
    dataset: Dataset, stack: Stack, provenance: Provenance, syntax: UID = ExplicitVRLittleEndian
) -> None:
    """Lay the source's patient and study over an object of highdicom's, and put our equipment and time in.

    syntax: the transfer syntax in which it is written.
    """
    headers = [part.instance.header for part in stack.slices if part.instance is not None]
    lay_over(dataset, headers[0], stack.series.study_uid, provenance.made_at, provenance.equipment, syntax)
    provenance.finish(dataset)


def lay_over(
    dataset: Dataset,
    header: Dataset,
    study_uid: str,
    made_at: datetime,
    equipment: Dataset,
    syntax: UID = ExplicitVRLittleEndian,
) -> None:
    """Lay patient and study of a header over an object of highdicom's. equipment: who had a part in it."""
    dataset.InstanceCreationDate = dataset.ContentDate = made_at.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = made_at.strftime("%H%M%S")
    dataset.ContributingEquipmentSequence = [equipment]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = f"MEDSEG_{medseg.__version__}"[:16]
    dataset.StudyInstanceUID = study_uid
    for keyword in _PATIENT_AND_STUDY:
        copy_element(header, dataset, keyword)
    for keyword in _TYPE_2:
        if keyword not in dataset:
            setattr(dataset, keyword, "")


def begin_object(
    sop_class: UID, modality: str, stack: Stack, provenance: Provenance, role: str, number: int, instance: str = ""
) -> Dataset:
    """An object of a series of ours, with what all of them share.

    role: of its UIDs, and its name in descriptions. number: of its series, behind the source's. instance: what tells it
    from others of the series.
    """
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, provenance.key.uid(f"{role}{instance}")
    dataset.Modality = modality
    dataset.SeriesInstanceUID = provenance.key.uid(f"{role}.series")
    dataset.SeriesNumber = series_number(stack.series.number, number)
    dataset.SeriesDescription = provenance.description(role.upper())
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, "medseg"
    dataset.SoftwareVersions = medseg.__version__
    dataset.DeviceSerialNumber = provenance.bundle_digest[:64]
    add_common_modules(dataset, stack, provenance)
    return dataset


def copy_lossy(headers: Iterable[Dataset], dataset: Dataset) -> None:
    """What is made of images that were once compressed with loss says so (PS3.3 C.7.6.1.1.5)."""
    lossy = next((header for header in headers if header.get("LossyImageCompression") == "01"), None)
    if lossy is not None:
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            copy_element(lossy, dataset, keyword)


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


def _slice_thickness_mm(stack: Stack) -> float:
    instance = stack.slices[0].instance
    try:
        nominal = float(instance.header.SliceThickness) if instance is not None else 0.0
    except BAD_VALUE:
        nominal = 0.0
    return nominal if nominal > 0 else float(stack.thickness_mm[0])

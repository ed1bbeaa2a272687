"""What is said of a study where there is no segmentation: a report in words, and a note that rejects objects.

    write_statement    Enhanced SR, TID 1500: "not segmented", why, what was expected; or that a result is withdrawn
    write_rejection    Key Object Selection, TID 2010, titled as the archive knows rejections (IHE RAD IOCM)

An Enhanced SR, since older archives take that too, and there are no coordinates in it. It says nothing but texts, in
the container in which a result's report has its own (`medseg.results.report`): who reads one reads the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from highdicom import ko, sr
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedSRStorage, KeyObjectSelectionDocumentStorage

import medseg
from medseg.dicom.headers import look
from medseg.names import named_uid
from medseg.results.encoding import file_head, plain
from medseg.results.files import replacing
from medseg.results.identity import ResultKey
from medseg.results.modules import instance_reference, lay_over, references_in
from medseg.results.provenance import MANUFACTURER
from medseg.results.report import PROCEDURE, QUALITATIVE_EVALUATIONS

#: Objects by the series that they are in: (SOP class, SOP instance) UIDs.
References: TypeAlias = Mapping[str, Sequence[tuple[str, str]]]

STATEMENT_CLASS = EnhancedSRStorage
REJECTION_CLASS = KeyObjectSelectionDocumentStorage
#: The one title for which archives hide objects from regular use (IHE RAD TF-3 4.66.4.1.3); those that are rejected for
#: quality reasons may stay in view.
REJECTED = CodedConcept("113037", "DCM", "Rejected for Patient Safety Reasons")
_DOCUMENTS = ("1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.481.")  # reports, contours of radiotherapy
_LANGUAGE = CodedConcept("en-US", "RFC5646", "English (United States)")
_SERIES_NUMBER = 9000  # behind those of the study, in a list that is sorted by number


@dataclass(frozen=True, eq=False)
class Statement:
    """What is said, of what, and under which key.

    header: patient and study, as they are repeated. texts: the first is about `images`. evidence: what it is about
    besides. predecessors: the reports whose place it takes. description: of its series.
    """

    key: ResultKey
    study_uid: str
    header: Dataset
    made_at: datetime
    texts: tuple[str, ...]
    images: References
    description: str
    evidence: References = field(default_factory=dict)
    predecessors: References = field(default_factory=dict)


def write_statement(path: Path, said: Statement) -> None:
    """Write a report in words. Raises OutputNotWritable."""
    report = sr.EnhancedSR(
        evidence=[*_objects(said, said.images), *_objects(said, said.evidence)],
        content=_content(said),
        series_instance_uid=said.key.uid("sr.series"),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=said.key.uid("sr"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="medseg",
        software_versions=medseg.__version__,
        series_description=said.description[:64],
        content_qualification="RESEARCH",
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    evidence = {**said.images, **said.evidence}
    report.CurrentRequestedProcedureEvidenceSequence = [references_in(said.study_uid, evidence.items())]
    if said.predecessors:  # PS3.3 C.17.2
        report.PredecessorDocumentsSequence = [references_in(said.study_uid, said.predecessors.items())]
    _write(path, report, said)


def write_rejection(path: Path, said: Statement) -> None:
    """Write a note by which an archive takes the objects of `evidence` out of use. Raises OutputNotWritable."""
    objects = _objects(said, said.evidence)
    note = ko.KeyObjectSelectionDocument(
        evidence=objects,
        content=ko.KeyObjectSelection(
            document_title=REJECTED,
            referenced_objects=objects,
            observer_device_context=_observer(),
            description=plain(said.texts[0]),
        ),
        series_instance_uid=said.key.uid("ko.series"),
        series_number=_SERIES_NUMBER + 1,
        sop_instance_uid=said.key.uid("ko"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="medseg",
        software_versions=medseg.__version__,
        series_description=said.description[:64],
    )
    note.CurrentRequestedProcedureEvidenceSequence = [references_in(said.study_uid, said.evidence.items())]
    _write(path, note, said)


def _write(path: Path, document: Dataset, said: Statement) -> None:
    lay_over(document, said.header, said.study_uid, said.made_at, _equipment(said.made_at))
    with replacing(path) as temporary:
        temporary.write_bytes(file_head(document))


def _content(said: Statement) -> sr.ContainerContentItem:
    """TID 1500 without measurements (its rows 12 to 14); highdicom's own template wants some."""
    procedure = PROCEDURE.get(look(said.header).text("Modality"), codes.cid100.ImagingProcedure)
    report = sr.ContainerContentItem(name=codes.cid7021.ImagingMeasurementReport, template_id="1500")
    has_modifier = sr.RelationshipTypeValues.HAS_CONCEPT_MOD
    report.ContentSequence = sr.ContentSequence(
        [
            *sr.LanguageOfContentItemAndDescendants(_LANGUAGE),
            *sr.ObservationContext(observer_device_context=_observer()),
            sr.CodeContentItem(codes.DCM.ProcedureReported, procedure, relationship_type=has_modifier),
            _words(said),
        ]
    )
    return report


def _words(said: Statement) -> sr.ContainerContentItem:
    contains = sr.RelationshipTypeValues.CONTAINS
    container = sr.ContainerContentItem(name=QUALITATIVE_EVALUATIONS, relationship_type=contains)
    items = [sr.TextContentItem(codes.DCM.Finding, plain(text), contains) for text in said.texts]
    if said.images:
        inferred = sr.RelationshipTypeValues.INFERRED_FROM
        items[0].ContentSequence = sr.ContentSequence(
            [
                sr.ImageContentItem(codes.DCM.SourceOfMeasurement, *one, relationship_type=inferred)
                for some in said.images.values()
                for one in some
            ]
        )
    container.ContentSequence = sr.ContentSequence(items)
    return container


def _observer() -> sr.ObserverContext:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=named_uid("medseg"),
        name="medseg",
        manufacturer_name=MANUFACTURER,
        model_name=f"medseg {medseg.__version__}",
    )
    return sr.ObserverContext(codes.cid270.Device, device)


def _equipment(made_at: datetime) -> Dataset:
    item = Dataset()
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = "medseg"
    item.SoftwareVersions = medseg.__version__
    item.ContributionDateTime = made_at.strftime("%Y%m%d%H%M%S")
    item.ContributionDescription = "Report in words"
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.cid7005.ProcessingEquipment)]
    return item


def _objects(said: Statement, references: References) -> list[Dataset]:
    """Stand-ins of the objects that are referred to: what highdicom reads of them, no more."""
    return [
        _object(said.study_uid, series_uid, sop_class, sop_instance)
        for series_uid, some in references.items()
        for sop_class, sop_instance in some
    ]


def _object(study_uid: str, series_uid: str, sop_class: str, sop_instance: str) -> Dataset:
    item = instance_reference(sop_class, sop_instance)
    item.SOPClassUID, item.SOPInstanceUID = sop_class, sop_instance
    item.StudyInstanceUID, item.SeriesInstanceUID = study_uid, series_uid
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
        setattr(item, keyword, "")
    item.StudyDate = item.StudyTime = item.ReferringPhysicianName = ""
    if not sop_class.startswith(_DOCUMENTS):
        item.Rows = item.Columns = 1  # by which highdicom knows an image
    return item

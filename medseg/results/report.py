"""Structured report (Comprehensive 3D SR, TID 1500 "Measurement Report", PS3.16): volumes, doubts, and "nothing found".

One measurement group per segment of the bundle, and one per lesion: volume, longest diameter in a slice and the one
perpendicular to it, with their ends, mean and deviation of values; of lesions, their number. A segment that was found
refers to its SEG segment (TID 1411); one that was not has volume 0 (TID 1501), and a sentence says so that refers to
the images looked at. The report is PRELIMINARY and UNVERIFIED: nobody can take it for a signed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from highdicom import sr
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

import medseg
from medseg.dicom.instance import Instance
from medseg.inference.labels import SegmentationResult
from medseg.names import named_uid
from medseg.results.encoding import file_head, plain
from medseg.results.files import replacing
from medseg.results.findings import Finding
from medseg.results.measurements import groups
from medseg.results.modules import add_common_modules, placeholder_image, series_number, study_reference
from medseg.results.provenance import MANUFACTURER, Provenance

QUALITATIVE_EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")  # TID 1500 row 12
PROCEDURE = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
}
RESEARCH = "For research use only. Not for diagnosis."


def write_report(
    path: Path, result: SegmentationResult, findings: Sequence[Finding], provenance: Provenance, *, with_seg: bool
) -> None:
    """Write the report of a result.

    findings: what is measured, of each segment.
    with_seg: whether a SEG of the same key was written and may be referred to.

    Raises OutputNotWritable.
    """
    stack = result.stack
    looked_at = _looked_at(result)
    image = placeholder_image(stack)
    evidence = [image]
    for uid, instances in looked_at.items():
        evidence += [_reference(result, one.sop_class_uid, one.sop_instance_uid, uid) for one in instances]
    if with_seg:
        seg, series = provenance.key.uid("seg"), provenance.key.uid("seg.series")
        evidence.append(_reference(result, SegmentationStorage, seg, series))
    report = sr.Comprehensive3DSR(
        evidence=evidence,
        content=_content(result, findings, provenance, with_seg=with_seg),
        series_instance_uid=provenance.key.uid("sr.series"),
        series_number=series_number(stack.series.number, 2),
        sop_instance_uid=provenance.key.uid("sr"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="medseg",
        software_versions=medseg.__version__,
        device_serial_number=provenance.bundle_digest[:64],
        series_description=provenance.description("SR"),
        content_qualification="RESEARCH" if provenance.research_use else "PRODUCT",
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    report.CurrentRequestedProcedureEvidenceSequence = [_evidence(result, provenance, looked_at, with_seg=with_seg)]
    documents = [
        (before.key.uid("sr.series"), [(before.sr_class, before.key.uid("sr"))])
        for before in provenance.predecessors
        if before.sr
    ]
    if documents:  # PS3.3 C.17.2
        report.PredecessorDocumentsSequence = [study_reference(result.stack, documents)]
    add_common_modules(report, stack, provenance)
    with replacing(path) as temporary:
        temporary.write_bytes(file_head(report))


def sentences(result: SegmentationResult, *, research_use: bool = True) -> Iterator[str]:
    """What the report says in words: what was not found, where was looked, then each doubt."""
    labels = {measured.segment.number: plain(measured.segment.label) for measured in result.measured}
    missing = [labels[measured.segment.number] for measured in result.measured if measured.voxels == 0]
    if missing and result.empty:
        yield f"Nothing found: no {_listed(missing)} found in series {result.stack.series.number or 'without number'}."
    elif missing:
        yield f"No {_listed(missing)} found."
    if result.region is not None:
        yield plain(result.region.sentence)
    yield from (plain(flag.message) for flag in result.flags)
    if research_use:
        yield RESEARCH


def _not_measured(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        if finding.has_lesions and finding.pieces > len(finding.lesions):
            name, count = plain(finding.segment.label), len(finding.lesions)
            yield f"{name}: the {count} largest of {finding.pieces} lesions are measured one by one."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _content(
    result: SegmentationResult, findings: Sequence[Finding], made: Provenance, *, with_seg: bool
) -> sr.MeasurementReport:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=named_uid(f"bundle {made.bundle_digest}"),
        name=plain(made.bundle),
        manufacturer_name=MANUFACTURER,
        model_name=f"medseg {medseg.__version__}",
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.cid270.Device, device)
        ),
        procedure_reported=PROCEDURE.get(result.stack.series.modality, codes.cid100.ImagingProcedure),
        imaging_measurements=[
            group
            for measured, finding in zip(result.measured, findings, strict=True)
            for group in groups(result.stack, measured, finding, made, with_seg=with_seg)
        ],
        title=codes.cid7021.ImagingMeasurementReport,
    )
    report[0].ContentSequence.append(_words(result, findings, made))
    return report


def _words(result: SegmentationResult, findings: Sequence[Finding], made: Provenance) -> sr.ContainerContentItem:
    container = sr.ContainerContentItem(
        name=QUALITATIVE_EVALUATIONS, relationship_type=sr.RelationshipTypeValues.CONTAINS
    )
    items = [
        sr.TextContentItem(codes.DCM.Finding, text, sr.RelationshipTypeValues.CONTAINS)
        for text in (*sentences(result, research_use=made.research_use), *_not_measured(findings))
    ]
    if any(measured.voxels == 0 for measured in result.measured):  # then the first sentence says what was not found
        items[0].ContentSequence = sr.ContentSequence(
            [
                sr.ImageContentItem(
                    codes.DCM.SourceOfMeasurement,
                    instance.sop_class_uid,
                    instance.sop_instance_uid,
                    relationship_type=sr.RelationshipTypeValues.INFERRED_FROM,
                )
                for instances in _looked_at(result).values()
                for instance in instances
            ]
        )
    container.ContentSequence = sr.ContentSequence(items)
    return container


def _looked_at(result: SegmentationResult) -> dict[str, tuple[Instance, ...]]:
    """The instances of each series, that of the segmentation first."""
    stacks = [result.stack, *(channel.stack for channel in result.stack.channels if channel.stack is not None)]
    each: dict[str, dict[str, Instance]] = {}
    for stack in stacks:
        instances = [part.instance for part in stack.slices if part.instance is not None]
        each.setdefault(stack.series.series_uid, {}).update({one.sop_instance_uid: one for one in instances})
    return {uid: tuple(instances.values()) for uid, instances in each.items()}


def _reference(result: SegmentationResult, sop_class: str, sop_instance: str, series: str) -> Dataset:
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = sop_class, sop_instance
    item.StudyInstanceUID = result.stack.series.study_uid
    item.SeriesInstanceUID = series
    return item


def _evidence(
    result: SegmentationResult, made: Provenance, looked_at: Mapping[str, tuple[Instance, ...]], *, with_seg: bool
) -> Dataset:
    """The item of CurrentRequestedProcedureEvidenceSequence: all instances looked at, and the SEG made of them."""
    series = [(uid, [(one.sop_class_uid, one.sop_instance_uid) for one in some]) for uid, some in looked_at.items()]
    if with_seg:
        series.append((made.key.uid("seg.series"), [(SegmentationStorage, made.key.uid("seg"))]))
    return study_reference(result.stack, series)

"""Key Object Selection (PS3.3 A.35.4): of each finding the slice in which it is largest.

A finding is a lesion, or a segment that has none. Where secondary captures were written it is these that are selected,
since contours are seen there without a click; else the images themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from highdicom import ko, sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage

import medseg
from medseg.dicom.instance import Slice
from medseg.dicom.series import Stack
from medseg.inference.labels import SegmentationResult
from medseg.names import named_uid
from medseg.results.capture import capture_uid, image_numbers
from medseg.results.drawing import volume_text
from medseg.results.encoding import file_head, plain
from medseg.results.files import replacing
from medseg.results.findings import Finding
from medseg.results.identity import key_object_role
from medseg.results.modules import add_common_modules, placeholder_image, series_number, study_reference
from medseg.results.provenance import MANUFACTURER, Provenance


def write_key_object(
    path: Path, result: SegmentationResult, findings: Sequence[Finding], made: Provenance, *, captured: bool
) -> None:
    """Write the selection of a result in which something was found.

    captured: whether there are secondary captures of the same key, which are selected then: another object, since no
    UID may name two.

    Raises OutputNotWritable.
    """
    stack, role = result.stack, key_object_role(captured=captured)
    names = dict(sorted(_names(result, findings).items()))
    images = [_image(stack.slices[k], k, stack, made, captured=captured) for k in names]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=named_uid(f"bundle {made.bundle_digest}"), name=plain(made.bundle), manufacturer_name=MANUFACTURER
    )
    content = ko.KeyObjectSelection(
        document_title=codes.cid7010.OfInterest,
        referenced_objects=images,
        observer_device_context=sr.ObserverContext(codes.cid270.Device, device),
        description=_description(stack, names, made),
    )
    references = [item for item in content[0].ContentSequence if "ReferencedSOPSequence" in item]
    for item, k in zip(references, names, strict=True):
        frame = stack.slices[k].frame
        if frame is not None and not captured:
            item.ReferencedSOPSequence[0].ReferencedFrameNumber = frame
    document = ko.KeyObjectSelectionDocument(
        evidence=[placeholder_image(stack), *images],
        content=content,
        series_instance_uid=made.key.uid(f"{role}.series"),
        series_number=series_number(stack.series.number, 5),
        sop_instance_uid=made.key.uid(role),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="medseg",
        software_versions=medseg.__version__,
        device_serial_number=made.bundle_digest[:64],
        series_description=made.description("KO"),
    )
    (series,) = {image.SeriesInstanceUID for image in images}
    instances = dict.fromkeys((image.SOPClassUID, image.SOPInstanceUID) for image in images)
    document.CurrentRequestedProcedureEvidenceSequence = [study_reference(stack, [(series, instances)])]
    add_common_modules(document, stack, made)
    with replacing(path) as temporary:
        temporary.write_bytes(file_head(document))


def _names(result: SegmentationResult, findings: Sequence[Finding]) -> dict[int, list[str]]:
    """By slice, what is largest there, and how large it is in all."""
    names: dict[int, list[str]] = defaultdict(list)
    for measured, finding in zip(result.measured, findings, strict=True):
        label = plain(measured.segment.label)
        for lesion in finding.lesions:
            names[lesion.k].append(f"{label} {lesion.number}, {volume_text(lesion.volume_ml)}")
        if finding.k is not None and not finding.lesions:
            names[finding.k].append(f"{label}, {volume_text(measured.volume_ml)}")
    return names


def _description(stack: Stack, names: dict[int, list[str]], made: Provenance) -> str:
    numbers = image_numbers(stack)
    lines = [f"Image {numbers[k]}: {'; '.join(each)}" for k, each in names.items()]
    return "\n".join([*lines, *_use(made)])


def _use(made: Provenance) -> Iterator[str]:
    if made.research_use:
        yield "For research use only. Not for diagnosis."


def _image(part: Slice, k: int, stack: Stack, made: Provenance, *, captured: bool) -> Dataset:
    assert part.instance is not None
    image = Dataset()
    image.Rows = image.Columns = 1  # by which highdicom knows an image
    image.StudyInstanceUID = stack.series.study_uid
    if captured:
        image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, capture_uid(made, k)
        image.SeriesInstanceUID = made.key.uid("sc.series")
    else:
        image.SOPClassUID, image.SOPInstanceUID = part.instance.sop_class_uid, part.instance.sop_instance_uid
        image.SeriesInstanceUID = stack.series.series_uid
    return image

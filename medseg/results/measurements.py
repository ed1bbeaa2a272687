"""What is measured, as items of a structured report (TID 300, 1411, 1419 and 1501 of PS3.16)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from highdicom import sr
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from medseg.bundle.bundle import Segment
from medseg.dicom.series import Stack
from medseg.inference.labels import Measured, Within
from medseg.results.diameters import Diameters, Point
from medseg.results.encoding import plain
from medseg.results.findings import Finding, Lesion, lesion_uid
from medseg.results.provenance import Provenance
from medseg.results.record import unit_of
from medseg.results.seg import coded

Group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations

_LESIONS = CodedConcept("246206008", "SCT", "Number of lesions")
_COUNT = CodedConcept("1", "UCUM", "no units")
_MILLILITRE = CodedConcept("ml", "UCUM", "milliliter")
_MILLIMETRE = CodedConcept("mm", "UCUM", "millimeter")
_LONG, _SHORT = codes.cid7470.LongAxis, codes.cid7470.ShortAxis
_MEAN, _SD = codes.cid7464.Mean, codes.cid7464.StandardDeviation
#: Of `unit_of`: in UCUM; what they are of where that has a code, else the mean itself is what is measured.
_UNITS: Final = {
    "HU": CodedConcept("[hnsf'U]", "UCUM", "Hounsfield unit"),
    "BQML": CodedConcept("Bq/ml", "UCUM", "Becquerels/milliliter"),
    "GML": CodedConcept("g/ml", "UCUM", "Grams/milliliter"),
    "CM2ML": CodedConcept("cm2/ml", "UCUM", "Centimeter**2/milliliter"),
    "CNTS": CodedConcept("{counts}", "UCUM", "Counts"),
    "CPS": CodedConcept("{counts}/s", "UCUM", "Counts per second"),
    "PROPCPS": CodedConcept("{propcounts}/s", "UCUM", "Proportional to counts per second"),
}
_QUANTITIES: Final = {"CT": codes.DCM.AttenuationCoefficient, "MR": codes.DCM.MRSignalIntensity}


def groups(stack: Stack, measured: Measured, finding: Finding, made: Provenance, *, with_seg: bool) -> Iterator[Group]:
    """The groups of a segment, and one for each of its lesions that are measured.

    A group that refers to a segment of the SEG has no coordinates (TID 1411), so diameters are in another one then, by
    the same tracking identifiers.
    """
    yield from _segment_groups(stack, measured, finding, made, with_seg=with_seg)
    yield from (_lesion_group(stack, finding.segment, lesion, made) for lesion in finding.lesions)


def _segment_groups(
    stack: Stack, measured: Measured, finding: Finding, made: Provenance, *, with_seg: bool
) -> Iterator[Group]:
    segment = measured.segment
    measurements = [_volume(measured.volume_ml)]
    if finding.has_lesions:
        measurements.append(sr.Measurement(name=_LESIONS, value=measured.components, unit=_COUNT))
    measurements += _values(stack, measured.within)
    axes = _axes(stack, finding.diameters)
    tracking = sr.TrackingIdentifier(
        uid=made.key.uid(f"segment.{segment.number}"), identifier=f"{plain(segment.label)[:40]} {made.key.digest[:8]}"
    )
    if not (measured.voxels and with_seg):
        yield _group(segment, tracking, measurements + axes, made)
        return
    yield sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=SegmentationStorage,
            sop_instance_uid=made.key.uid("seg"),
            segment_number=segment.number,
            source_series=sr.SourceSeriesForSegmentation(stack.series.series_uid),
        ),
        algorithm_id=_algorithm(made),
        finding_type=coded(segment.type),
        finding_category=coded(segment.category),
        finding_sites=_sites(segment),
        measurements=measurements,
    )
    if axes:
        yield _group(segment, tracking, axes, made)


def _lesion_group(stack: Stack, segment: Segment, lesion: Lesion, made: Provenance) -> Group:
    tracking = sr.TrackingIdentifier(
        uid=lesion_uid(made, segment, lesion),
        identifier=f"{plain(segment.label)[:36]} {lesion.number} {made.key.digest[:8]}",
    )
    measurements = [_volume(lesion.volume_ml), *_axes(stack, lesion.diameters), *_values(stack, lesion.within)]
    return _group(segment, tracking, measurements, made)


def _group(
    segment: Segment, tracking: sr.TrackingIdentifier, measurements: list[sr.Measurement], made: Provenance
) -> Group:
    """Of what no segment of a SEG is."""
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        algorithm_id=_algorithm(made),
        finding_type=coded(segment.type),
        finding_category=coded(segment.category),
        finding_sites=_sites(segment),
        measurements=measurements,
    )


def _algorithm(made: Provenance) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=plain(made.bundle),
        version=plain(made.bundle_version),
        parameters=[f"bundle_sha256={made.bundle_digest}"],
    )


def _sites(segment: Segment) -> list[sr.FindingSite] | None:
    """Where it is; laterality as a modifier of that (CID 244)."""
    site = segment.region or (segment.type if segment.laterality else None)
    laterality = coded(segment.laterality) if segment.laterality else None
    return [sr.FindingSite(coded(site), laterality=laterality)] if site else None


def _volume(volume_ml: float) -> sr.Measurement:
    return sr.Measurement(name=codes.cid7469.Volume, value=round(volume_ml, 6), unit=_MILLILITRE)


def _axes(stack: Stack, diameters: Diameters | None) -> list[sr.Measurement]:
    """Longest diameter in a slice, and the longest perpendicular to it, each with its ends."""
    if diameters is None:
        return []
    return [
        sr.Measurement(
            name=name,
            value=round(length, 4),
            unit=_MILLIMETRE,
            referenced_coordinates=[_line(ends, stack)] if stack.frame_of_reference_uid else None,
        )
        for name, length, ends in (
            (_LONG, diameters.long_mm, diameters.long),
            (_SHORT, diameters.short_mm, diameters.short),
        )
    ]


def _line(ends: tuple[Point, Point], stack: Stack) -> sr.CoordinatesForMeasurement3D:
    return sr.CoordinatesForMeasurement3D("POLYLINE", np.array(ends).round(4), stack.frame_of_reference_uid)


def _values(stack: Stack, within: Within) -> list[sr.Measurement]:
    """Mean and standard deviation of the image's values, in the modality's unit; none where that has no code."""
    said = unit_of(stack)
    unit = _COUNT if said is None else _UNITS.get(said)
    if within.mean is None or within.sd is None or unit is None:
        return []
    quantity = _QUANTITIES.get(stack.series.modality)
    return [
        sr.Measurement(name=kind, value=value, unit=unit)
        if quantity is None
        else sr.Measurement(name=quantity, value=value, unit=unit, derivation=kind)
        for kind, value in ((_MEAN, float(f"{within.mean:.6g}")), (_SD, float(f"{within.sd:.6g}")))
    ]

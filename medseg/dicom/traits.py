"""The attributes by which slices of one series are told apart, and what a difference in each of them means.

Kind.SHOWS     what a pixel shows or how its value came about (PS3.3's echo, b-value, image type, kernel, units, ...):
               slices that differ here and lie between each other are different volumes
Kind.IS        the same, and slices are never one volume, wherever they lie: magnitude beside phase
Kind.GATHERED  in which turn slices were acquired or made (acquisition, stack, object): volumes, or packages of one
Kind.CLOCK     when: the order of turns. "date|time", so that a time is never without its date
Kind.CYCLE     when within a heart beat or a breath: an order at each position, none across positions
"""

from __future__ import annotations

import sys
from enum import Enum
from functools import cache
from typing import Final

from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.tag import BaseTag

from medseg.dicom.headers import MALFORMED, Attributes
from medseg.dicom.instance import Instance
from medseg.dicom.private import NAMES, private_traits


class Kind(Enum):
    """What it means that slices differ in an attribute."""

    SHOWS = "shows"
    IS = "is"
    GATHERED = "gathered"
    CLOCK = "clock"
    CYCLE = "cycle"


#: Most telling first: the first that parts slices gives their volumes their names.
KINDS: Final[dict[str, Kind]] = {
    "TemporalPositionIndex": Kind.SHOWS,
    "TemporalPositionIdentifier": Kind.SHOWS,
    "AcquisitionNumber": Kind.GATHERED,
    "FrameAcquisitionNumber": Kind.GATHERED,
    "EchoNumbers": Kind.IS,
    "EffectiveEchoTime": Kind.SHOWS,
    "EchoTime": Kind.SHOWS,
    "DiffusionBValue": Kind.IS,
    "B_value": Kind.IS,
    "Diffusion B-Factor": Kind.IS,
    "GE b-value": Kind.IS,
    "DiffusionGradientOrientation": Kind.SHOWS,
    "DiffusionDirectionality": Kind.SHOWS,
    "ASLContext": Kind.IS,
    "InversionTime": Kind.SHOWS,
    "InversionTimes": Kind.SHOWS,
    "FlipAngle": Kind.SHOWS,
    "NominalPercentageOfCardiacPhase": Kind.SHOWS,
    "CardiacCyclePosition": Kind.SHOWS,
    "NominalPercentageOfRespiratoryPhase": Kind.SHOWS,
    "RespiratoryCyclePosition": Kind.SHOWS,
    "time slice of ImageIndex": Kind.GATHERED,
    "ConvolutionKernel": Kind.IS,
    "ConvolutionKernelGroup": Kind.SHOWS,
    "ReconstructionAlgorithm": Kind.SHOWS,
    "ReconstructionMethod": Kind.SHOWS,
    "ReconstructionDiameter": Kind.SHOWS,
    "FilterType": Kind.SHOWS,
    "KVP": Kind.SHOWS,
    "MonoenergeticEnergyEquivalent": Kind.IS,
    "EnergyWeightingFactor": Kind.SHOWS,
    "XRayDetectorLabel": Kind.SHOWS,
    "EnergyWindowNumber": Kind.SHOWS,
    "ContrastBolusAgent": Kind.SHOWS,
    "ContrastBolusAgentPhase": Kind.SHOWS,
    "ContrastBolusAgentAdministered": Kind.SHOWS,
    "Units": Kind.IS,
    "RescaleType": Kind.SHOWS,
    "CorrectedImage": Kind.SHOWS,
    "AttenuationCorrectionMethod": Kind.SHOWS,
    "ScatterCorrectionMethod": Kind.SHOWS,
    "VelocityEncodingDirection": Kind.SHOWS,
    "VelocityEncodingMinimumValue": Kind.SHOWS,
    "VelocityEncodingMaximumValue": Kind.SHOWS,
    "MagnetizationTransfer": Kind.SHOWS,
    "SpectrallySelectedSuppression": Kind.SHOWS,
    "Tagging": Kind.SHOWS,
    "BloodSignalNulling": Kind.SHOWS,
    "T2Preparation": Kind.SHOWS,
    "ScanningSequence": Kind.SHOWS,
    "SequenceVariant": Kind.SHOWS,
    "ScanOptions": Kind.SHOWS,
    "SequenceName": Kind.SHOWS,
    "PulseSequenceName": Kind.SHOWS,
    "ReceiveCoilName": Kind.SHOWS,
    "MultiCoilElementName": Kind.SHOWS,
    "MetaboliteMapDescription": Kind.SHOWS,
    "AcquisitionContrast": Kind.SHOWS,
    "VolumeBasedCalculationTechnique": Kind.SHOWS,
    "FrameType": Kind.SHOWS,
    "ImageType": Kind.SHOWS,
    "component in ImageType": Kind.IS,
    "ComplexImageComponent": Kind.IS,
    "SliceThickness": Kind.SHOWS,
    **{name: Kind.SHOWS for name in NAMES if name not in ("B_value", "Diffusion B-Factor", "GE b-value")},
    "how ImageType was made": Kind.GATHERED,
    "ProtocolName": Kind.GATHERED,
    "RepetitionTime": Kind.GATHERED,  # of a gated sequence it follows the heart
    "StackID": Kind.GATHERED,
    "IrradiationEventUID": Kind.GATHERED,
    "multi-frame object": Kind.GATHERED,
    "TriggerTime": Kind.CYCLE,
    "NominalCardiacTriggerDelayTime": Kind.CYCLE,
    "ActualCardiacTriggerDelayTime": Kind.CYCLE,
    "NominalRespiratoryTriggerDelayTime": Kind.CYCLE,
    "TemporalPositionTimeOffset": Kind.CLOCK,
    "FrameReferenceTime": Kind.CLOCK,
    "ActualFrameDuration": Kind.GATHERED,
    "AcquisitionTime": Kind.CLOCK,
    "AcquisitionDateTime": Kind.CLOCK,
    "FrameAcquisitionDateTime": Kind.CLOCK,
    "FrameReferenceDateTime": Kind.CLOCK,
    "ContentTime": Kind.CLOCK,
    "InstanceCreationTime": Kind.CLOCK,
}
#: Not what parts slices, but what says whether parted slices make one finer volume; and their number in the series.
EVIDENCE: Final = ("SpacingBetweenSlices", "InstanceNumber")

#: Order in which images were made or stored, which may have nothing to do with how they were acquired.
STORING: Final = frozenset({"ContentTime", "InstanceCreationTime", "InstanceNumber"})

_DATED: Final = {
    "AcquisitionTime": "AcquisitionDate",
    "ContentTime": "ContentDate",
    "InstanceCreationTime": "InstanceCreationDate",
}
_DATETIMES: Final = ("AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime")
#: Dimensions that say where a frame lies (PS3.3 C.7.6.17), or what `StackID` itself says.
_SPATIAL: Final = {
    "StackID",
    "InStackPositionNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "ImagePositionVolume",
    "ImageOrientationVolume",
    "SliceLocation",
    "TablePosition",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
}
_DIMENSION: Final = " (dimension)"

#: Values of ImageType that say what a pixel is: parts of a complex number, tissues of Dixon's method, maps.
_COMPONENTS: Final = frozenset(
    {"M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "VELOCITY"}
    | {"W", "F", "IP", "OP", "WATER", "FAT", "IN_PHASE", "OUT_PHASE", "FF", "FAT_FRACTION"}
    | {"ADC", "EADC", "FA", "TRACE", "TRACEW", "T1", "T2", "T2_STAR", "T1_MAP", "T2_MAP", "R2_STAR"}
    | {"CBF", "CBV", "MTT", "TTP", "TMAX"}
)

_WANTED: Final = {tag: name for name in (*KINDS, *EVIDENCE) if (tag := tag_for_keyword(name)) is not None}


def kind_of(name: str) -> Kind:
    """What a difference in a trait means; that of a dimension is that of the attribute which it counts."""
    return KINDS.get(name.removesuffix(_DIMENSION), Kind.GATHERED)


@cache
def rank_of(name: str) -> float:
    """How telling a trait is: less is more."""
    plain = name.removesuffix(_DIMENSION)
    return list(KINDS).index(plain) + (0.5 if plain != name else 0.0) if plain in KINDS else float(len(KINDS))


def traits(instance: Instance, frame: int | None, view: Attributes, dimensions: tuple[str, ...]) -> dict[str, str]:
    """What may tell a plane from others at its place: name -> value as text, nothing where there is none.

    dimensions: see `dimension_names`, of the instance.
    """
    values = {name: view.text(name) for name in (_WANTED[tag] for tag in view.present(_WANTED))}
    for keyword in ("ImageType", "FrameType"):
        if keyword in values:
            # The first two values say how an image was made, the others what it shows: magnitude, water, b-value map.
            kinds = values[keyword].split("\\")
            values[keyword] = "\\".join(kinds[2:])
            values["how ImageType was made"] = "\\".join(kinds[:2])
            values["component in ImageType"] = "\\".join(sorted(_COMPONENTS.intersection(kinds[2:])))
    for time, day in _DATED.items():
        if time in values:
            values[time] = f"{view.text(day)}|{values[time]}"
    zone = view.text("TimezoneOffsetFromUTC")
    for keyword in _DATETIMES:
        if keyword in values:
            text = values[keyword]
            values[keyword] = f"|{text}" if "+" in text or "-" in text else f"|{text}{zone}"
    counted = view.number("ImageIndex"), view.number("NumberOfSlices")
    if counted[0] and counted[1]:  # PS3.3 C.8.9.4.1.9: time slices, or gates, count by NumberOfSlices
        values["time slice of ImageIndex"] = f"{(counted[0] - 1) // counted[1] + 1:g}"
    if frame is None:
        values |= private_traits(instance.header)
    else:
        values["multi-frame object"] = view.text("ConcatenationUID") or instance.sop_instance_uid
        indices = view.texts("DimensionIndexValues")
        names = dimensions or tuple(f"index {place}" for place in range(1, len(indices) + 1))
        values |= {f"{name}{_DIMENSION}": index for name, index in zip(names, indices, strict=False) if name}
    return {name: sys.intern(value) for name, value in values.items() if value}


def dimension_names(header: Attributes) -> tuple[str, ...]:
    """What each of the DimensionIndexValues counts; "" for a dimension of space."""
    try:
        items = header.value("DimensionIndexSequence") or ()
        pointers = [BaseTag(item.DimensionIndexPointer) for item in items]
    except MALFORMED:
        return ()
    names = [keyword_for_tag(pointer) or f"{pointer}" for pointer in pointers]
    return tuple("" if name in _SPATIAL else name for name in names)

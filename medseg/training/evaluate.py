"""A bundle against reference labels: rows per case and structure, then mean, median, interval and worst.

    case,structure,dice,hausdorff95_mm,volume_ml,reference_ml,volume_error_ml,volume_error_percent,lesions,...
    hippocampus_003,Anterior hippocampus,0.91,...
    mean,Anterior hippocampus,0.90,...

Cases go through the pipeline that `medseg infer` uses, so the scores are those of what a user gets.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO, TypeVar

import nibabel
import numpy as np
from numpy.typing import NDArray

from medseg.bundle.bundle import Bundle, Segment
from medseg.dicom.nifti import read_nifti
from medseg.dicom.series import Stack, StackSource
from medseg.dicom.studies import read_study
from medseg.errors import UsageError
from medseg.inference.labels import SegmentationResult
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from medseg.job.channel_files import of_files
from medseg.job.plan import plan
from medseg.progress import Cancelled, check, never
from medseg.training.data import DicomCase, LabelledCase, NoCases, UnusableCase, find_cases, find_dicom_cases, split
from medseg.training.plan import read_plan
from medseg.training.references import masks_of, read_references
from medseg.training.scores import Score, Summary, score, summarise

MEASURES: dict[str, bool | None] = {  # name: whether higher is better, None where neither is
    "dice": True,
    "hausdorff95_mm": False,
    "volume_ml": None,
    "reference_ml": None,
    "volume_error_ml": False,
    "volume_error_percent": False,
    "lesions": None,
    "lesions_found": None,
    "lesion_sensitivity": True,
    "false_positives": False,
}
COLUMNS = ("case", "structure", *MEASURES, "confidence", "flags")
# row: field of Summary
STATISTICS = {"mean": "mean", "median": "median", "ci95_low": "low", "ci95_high": "high", "worst": "worst"}

AS_SHIPPED = Settings()

Masks = NDArray[np.bool_]
Predict = Callable[[LabelledCase], Masks]


@dataclass(frozen=True, eq=False)
class Compared:
    """What was found in a case and what is true: (segments, *S) each, of voxels of spacing_mm."""

    found: Masks
    true: Masks
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class EvaluationProgress:
    """`done` of `total` cases; `case` is the one that was scored last."""

    done: int
    total: int
    case: str
    scores: Mapping[str, Score]


_Case = TypeVar("_Case", bound=LabelledCase | DicomCase)
OnCase = Callable[[EvaluationProgress], None]


@dataclass(frozen=True)
class Evaluation:
    """Scores by case and structure; their summaries by structure and measure.

    results: what the pipeline said of each case, where it was asked.
    """

    cases: Mapping[str, Mapping[str, Score]]
    summaries: Mapping[str, Mapping[str, Summary]]
    results: Mapping[str, SegmentationResult] = field(default_factory=dict)


def evaluate(
    bundle: Bundle,
    data: Path | str,
    *,
    everything: bool = False,
    without: Sequence[str] = (),
    structures: Mapping[str, str] | None = None,
    settings: Settings = AS_SHIPPED,
    on_case: OnCase | None = None,
    cancelled: Cancelled = never,
) -> Evaluation:
    """Segment the cases that training set aside, or all of them (everything), and score them.

    data: a folder with images/ and labels/, NIfTI volumes of the same names, where labels are the numbers of segments,
    or with a folder for each case: DICOM images of one study and a SEG or RTSTRUCT of them, where structures are named
    as the bundle's segments, or as `structures` says (segment's label: name or pattern).
    without: channels that are taken to be missing.

    Raises NoCases, UnusableCase, UsageError, and what `segment` raises.
    """
    data = Path(data)
    _check_names(bundle, without, structures or {})
    cases: list[LabelledCase | DicomCase] = [*find_cases(data, bundle.channels), *find_dicom_cases(data)]
    if not everything:
        _, cases = split(cases, read_plan(bundle.path).held_out)
    if not cases:
        raise NoCases(data, "at all" if everything else "set aside")
    results: dict[str, SegmentationResult] = {}

    def compare(case: LabelledCase | DicomCase) -> Compared:
        if isinstance(case, DicomCase):
            compared, results[case.id] = compare_dicom(case, bundle, settings, cancelled, without, structures or {})
            return compared
        given = {name: file for name, file in case.channels.items() if name not in without}
        masks, results[case.id] = segmented(case.image, bundle, settings, cancelled, given)
        return _with_label(case, bundle.segments, masks)

    evaluation = _score_cases(cases, bundle.segments, compare, on_case, cancelled)
    return replace(evaluation, results=results)


def _check_names(bundle: Bundle, without: Sequence[str], structures: Mapping[str, str]) -> None:
    for name in without:
        if not any(one.optional and one.name == name for one in (bundle.channels.each if bundle.channels else ())):
            raise UsageError(f"bundle {bundle.name} has no channel {name!r} that is optional")
    labels = [segment.label for segment in bundle.segments]
    for label in structures:
        if label not in labels:
            raise UsageError(f"bundle {bundle.name} has no segment {label!r}, it has {', '.join(map(repr, labels))}")


def evaluate_cases(
    cases: Sequence[LabelledCase],
    segments: Sequence[Segment],
    predict: Predict,
    *,
    on_case: OnCase | None = None,
    cancelled: Cancelled = never,
) -> Evaluation:
    """Score `predict`, which gives a mask per segment (len(segments), *S) on the image's own grid."""
    return _score_cases(cases, segments, lambda case: _with_label(case, segments, predict(case)), on_case, cancelled)


def _score_cases(
    cases: Sequence[_Case],
    segments: Sequence[Segment],
    compare: Callable[[_Case], Compared],
    on_case: OnCase | None,
    cancelled: Cancelled,
) -> Evaluation:
    names, scores = [one.label for one in segments], {}
    for done, case in enumerate(cases, start=1):
        check(cancelled)
        compared = compare(case)
        scores[case.id] = score(compared.found, compared.true, compared.spacing_mm, names)
        if on_case:
            on_case(EvaluationProgress(done, len(cases), case.id, scores[case.id]))
    structures = next(iter(scores.values()), {})
    return Evaluation(scores, {name: summaries(scores, name) for name in structures})


def _with_label(case: LabelledCase, segments: Sequence[Segment], found: Masks) -> Compared:
    """What was found in a case of NIfTI files beside its label."""
    reference = nibabel.load(case.label)
    truth = np.asanyarray(reference.dataobj)
    if found.shape[1:] != truth.shape:
        raise UnusableCase(case.id, f"image {found.shape[1:]} and label {truth.shape} differ in grid")
    true = np.stack([truth == one.number for one in segments])
    return Compared(found, true, spacing_mm(reference.affine))


def compare_dicom(
    case: DicomCase,
    bundle: Bundle,
    settings: Settings,
    cancelled: Cancelled,
    without: Sequence[str],
    structures: Mapping[str, str],
) -> tuple[Compared, SegmentationResult]:
    """What the pipeline finds in a case's DICOM series beside its SEG or RTSTRUCT, and what it says of it."""
    references = read_references(case.folder, case.id)
    drawn_on = frozenset[str]().union(*(one.series for one in references))
    planned = plan(read_study(case.folder), [bundle], explicit=True)
    stacks = [job.stack for job in planned.jobs if job.stack.series.series_uid in drawn_on]
    if len(stacks) != 1:
        why = "; ".join(str(refused.error) for refused in planned.refused) or "it was drawn on other series"
        raise UnusableCase(
            case.id, f"expected one stack with a reference for {bundle.name}, found {len(stacks)}: {why}"
        )
    stack = stacks[0]
    if without:
        given = (replace(one, stack=None, matrix=None) if one.name in without else one for one in stack.channels)
        stack = replace(stack, channels=tuple(given))
    sink = LabelSpool()
    result = segment(StackSource(stack), bundle, sink, settings=settings, cancelled=cancelled)
    true = masks_of(references, stack, bundle.segments, structures)
    return Compared(_masks(sink), true, stack.spacing_mm), result


def segment_nifti(image: Path, bundle: Bundle, settings: Settings) -> Masks:
    """The pipeline's labels of a NIfTI volume: (segments, i, j, k), on the file's own grid."""
    return segmented(image, bundle, settings, never, {})[0]


def segmented(
    image: Path, bundle: Bundle, settings: Settings, cancelled: Cancelled, given: Mapping[str, Path]
) -> tuple[Masks, SegmentationResult]:
    """The same, and what the pipeline says of it. given: the files of a bundle's channels; `image` the reference's."""
    sink = LabelSpool()
    stack = of_files(image, bundle, given)[0] if given else read_nifti(image)
    result = segment(StackSource(stack), bundle, sink, settings=settings, cancelled=cancelled)
    masks = np.moveaxis(_masks(sink), (1, 2, 3), (3, 2, 1))  # (k, j, i) -> (i, j, k)
    turned = np.linalg.det(nibabel.load(image).affine) * np.linalg.det(_ijk_to_lps(sink.stack)) < 0
    # a left-handed volume's slices are turned round when read
    return masks[..., ::-1] if turned else masks, result


def _masks(found: LabelSpool) -> Masks:
    """(segments, k, j, i)."""
    volume = np.stack(list(found))
    if found.exclusive:
        return np.stack([volume == one.number for one in found.segments])
    return np.moveaxis(volume, 1, 0).astype(bool)


def _ijk_to_lps(stack: Stack) -> NDArray[np.float64]:
    """4x4, maps (i, j, k, 1) = (column, row, slice) to LPS millimetres."""
    return stack.affine[:, [2, 1, 0, 3]]


def spacing_mm(affine: NDArray[np.floating]) -> tuple[float, ...]:
    """Millimetres per voxel axis."""
    return tuple(float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))


def summaries(scores: Mapping[str, Mapping[str, Score]], structure: str) -> dict[str, Summary]:
    """Each measure of one structure over the cases."""
    return {
        measure: summarise([getattr(case[structure], measure) for case in scores.values()], higher_is_better=better)
        for measure, better in MEASURES.items()
    }


def rows(evaluation: Evaluation) -> Iterator[dict[str, str | float | None]]:
    """A record per case and structure, then the summary records; None where a measure is not defined."""
    for case, by_structure in evaluation.cases.items():
        for structure, one in by_structure.items():
            row = _row(case, structure, {measure: getattr(one, measure) for measure in MEASURES})
            yield row | _doubts(evaluation.results.get(case), structure)
    for name, field_ in STATISTICS.items():
        for structure, by_measure in evaluation.summaries.items():
            row = _row(name, structure, {measure: getattr(by_measure[measure], field_) for measure in MEASURES})
            yield row | _doubts(None, structure)


def _row(case: str, structure: str, values: Mapping[str, float]) -> dict[str, str | float | None]:
    known = {measure: None if math.isnan(value) else round(value, 4) for measure, value in values.items()}
    return {"case": case, "structure": structure, **known}


def _doubts(result: SegmentationResult | None, structure: str) -> dict[str, str | float | None]:
    """How sure the pipeline is of a structure, and its flags: those of the structure and of the whole."""
    if result is None:
        return {"confidence": None, "flags": None}
    measured = next((one for one in result.measured if one.segment.label == structure), None)
    numbers = {None, *(one.segment.number for one in result.measured if measured in (None, one))}
    codes = dict.fromkeys(flag.code for flag in result.flags if flag.segment in numbers)
    sure = None if measured is None or measured.confidence is None else round(measured.confidence, 4)
    return {"confidence": sure, "flags": " ".join(codes)}


def write_csv(evaluation: Evaluation, file: TextIO) -> None:
    """The same rows as CSV."""
    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows(evaluation))

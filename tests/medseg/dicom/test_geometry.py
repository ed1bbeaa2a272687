"""What geometry accepts, splits and refuses, row by row, and affines against the attributes themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import Dataset as Item
from scipy.spatial.transform import Rotation

from medseg.dicom.geometry import GeometryVerdict, Reason, classify
from medseg.dicom.phantom import Ellipsoid, make_affine, make_series
from medseg.dicom.slices import expand
from tests.medseg.dicom.made import each, instance_of, moved, renamed, series_of, voxels_of
from tests.orientations import ROW_AND_COLUMN, Direction

SMALL = (12, 10, 8)


def made(**changes: object) -> list[Dataset]:
    return make_series(**{"shape": SMALL, "spacing_mm": (2.0, 1.0, 1.0)} | changes)


def codes(verdict: GeometryVerdict) -> list[str]:
    return [finding.code for stack in verdict.stacks for finding in stack.findings]


def lengths(verdict: GeometryVerdict) -> list[int]:
    return [len(stack.slices) for stack in verdict.stacks]


def spread(datasets: list[Dataset], heights_mm: list[float]) -> list[Dataset]:
    """Axial slices at these heights."""
    for dataset, height in zip(datasets, heights_mm, strict=True):
        dataset.ImagePositionPatient = ["0", "0", f"{height:.6g}"]
    return datasets


def stepping(*steps_mm: float) -> Callable[[], list[Dataset]]:
    heights = np.concatenate([[0.0], np.cumsum(steps_mm)])
    return lambda: spread(made(shape=(len(heights), 6, 5)), heights.tolist())


def phases(count: int, change: Callable[[Dataset, int], object]) -> Callable[[], list[Dataset]]:
    """The same positions `count` times, told apart by `change`."""

    def make() -> list[Dataset]:
        datasets = []
        for phase in range(count):
            for dataset in made(shape=(5, 6, 5)):
                renamed(dataset, phase)
                change(dataset, phase)
                datasets.append(dataset)
        return datasets

    return make


def together(*parts: list[Dataset]) -> list[Dataset]:
    """Several phantoms under one SeriesInstanceUID."""
    whole = [renamed(dataset, place) for place, part in enumerate(parts) for dataset in part]
    return each(whole, lambda dataset: setattr(dataset, "SeriesInstanceUID", whole[0].SeriesInstanceUID))


def tag(**values: object) -> Callable[[], list[Dataset]]:
    """The plain series with attributes set; None takes one away."""

    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return lambda: each(made(), change)


def reverse_all() -> list[Dataset]:
    return made()[::-1]


def shuffled() -> list[Dataset]:
    datasets = made()
    random.Random(1).shuffle(datasets)
    return each(datasets, lambda dataset: setattr(dataset, "InstanceNumber", random.Random(2).randrange(99)))


ACCEPTED = [
    pytest.param(made, [], id="plain"),
    pytest.param(reverse_all, [], id="files in reverse order"),
    pytest.param(shuffled, [], id="files in any order, InstanceNumber nonsense"),
    pytest.param(lambda: made(orientation=((1, 0, 0), (0, -1, 0))), [], id="negated column direction"),
    pytest.param(lambda: made(patient_position="FFP"), [], id="feet first, prone"),
    pytest.param(lambda: made(orientation="sagittal"), [], id="sagittal"),
    pytest.param(lambda: made(orientation=((0.8, 0.6, 0), (0, 0, -1))), [], id="oblique"),
    pytest.param(lambda: made(spacing_mm=(2, 0.5, 0.7)), [], id="pixels that are not square"),
    pytest.param(lambda: made(tilt_deg=22), ["gantry_tilt"], id="tilted gantry"),
    pytest.param(lambda: made(tilt_deg=0.3), [], id="tilt within rounding"),
    pytest.param(lambda: made(missing=[5]), ["bridged_gap"], id="one slice missing"),
    pytest.param(stepping(2, 2.015, 1.99, 2, 2), [], id="spacing within 1 %"),
    pytest.param(stepping(*[0.62, 0.63] * 6), [], id="positions rounded to two decimals"),
    pytest.param(
        stepping(*np.diff(np.round(np.arange(9) * 0.625, 1))), ["uneven_spacing"], id="positions rounded to one decimal"
    ),
    pytest.param(stepping(2, 2.15, 1.9, 2, 2, 2), ["uneven_spacing"], id="spacing within 10 %"),
    pytest.param(stepping(*[1.0] * 20, *[1.009] * 20), ["uneven_spacing"], id="small errors that add up"),
    pytest.param(stepping(2, 4.1, 2, 2, 2), ["bridged_gap", "uneven_spacing"], id="a gap in uneven spacing"),
    pytest.param(tag(SpacingBetweenSlices="9"), ["spacing_between_slices_ignored"], id="SpacingBetweenSlices is wrong"),
    pytest.param(tag(SliceThickness="5"), [], id="slices overlap"),
    pytest.param(tag(RescaleType=None), [], id="CT without RescaleType"),
    pytest.param(tag(LossyImageCompression="01"), ["lossy_source"], id="lossy source"),
    pytest.param(tag(PhotometricInterpretation="MONOCHROME1"), ["monochrome1"], id="MONOCHROME1"),
    pytest.param(tag(PatientID=None, AccessionNumber=None, StudyID=None), [], id="type 2 attributes absent"),
    pytest.param(lambda: made(modality="MR"), [], id="MR needs no rescale"),
    pytest.param(
        lambda: [*made()[:-1], each(made()[-1:], lambda one: setattr(one, "PatientSex", "F"))[0]],
        ["inconsistent_patient"],
        id="patient attributes differ",
    ),
]


@pytest.mark.parametrize(("make", "findings"), ACCEPTED)
def test_accepted_rows(make: Callable[[], list[Dataset]], findings: list[str]) -> None:
    datasets = make()
    verdict = classify(series_of(datasets))
    assert verdict.verdict == "accepted", verdict.refusals
    assert codes(verdict) == findings
    assert lengths(verdict) == [len(datasets)]


def echo(dataset: Dataset, phase: int) -> None:
    dataset.EchoTime = str(10 * (phase + 1))


def b_value(dataset: Dataset, phase: int) -> None:
    dataset.DiffusionBValue = 1000.0 * phase


def echo_and_time(dataset: Dataset, phase: int) -> None:
    dataset.EchoTime = str(phase % 2)
    dataset.TemporalPositionIdentifier = phase // 2
    dataset.ContentTime = f"1200{phase}{dataset.InstanceNumber:02d}"[:6]


def trigger(dataset: Dataset, phase: int) -> None:
    dataset.TriggerTime = f"{phase * 40 + 0.37 * dataset.InstanceNumber:.2f}"


def magnitude(dataset: Dataset, phase: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "MP"[phase]]


def two_orientations() -> list[Dataset]:
    return together(made(), made(orientation="sagittal", seed=0))


SPLIT = [
    pytest.param(phases(2, echo), [5, 5], ["EchoTime=10", "EchoTime=20"], id="two echoes"),
    pytest.param(phases(2, b_value), [5, 5], ["DiffusionBValue=0.0", "DiffusionBValue=1000.0"], id="b-values"),
    pytest.param(phases(2, magnitude), [5, 5], ["ImageType=M", "ImageType=P"], id="magnitude and phase"),
    pytest.param(
        phases(3, lambda dataset, phase: setattr(dataset, "AcquisitionNumber", phase)),
        [5, 5, 5],
        ["AcquisitionNumber=0", "AcquisitionNumber=1", "AcquisitionNumber=2"],
        id="acquisitions",
    ),
    pytest.param(
        phases(4, echo_and_time),
        [5, 5, 5, 5],
        [f"TemporalPositionIdentifier={time}, EchoTime={echo}" for time in (0, 1) for echo in (0, 1)],
        id="time points of two echoes",
    ),
    pytest.param(
        phases(3, trigger),
        [5, 5, 5],
        ["TriggerTime 1 of 3", "TriggerTime 2 of 3", "TriggerTime 3 of 3"],
        id="cine: times of their own at each position",
    ),
    pytest.param(
        stepping(*[1.0] * 10, *[2.0] * 6),
        [11, 6],
        ["slices 0.00 to 10.00 mm", "slices 12.00 to 22.00 mm"],
        id="the spacing changes",
    ),
    pytest.param(
        stepping(*[1.0] * 10, 5.37, *[1.0] * 6),
        [11, 7],
        ["slices 0.00 to 10.00 mm", "slices 15.37 to 21.37 mm"],
        id="two stacks off each other's grid",
    ),
    pytest.param(
        lambda: together(made(), made(shape=(8, 12, 8))),
        [12, 8],
        ["Rows=10, Columns=8", "Rows=12, Columns=8"],
        id="two sizes",
    ),
    pytest.param(
        lambda: together(made(), made(spacing_mm=(2, 0.9, 0.9), shape=(8, 10, 8))),
        [12, 8],
        ["PixelSpacing=1\\1", "PixelSpacing=0.9\\0.9"],
        id="two pixel spacings",
    ),
]


@pytest.mark.parametrize(("make", "expected", "named"), SPLIT)
def test_split_rows(make: Callable[[], list[Dataset]], expected: list[int], named: list[str]) -> None:
    verdict = classify(series_of(make()))
    assert verdict.verdict == "split", verdict.refusals
    assert lengths(verdict) == expected
    assert [stack.phase for stack in verdict.stacks] == named
    assert not verdict.refusals
    assert all(stack.uniform for stack in verdict.stacks)


def duplicate_without_cause() -> list[Dataset]:
    datasets = made()
    return [*datasets, renamed(made()[4], 1)]


def jitter_15_percent() -> list[Dataset]:
    return stepping(2, 2, 2.3, 1.7, 2, 2)()


REFUSED = [
    pytest.param(
        lambda: made(missing=[4, 5]),
        Reason.MISSING_SLICES,
        "2 slices are missing, at -3.00, -1.00 mm",
        id="side by side",
    ),
    pytest.param(lambda: made(missing=[3, 7]), Reason.MISSING_SLICES, "2 slices are missing", id="two slices missing"),
    pytest.param(
        lambda: made(shape=(30, 6, 5), missing=[12, 13, 14, 15]),
        Reason.MISSING_SLICES,
        "4 slices are missing, at -5.00, -3.00, -1.00, 1.00 mm",
        id="a gap is no reason to split",
    ),
    pytest.param(jitter_15_percent, Reason.IRREGULAR_SPACING, "expected 2.000 mm within 10 %", id="15 % uneven"),
    pytest.param(stepping(1, 1, 1, 1, 1, 1.5, 2), Reason.IRREGULAR_SPACING, "expected 1.000", id="too short to split"),
    pytest.param(duplicate_without_cause, Reason.DUPLICATE_POSITIONS, "-3.00 mm", id="one position twice"),
    pytest.param(lambda: [*made(), made(seed=0)[3]], Reason.CONFLICTING_INSTANCES, "names several", id="one UID twice"),
    pytest.param(lambda: made()[:2], Reason.TOO_FEW_SLICES, "2 slices: expected at least 3", id="two slices"),
    pytest.param(lambda: made()[:1], Reason.TOO_FEW_SLICES, "1 slice", id="one slice"),
    pytest.param(
        lambda: [moved(dataset, (3.0 * (place % 2), 0, 0)) for place, dataset in enumerate(made())],
        Reason.NOT_ON_A_LINE,
        "2.7 mm off the line",
        id="slices zigzag",
    ),
    pytest.param(
        lambda: together(
            *[
                made(orientation=((np.cos(a), np.sin(a), 0), (0, 0, -1)), shape=(1, 6, 5))
                for a in np.radians([0, 30, 60, 90])
            ]
        ),
        Reason.MIXED_ORIENTATION,
        "expected at least 3",
        id="projections rotating about an axis",
    ),
    pytest.param(tag(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), Reason.LOCALIZER, "localizer", id="localizer"),
    pytest.param(
        tag(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), Reason.MOSAIC, "mosaic", id="Siemens mosaic"
    ),
    pytest.param(tag(SamplesPerPixel=3), Reason.COLOUR, "one grey value", id="colour"),
    pytest.param(tag(PhotometricInterpretation="PALETTE COLOR"), Reason.COLOUR, "PALETTE COLOR", id="palette"),
    pytest.param(tag(FrameOfReferenceUID=None), Reason.NO_FRAME_OF_REFERENCE, "no FrameOfRef", id="no frame of ref."),
    pytest.param(tag(FrameOfReferenceUID=""), Reason.NO_FRAME_OF_REFERENCE, "no FrameOfRef", id="empty frame of ref."),
    pytest.param(tag(ImagePositionPatient=None), Reason.NO_POSITION, "absent", id="no position"),
    pytest.param(tag(ImagePositionPatient=["1", "2"]), Reason.NO_POSITION, "expected 3", id="two coordinates"),
    pytest.param(tag(ImageOrientationPatient=None), Reason.NO_ORIENTATION, "absent", id="no orientation"),
    pytest.param(
        tag(ImageOrientationPatient=["1", "0", "0", "0.1", "1", "0"]),
        Reason.BAD_ORIENTATION,
        "right angles",
        id="directions not at right angles",
    ),
    pytest.param(
        tag(ImageOrientationPatient=["0"] * 6), Reason.BAD_ORIENTATION, "lengths 0 and 0", id="directions all zero"
    ),
    pytest.param(tag(PixelSpacing=None), Reason.NO_PIXEL_SPACING, "absent", id="no pixel spacing"),
    pytest.param(tag(PixelSpacing=["0", "0"]), Reason.NO_PIXEL_SPACING, "0\\0", id="pixel spacing zero"),
    pytest.param(tag(RescaleSlope=None), Reason.CT_WITHOUT_RESCALE, "RescaleSlope", id="CT without slope"),
    pytest.param(
        tag(RescaleSlope=None, RescaleIntercept=None), Reason.CT_WITHOUT_RESCALE, "HU", id="CT without rescale"
    ),
    pytest.param(tag(RescaleSlope="0"), Reason.MALFORMED_HEADER, "slope other than 0", id="slope zero"),
    pytest.param(tag(RescaleType="Z_EFF"), Reason.CT_NOT_HU, "Z_EFF", id="CT of atomic numbers"),
    pytest.param(tag(NumberOfFrames="3"), Reason.MULTIFRAME_WITHOUT_GEOMETRY, "frames", id="frames without places"),
]


@pytest.mark.parametrize(("make", "reason", "said"), REFUSED)
def test_refused_rows(make: Callable[[], list[Dataset]], reason: Reason, said: str) -> None:
    datasets = make()
    verdict = classify(series_of(datasets))
    assert verdict.verdict == "refused"
    assert [refusal.reason for refusal in verdict.refusals] == [reason]
    assert said in verdict.refusals[0].detail
    frames = int(datasets[0].get("NumberOfFrames", 1))
    assert verdict.refusals[0].slices == len(datasets) * frames


def test_some_slices_left_out_is_a_split() -> None:
    scout = made(orientation="coronal", shape=(1, 10, 8))
    each(scout, lambda one: setattr(one, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    verdict = classify(series_of(together(made(), scout)))
    assert (verdict.verdict, lengths(verdict)) == ("split", [12])
    assert [(one.reason, one.slices) for one in verdict.refusals] == [(Reason.LOCALIZER, 1)]


def test_groups_too_small_are_refused_by_what_sets_them_apart() -> None:
    verdict = classify(series_of(together(made(), made(orientation="sagittal", shape=(2, 10, 8)))))
    assert (verdict.verdict, lengths(verdict)) == ("split", [12])
    assert [(one.reason, one.slices) for one in verdict.refusals] == [(Reason.MIXED_ORIENTATION, 2)]


def test_orientations_large_enough_are_stacks_of_their_own() -> None:
    verdict = classify(series_of(two_orientations()))
    assert (verdict.verdict, lengths(verdict)) == ("split", [12, 12])
    assert len({stack.phase for stack in verdict.stacks}) == 2


def test_frames_of_reference_are_never_combined() -> None:
    first, second = made(), made()
    each(second[6:], lambda one: setattr(one, "FrameOfReferenceUID", "1.2.3"))
    verdict = classify(series_of([*first[:6], *second[6:]]))
    assert lengths(verdict) == [6, 6]
    assert {stack.frame_of_reference_uid for stack in verdict.stacks} == {"1.2.3", first[0].FrameOfReferenceUID}


def test_patients_are_never_combined_and_never_named() -> None:
    datasets = each(made(), lambda one: setattr(one, "PatientID", "A" if one.InstanceNumber < 7 else "SECRET"))
    verdict = classify(series_of(datasets))
    assert lengths(verdict) == [6, 6]
    assert codes(verdict) == ["mixed_patient", "mixed_patient"]
    assert "SECRET" not in repr([(stack.phase, stack.findings) for stack in verdict.stacks])


def test_assumed_frame_of_reference_is_a_valid_uid_and_always_the_same() -> None:
    series = series_of(tag(FrameOfReferenceUID=None)())
    uids = {classify(series, assume_frame_of_reference=True).stacks[0].frame_of_reference_uid for _ in range(2)}
    (uid,) = uids
    assert uid.startswith("2.25.")
    assert len(uid) <= 64
    assert codes(classify(series, assume_frame_of_reference=True)) == ["assumed_frame_of_reference"]
    other = series_of(make_series(shape=SMALL, number=2))
    assert classify(other, assume_frame_of_reference=True).stacks[0].frame_of_reference_uid != uid


def test_a_bridged_gap_leaves_a_coordinate_out_and_fills_the_extent() -> None:
    (stack,) = classify(series_of(made(missing=[5]))).stacks
    assert stack.coordinates.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert not stack.uniform
    assert stack.spacing_mm == pytest.approx((2, 1, 1))
    assert stack.thickness_mm.tolist() == pytest.approx([2, 2, 2, 2, 3, 3, 2, 2, 2, 2, 2])


def test_uneven_slices_have_fractional_coordinates_at_their_true_places() -> None:
    (stack,) = classify(series_of(stepping(2, 2.15, 1.9, 2, 2, 2)())).stacks
    heights = stack.affine[2, 3] + stack.coordinates * stack.affine[2, 0]
    assert heights == pytest.approx([0, 2, 4.15, 6.05, 8.05, 10.05, 12.05])
    assert stack.coordinates[[0, -1]].tolist() == [0, 6]


def test_tilted_stack_measures_along_the_normal() -> None:
    (stack,) = classify(series_of(made(tilt_deg=22))).stacks
    assert stack.tilt_deg == pytest.approx(22)
    assert stack.spacing_mm == pytest.approx((2, 1, 1))
    assert stack.thickness_mm == pytest.approx(np.full(12, 2.0))


def test_a_single_slice_is_a_stack_where_one_is_enough() -> None:
    (stack,) = classify(series_of(made()[:1]), min_slices=1).stacks
    assert stack.spacing_mm == pytest.approx((2, 1, 1))
    assert stack.thickness_mm.tolist() == [2.0]


def test_empty_series_is_refused_without_a_reason() -> None:
    verdict = classify(series_of(made()), [])
    assert (verdict.verdict, verdict.refusals) == ("refused", ())


def enhanced(shape: tuple[int, int, int] = (4, 6, 5), phases_b: tuple[float, ...] = (0.0,)) -> Dataset:
    """An enhanced MR object: frames in descending order, everything in functional groups."""
    classic = make_series(modality="MR", shape=shape)
    whole = classic[0]
    frames = []
    pixels = b""
    for b_value, dataset in product(phases_b, classic[::-1]):
        frame = Item()
        frame.PlanePositionSequence = [Item()]
        frame.PlanePositionSequence[0].ImagePositionPatient = dataset.ImagePositionPatient
        frame.MRDiffusionSequence = [Item()]
        frame.MRDiffusionSequence[0].DiffusionBValue = b_value
        frame.PixelValueTransformationSequence = [Item()]
        frame.PixelValueTransformationSequence[0].RescaleSlope = str(len(frames) + 1)
        frame.PixelValueTransformationSequence[0].RescaleIntercept = "-5"
        frames.append(frame)
        pixels += dataset.PixelData
    shared = Item()
    shared.PlaneOrientationSequence = [Item()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = whole.ImageOrientationPatient
    shared.PixelMeasuresSequence = [Item()]
    shared.PixelMeasuresSequence[0].PixelSpacing = whole.PixelSpacing
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(whole, keyword)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    whole.NumberOfFrames = len(frames)
    whole.PixelData = pixels
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = frames
    return whole


def test_enhanced_frames_are_slices_with_their_own_scale() -> None:
    (stack,) = classify(series_of([enhanced()])).stacks
    assert [one.frame for one in stack.slices] == [4, 3, 2, 1]
    assert stack.affine == pytest.approx(make_affine(shape=(4, 6, 5)), abs=1e-9)
    for plane in stack.slices:
        assert plane.frame is not None
        # The ellipsoid (100) covers this small grid; each frame's slope is its number.
        assert np.unique(plane.read()).tolist() == [100 * plane.frame - 5]


def test_enhanced_diffusion_splits_by_b_value() -> None:
    verdict = classify(series_of([enhanced(phases_b=(0.0, 800.0))]))
    assert [stack.phase for stack in verdict.stacks] == ["DiffusionBValue=0.0", "DiffusionBValue=800.0"]


def test_functional_groups_for_other_frames_are_refused() -> None:
    whole = enhanced()
    whole.NumberOfFrames = 9
    (refusal,) = classify(series_of([whole])).refusals
    assert (refusal.reason, refusal.slices) == (Reason.MALFORMED_HEADER, 9)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("orientation", ROW_AND_COLUMN, ids=str)
def test_objects_lie_where_they_were_put(orientation: tuple[Direction, Direction], backward: bool) -> None:
    datasets = make_series(orientation, (2.5, 0.5, 0.7), (10, 24, 20), [Ellipsoid((1, 2, -1), (3, 3, 4))])
    (stack,) = classify(series_of(datasets[::-1] if backward else datasets)).stacks
    volume = voxels_of(stack)
    inside = np.argwhere(volume == 100)
    centre = (stack.affine @ [*inside.mean(axis=0), 1])[:3]
    assert centre == pytest.approx([1, 2, -1], abs=0.3)
    volume_mm3 = len(inside) * abs(np.linalg.det(stack.affine[:3, :3]))
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * 36, rel=0.08)


@settings(max_examples=25, deadline=None)
@given(
    turn=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    spacing=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    centre=st.tuples(*[st.floats(-900, 900)] * 3),
    tilt=st.sampled_from([0.0, 0.0, -25.0, 12.5]),
    order=st.permutations(range(7)),
)
def test_each_voxel_is_where_its_own_slice_says(
    turn: list[float],
    spacing: tuple[float, float, float],
    centre: tuple[float, float, float],
    tilt: float,
    order: list[int],
) -> None:
    axes = Rotation.from_rotvec(turn).as_matrix()
    orientation = (tuple(axes[:, 0]), tuple(axes[:, 1]))
    datasets = make_series(orientation, spacing, (7, 5, 6), centre_mm=centre, tilt_deg=tilt)
    (stack,) = classify(series_of([datasets[place] for place in order])).stacks
    assert stack.tilt_deg == pytest.approx(abs(tilt), abs=1e-6)
    for k, plane in enumerate(stack.slices):
        assert plane.instance is not None
        header = plane.instance.header
        row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = (float(size) for size in header.PixelSpacing)
        for j, i in ((0, 0), (4, 5), (2, 1)):
            # PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1
            offset = row * between_columns * i + column * between_rows * j
            stated = np.array(header.ImagePositionPatient, float) + offset
            assert (stack.affine @ [stack.coordinates[k], j, i, 1])[:3] == pytest.approx(stated, abs=1e-3)


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(20)))
def test_the_order_of_files_changes_nothing(order: list[int]) -> None:
    instances = [instance_of(dataset) for dataset in phases(4, echo_and_time)()]
    slices = [plane for instance in instances for plane in expand(instance)]
    series = series_of(made())
    usual, mixed = classify(series, slices), classify(series, [slices[place] for place in order])
    assert [stack.phase for stack in usual.stacks] == [stack.phase for stack in mixed.stacks]
    for one, other in zip(usual.stacks, mixed.stacks, strict=True):
        assert one.slices == other.slices
        assert (one.affine == other.affine).all()

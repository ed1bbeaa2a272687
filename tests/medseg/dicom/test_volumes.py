"""The one rule by which slices belong together (docs/geometry.md), held against series made of known volumes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from scipy.spatial.transform import Rotation

from medseg.dicom.geometry import GeometryVerdict, classify
from medseg.dicom.instance import Slice
from tests.medseg.dicom.mixed import Geometry, Made, Mixture, Write, item, mixed

#: More of them: VOLUME_EXAMPLES=5000 python -m pytest tests/medseg/dicom/test_volumes.py
EXAMPLES = int(os.environ.get("VOLUME_EXAMPLES", "60"))
START_S = 86400 - 30  # the first slices are gathered just before midnight


def value(keyword: str, *values: object) -> Write:
    """Volume n has the nth value."""
    return lambda dataset, one: setattr(dataset, keyword, values[one.volume])


def private(group: int, creator: str, element: int, vr: str, *values: object) -> Write:
    def write(dataset: Dataset, one: Made) -> None:
        dataset.private_block(group, creator, create=True).add_new(element, vr, values[one.volume])

    return write


def both(*writes: Write) -> Write:
    def write(dataset: Dataset, one: Made) -> None:
        for each in writes:
            each(dataset, one)

    return write


def moment(seconds: float) -> tuple[str, str]:
    """DA and TM of so many seconds after midnight before 2 January."""
    day, rest = divmod(seconds, 86400)
    return f"202401{1 + int(day):02d}", f"{int(rest) // 3600:02d}{int(rest) // 60 % 60:02d}{rest % 60:09.6f}"


def clock(time: str, day: str | None, seconds: Callable[[Made], float]) -> Write:
    """A time of day, with its date where `day` names one."""

    def write(dataset: Dataset, one: Made) -> None:
        date, clock_time = moment(START_S + seconds(one))
        setattr(dataset, time, clock_time)
        if day:
            setattr(dataset, day, date)

    return write


def datetime(keyword: str, seconds: Callable[[Made], float], zone: str = "") -> Write:
    return lambda dataset, one: setattr(dataset, keyword, "".join(moment(START_S + seconds(one))) + zone)


def each_slice(one: Made) -> float:
    return 1.5 * one.turn


def each_volume(one: Made) -> float:
    return 40.0 * one.volume


def each_package(one: Made) -> float:
    return 40.0 * one.volume + 9.0 * one.package


def number_packages(dataset: Dataset, one: Made) -> None:
    dataset.AcquisitionNumber = 3 * one.volume + one.package + 1


def kinds(*values: str) -> Write:
    return lambda dataset, one: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", values[one.volume], "ND"])


#: What PS3.3 has, and what vendors wrote before: each tells one to four volumes apart by itself.
BY_VALUE: dict[str, Write] = {
    "AcquisitionNumber": value("AcquisitionNumber", 1, 2, 3, 4),
    "acquisitions from 9 to 12": value("AcquisitionNumber", 9, 10, 11, 12),
    "TemporalPositionIdentifier": value("TemporalPositionIdentifier", 1, 2, 3, 4),
    "echoes": both(value("EchoNumbers", 1, 2, 3, 4), value("EchoTime", "4.6", "9.2", "13.8", "18.4")),
    "EchoTime": value("EchoTime", "4.60", "9.2", "13.8", "18.4"),
    "InversionTime": value("InversionTime", "100", "300", "900", "2700"),
    "FlipAngle": value("FlipAngle", "3", "6", "12", "24"),
    "RepetitionTime": value("RepetitionTime", "500", "900", "1500", "3000"),
    "b-value": value("DiffusionBValue", 0.0, 50.0, 400.0, 800.0),
    "gradients": value("DiffusionGradientOrientation", [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.6, 0.8, 0]),
    "b-value of Siemens": private(0x0019, "SIEMENS MR HEADER", 0x0C, "IS", 0, 50, 400, 800),
    "b-value of GE": private(0x0043, "GEMS_PARM_01", 0x39, "IS", [0, 8], [50, 8], [400, 8], [800, 8]),
    "b-value of Philips": private(0x2001, "Philips Imaging DD 001", 0x03, "FL", 0.0, 50.0, 400.0, 800.0),
    "GE's parts of complex": private(0x0043, "GEMS_PARM_01", 0x2F, "SS", 0, 1, 2, 3),
    "Philips's cardiac phases": private(0x2001, "Philips Imaging DD 001", 0x08, "IS", 1, 2, 3, 4),
    "coils of Siemens": private(0x0051, "SIEMENS MR HEADER", 0x0F, "LO", "H1", "H2", "H3", "H4"),
    "SequenceName": value("SequenceName", "*ep_b0", "*ep_b50t", "*ep_b400t", "*ep_b800t"),
    "parts of complex": kinds("M", "P", "R", "I"),
    "Dixon": kinds("W", "F", "IP", "OP"),
    "ComplexImageComponent": value("ComplexImageComponent", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY"),
    "derived": lambda dataset, one: setattr(
        dataset,
        "ImageType",
        [["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"], ["DERIVED", "SECONDARY"], ["A", "B"]][one.volume],
    ),
    "ASLContext": value("ASLContext", "CONTROL", "LABEL", "M_ZERO_SCAN", "X"),
    "velocities": value("VelocityEncodingDirection", [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, -1.0]),
    "ConvolutionKernel": value("ConvolutionKernel", "B30f", "B60f", "B70f", ["Br40d", "3"]),
    "KVP": value("KVP", "80", "100", "120", "140"),
    "energies": value("MonoenergeticEnergyEquivalent", 40.0, 70.0, 100.0, 190.0),
    "ReconstructionDiameter": value("ReconstructionDiameter", "350", "360", "400", "500"),
    "contrast": value("ContrastBolusAgent", "none", "early", "late", "after"),
    "Units": value("Units", "BQML", "CNTS", "GML", "PROPCNTS"),
    "corrections": value("CorrectedImage", ["DECY"], ["DECY", "ATTN"], ["DECY", "ATTN", "SCAT"], ["NORM"]),
    "cardiac phases": value("NominalPercentageOfCardiacPhase", 0.0, 25.0, 50.0, 75.0),
    "respiration": value("RespiratoryCyclePosition", "START_RESPIR", "END_RESPIR", "UNDETERMINED", "X"),
    "coils": value("ReceiveCoilName", "A", "B", "C", "D"),
    "StackID": value("StackID", "1", "2", "3", "4"),
    "IrradiationEventUID": value("IrradiationEventUID", "1.2.9", "1.2.5", "1.2.77", "1.2.6"),
    "ProtocolName": value("ProtocolName", "d", "c", "b", "a"),
    "PET frames": both(
        value("FrameReferenceTime", "15000", "45000", "90000", "150000"), value("ActualFrameDuration", 30, 31, 60, 61)
    ),
    "AcquisitionTime of volumes": clock("AcquisitionTime", "AcquisitionDate", each_volume),
    "AcquisitionTime of volumes, no date": clock("AcquisitionTime", None, each_volume),
    "AcquisitionDateTime of volumes": datetime("AcquisitionDateTime", each_volume, "+0100"),
    "ContentTime of volumes": clock("ContentTime", "ContentDate", each_volume),
    "TriggerTime": value("TriggerTime", "0", "120", "240", "360"),
}
#: Times of each slice: what they tell is the order of turns.
BY_TIME: dict[str, Write] = {
    "AcquisitionTime": clock("AcquisitionTime", "AcquisitionDate", each_slice),
    "AcquisitionTime, no date": clock("AcquisitionTime", None, each_slice),
    "AcquisitionDateTime": datetime("AcquisitionDateTime", each_slice),
    "ContentTime": clock("ContentTime", "ContentDate", each_slice),
    "TemporalPositionTimeOffset": lambda dataset, one: setattr(dataset, "TemporalPositionTimeOffset", each_slice(one)),
}
#: Packages of each volume have numbers or times of their own.
BY_PACKAGE: dict[str, Write] = {
    "AcquisitionNumber": number_packages,
    "AcquisitionTime": clock("AcquisitionTime", "AcquisitionDate", each_package),
    "AcquisitionTime, no date": clock("AcquisitionTime", None, each_package),
}
CONTENT = 0x00209111
#: Of frames of an enhanced object: (what is written, pointers of the dimensions).
BY_DIMENSION: dict[str, tuple[Write, tuple[tuple[int, ...], ...]]] = {}


def indexed(dataset: Dataset, one: Made) -> None:
    dataset.FrameContentSequence[0].DimensionIndexValues = [1, one.k + 1, one.volume + 1]


def in_sequence(sequence: str, write: Write) -> Write:
    def put(dataset: Dataset, one: Made) -> None:
        inner = getattr(dataset, sequence)[0] if sequence in dataset else item()
        write(inner, one)
        setattr(dataset, sequence, [inner])

    return put


SPACE = ((0x00209056, CONTENT), (0x00209057, CONTENT))
for name, pointer in {
    "temporal": (0x00209128, CONTENT),
    "acquisition": (0x00209156, CONTENT),
    "labelling": (0x00189257, 0x00189251),
    "vendor's own": (0x20051413, 0x2005140F),
}.items():
    BY_DIMENSION[f"dimension {name}"] = indexed, (*SPACE, pointer)
for keyword, sequence, values in (
    ("TemporalPositionIndex", "FrameContentSequence", (1, 2, 3, 4)),
    ("FrameAcquisitionNumber", "FrameContentSequence", (1, 2, 3, 4)),
    ("EffectiveEchoTime", "MREchoSequence", (5.0, 10.0, 15.0, 20.0)),
    ("DiffusionBValue", "MRDiffusionSequence", (0.0, 50.0, 400.0, 800.0)),
    ("ASLContext", "MRArterialSpinLabelingSequence", ("CONTROL", "LABEL", "M_ZERO_SCAN", "X")),
    ("ComplexImageComponent", "MRImageFrameTypeSequence", ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")),
    ("NominalPercentageOfCardiacPhase", "CardiacSynchronizationSequence", (0.0, 25.0, 50.0, 75.0)),
    ("ConvolutionKernel", "CTReconstructionSequence", ("A", "B", "C", "D")),
):
    BY_DIMENSION[keyword] = in_sequence(sequence, value(keyword, *values)), SPACE
BY_DIMENSION["FrameReferenceDateTime"] = (
    in_sequence("FrameContentSequence", datetime("FrameReferenceDateTime", each_slice)),
    SPACE,
)
BY_DIMENSION["FrameAcquisitionDateTime"] = (
    in_sequence("FrameContentSequence", datetime("FrameAcquisitionDateTime", each_volume)),
    SPACE,
)


def noise_of_times(seed: int) -> Write:
    """Images are stored in no order that means anything."""

    def write(dataset: Dataset, one: Made) -> None:
        dataset.InstanceCreationDate, dataset.InstanceCreationTime = moment(7000 + (hash((seed, one.uid)) % 9973) / 10)

    return write


# --- what must hold ----------------------------------------------------------------------------------------------


def identity(plane: Slice) -> tuple[str, int]:
    assert plane.instance is not None
    return plane.instance.sop_instance_uid, plane.frame or 0


def check(verdict: GeometryVerdict, truth: dict[tuple[str, int], int]) -> None:
    """Each stack is one of the volumes, whole; what is in none was refused by name."""
    sizes = Counter(truth.values())
    given_back = 0
    for stack in verdict.stacks:
        of = Counter(truth[identity(plane)] for plane in stack.slices)
        assert len(of) == 1, f"merged {dict(of)}: {stack.phase}"
        ((volume, count),) = of.items()
        assert count == sizes[volume], f"{count} of {sizes[volume]} slices: {stack.phase}"
        given_back += count
    assert len({stack.phase for stack in verdict.stacks}) == len(verdict.stacks)
    refused = sum(one.slices for one in verdict.refusals)
    assert given_back + refused == len(truth)
    assert all(one.reason and one.detail for one in verdict.refusals)


@st.composite
def geometries(draw: st.DrawFn, volumes: int) -> Geometry:
    alike = draw(st.booleans())
    least = draw(st.integers(4, 9))
    counts = [least if alike else draw(st.integers(4, 9)) for _ in range(volumes)]
    fractions = st.one_of(
        st.sampled_from([0.0, 0.0, 0.5, 1 / 3, 0.02, 0.1, 0.25, 0.48, 0.9, 0.98]), st.floats(0.013, 0.987)
    )
    offsets = [0.0]
    for _ in range(volumes - 1):
        whole = draw(st.sampled_from([0, 0, 0, 1, 2, -1]))
        offsets.append(whole + draw(fractions))
    turned = Rotation.from_rotvec(draw(st.sampled_from([(0, 0, 0), (0, 0, 0), (0.3, -0.2, 1.0), (0, np.pi / 2, 0)])))
    row, column = turned.as_matrix()[:, 0], turned.as_matrix()[:, 1]
    scale = 10.0 ** draw(st.integers(-3, 3))
    decimals = draw(st.integers(1, 6)) + int(round(-np.log10(scale)) if scale < 1 else 0)
    return Geometry(
        tuple(counts),
        tuple(offsets),
        step_mm=draw(st.sampled_from([0.625, 1.0, 2.0, 3.3, 5.0, 7.0])) * scale,
        thickness=draw(st.sampled_from([1.0, 1.0, 0.9, 0.8, 1.6])),
        decimals=decimals,
        row=tuple(map(float, row)),
        column=tuple(map(float, column)),
    )


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    volumes = draw(st.integers(2, 4))
    geometry = draw(geometries(volumes))
    how = draw(st.sampled_from(["value", "value", "value", "time", "package", "frames", "objects"]))
    seed = draw(st.integers(0, 10**6))
    noise = (noise_of_times(seed),) if draw(st.booleans()) else ()
    numbered = draw(st.sampled_from(["volume", "position", "not"]))
    flat = replace(geometry, thickness=min(geometry.thickness, 1.0))  # packages of one volume never overlap
    if how == "value":
        names = draw(st.lists(st.sampled_from(sorted(BY_VALUE)), min_size=1, max_size=2, unique=True))
        tell = both(*(BY_VALUE[name] for name in names))
        packages = draw(st.sampled_from(["whole", "odd even", "slabs", "thirds"]))
        geometry = geometry if packages == "whole" else flat
        return Mixture(geometry, tell, packages, numbered=numbered, seed=seed, noise=noise)
    if how == "time":
        tell = BY_TIME[draw(st.sampled_from(sorted(BY_TIME)))]
        packages = draw(st.sampled_from(["whole", "whole", "odd even", "thirds"]))
        geometry = geometry if packages == "whole" else flat
        return Mixture(geometry, tell, packages, numbered=numbered, seed=seed, noise=noise)
    if how == "package":
        tell = BY_PACKAGE[draw(st.sampled_from(sorted(BY_PACKAGE)))]
        packages = draw(st.sampled_from(["odd even", "slabs", "thirds"]))
        return Mixture(flat, tell, packages, numbered=numbered, seed=seed, noise=noise)
    if how == "objects":
        return Mixture(geometry, lambda dataset, one: None, objects="each", seed=seed)
    tell, pointers = BY_DIMENSION[draw(st.sampled_from(sorted(BY_DIMENSION)))]
    objects = draw(st.sampled_from(["all", "each"]))
    return Mixture(geometry, tell, objects=objects, pointers=pointers, seed=seed)


OUTCOMES: Counter[str] = Counter()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(mixtures())
def test_mixed_volumes_come_apart_into_exactly_those_or_are_refused(mixture: Mixture) -> None:
    series, truth = mixed(mixture)
    verdict = classify(series)
    check(verdict, truth)
    event("all volumes" if not verdict.refusals else "refused in part" if verdict.stacks else "refused")
    OUTCOMES["all" if not verdict.refusals else "part" if verdict.stacks else str(verdict.refusals[0].reason)] += 1


# --- known cases -------------------------------------------------------------------------------------------------


def verdict_of(mixture: Mixture) -> GeometryVerdict:
    """The verdict, which keeps the rule."""
    series, truth = mixed(mixture)
    verdict = classify(series)
    check(verdict, truth)
    return verdict


def two(offset: float, **changes: object) -> Geometry:
    return replace(Geometry((12, 12), (0.0, offset)), **changes)  # type: ignore[arg-type]


OFFSETS = [0.0, 0.002, 0.02, 0.1, 0.2, 0.48, 0.5, 0.52, 0.98, 1.0, 3.5, 5.0, -2.25]


@pytest.mark.parametrize("offset", OFFSETS)
def test_two_phases_come_apart_wherever_the_second_lies(offset: float) -> None:
    tell = both(BY_VALUE["AcquisitionNumber"], BY_TIME["AcquisitionTime"])
    verdict = verdict_of(Mixture(two(offset), tell, seed=1))
    assert [(len(stack.slices), stack.phase) for stack in verdict.stacks] == [
        (12, "AcquisitionNumber=1"),
        (12, "AcquisitionNumber=2"),
    ]
    assert all(stack.uniform and stack.spacing_mm[0] == pytest.approx(5.0) for stack in verdict.stacks)


@pytest.mark.parametrize("name", sorted(BY_VALUE))
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_each_attribute_by_which_vendors_tell_volumes_apart_does(name: str, offset: float) -> None:
    lies = Geometry((7, 7, 7, 7), (0.0, offset, offset / 2, offset * 1.5))
    assert len(verdict_of(Mixture(lies, BY_VALUE[name], seed=3)).stacks) == 4


@pytest.mark.parametrize("name", sorted(BY_DIMENSION))
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_each_dimension_of_frames_does(name: str, offset: float) -> None:
    tell, pointers = BY_DIMENSION[name]
    verdict = verdict_of(Mixture(two(offset), tell, objects="all", pointers=pointers, seed=3))
    assert len(verdict.stacks) == 2


@pytest.mark.parametrize("name", sorted(BY_TIME))
@pytest.mark.parametrize("packages", ["whole", "odd even"])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_times_of_each_slice_do_past_midnight_too(name: str, packages: str, offset: float) -> None:
    verdict = verdict_of(Mixture(two(offset), BY_TIME[name], packages, numbered="not", seed=5))
    assert [len(stack.slices) for stack in verdict.stacks] == [12, 12]
    first = verdict.stacks[0].slices[0]
    assert verdict.stacks[0].phase.endswith("1 of 2")
    assert identity(first)[0].startswith("1.2.3.1."), "the first dynamic is the one before midnight"


@pytest.mark.parametrize("scale", [1e-3, 0.0018, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 0.5, 0.1])
def test_the_rule_knows_no_scale(scale: float, offset: float) -> None:
    lies = two(offset, step_mm=5.0 * scale, decimals=7)
    verdict = verdict_of(Mixture(lies, BY_VALUE["echoes"], seed=1))
    assert [len(stack.slices) for stack in verdict.stacks] == [12, 12]
    single = verdict_of(Mixture(Geometry((12,), (0.0,), step_mm=5.0 * scale, decimals=7), BY_VALUE["echoes"]))
    (stack,) = single.stacks
    assert stack.uniform
    assert not stack.findings
    assert stack.spacing_mm[0] == pytest.approx(5.0 * scale, rel=1e-3)


ONE_VOLUME = [
    pytest.param("odd even", number_packages, {}, id="odd and even slices, an acquisition each"),
    pytest.param("thirds", number_packages, {}, id="three packages"),
    pytest.param("odd even", BY_PACKAGE["AcquisitionTime"], {}, id="a time for each package"),
    pytest.param("odd even", BY_TIME["AcquisitionTime"], {}, id="a time for each slice"),
    pytest.param("thirds", number_packages, {"thickness": 0.7}, id="packages of slices with gaps"),
    pytest.param("slabs", number_packages, {"thickness": 1.6}, id="slabs of overlapping slices"),
    pytest.param(
        "whole", lambda dataset, one: setattr(dataset, "AcquisitionNumber", one.k + 1), {}, id="an acquisition a slice"
    ),
    pytest.param(
        "slabs",
        lambda dataset, one: setattr(dataset, "FrameReferenceTime", str(180000 * one.package)),
        {},
        id="bed positions of a static PET",
    ),
    pytest.param(
        "odd even", lambda dataset, one: setattr(dataset, "StackID", str(one.package + 1)), {}, id="a stack each"
    ),
    pytest.param(
        "slabs",
        lambda dataset, one: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", "AXIAL", *["ADD"] * one.package]),
        {},
        id="added slices",
    ),
    pytest.param("whole", BY_TIME["ContentTime"], {"thickness": 2.0}, id="overlapping slices"),
]


@pytest.mark.parametrize(("packages", "tell", "lies"), ONE_VOLUME)
def test_what_was_gathered_in_several_turns_stays_one_volume(
    packages: str, tell: Write, lies: dict[str, float]
) -> None:
    geometry = replace(Geometry((24,), (0.0,), step_mm=2.5), **lies)  # type: ignore[arg-type]
    verdict = verdict_of(Mixture(geometry, tell, packages, seed=2))
    assert verdict.verdict == "accepted"
    assert len(verdict.stacks[0].slices) == 24


def thickness(value_mm: object, spacing_mm: object = None) -> Write:
    def write(dataset: Dataset, one: Made) -> None:
        dataset.SliceThickness = value_mm
        dataset.SpacingBetweenSlices = spacing_mm
        number_packages(dataset, one)

    return write


@pytest.mark.parametrize(
    ("tell", "stacks"),
    [
        pytest.param(thickness(None), 0, id="nothing tells"),
        pytest.param(thickness(1.0), 0, id="thinner than either spacing"),
        pytest.param(thickness(1.0, 5.0), 2, id="spacing of each"),
        pytest.param(thickness(None, 5.0), 2, id="spacing of each alone"),
        pytest.param(thickness(5.0, 2.5), 2, id="thickness first"),
    ],
)
def test_acquisitions_that_could_be_packages_or_volumes_are_refused(tell: Write, stacks: int) -> None:
    verdict = verdict_of(Mixture(two(0.5), tell))
    assert len(verdict.stacks) == stacks
    assert [str(one.reason) for one in verdict.refusals] == ([] if stacks else ["interleaved_volumes"])
    assert stacks or "told apart by AcquisitionNumber" in verdict.refusals[0].detail


def test_packages_that_only_their_spacing_shows() -> None:
    verdict = classify(mixed(Mixture(two(0.5), thickness(None, 2.5)))[0])
    assert [len(stack.slices) for stack in verdict.stacks] == [24]


def silent(dataset: Dataset, one: Made) -> None:
    """Nothing tells."""


def test_volumes_that_nothing_tells_apart_are_refused() -> None:
    for offset, reason in ((0.0, "duplicate_positions"), (0.1, "interleaved_volumes"), (0.5, None)):
        verdict = classify(mixed(Mixture(two(offset), silent, numbered="not"))[0])
        assert [str(one.reason) for one in verdict.refusals] == ([reason] if reason else [])


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_volumes_numbered_one_after_the_other(offset: float) -> None:
    verdict = verdict_of(Mixture(two(offset), silent, numbered="volume"))
    assert len(verdict.stacks) == 2
    assert all("numbered_volumes" in {finding.code for finding in stack.findings} for stack in verdict.stacks)


def test_numbers_that_follow_positions_tell_nothing() -> None:
    (refusal,) = verdict_of(Mixture(two(0.0), silent, numbered="position")).refusals
    assert refusal.reason == "duplicate_positions"


def test_the_order_of_storing_tells_nothing_at_one_position() -> None:
    swapped = clock("ContentTime", "ContentDate", lambda one: float(one.volume ^ (one.k % 2)) + 10 * one.k)
    series, _ = mixed(Mixture(two(0.0), swapped, numbered="not"))
    # Both images of a position were stored together, here one first and there the other: ranks would mix volumes.
    assert [str(one.reason) for one in classify(series).refusals] == ["duplicate_positions"]


def test_acquisitions_of_slabs_and_packages_make_up_their_volumes() -> None:
    for packages in ("slabs", "odd even"):
        verdict = verdict_of(Mixture(two(0.0), number_packages, packages))
        assert [len(stack.slices) for stack in verdict.stacks] == [12, 12]
        assert [stack.phase for stack in verdict.stacks] == [
            "AcquisitionNumber=1 and 2",
            "AcquisitionNumber=4 and 5",
        ]


def test_magnitude_and_phase_are_never_one_volume() -> None:
    verdict = verdict_of(Mixture(two(12.0), BY_VALUE["parts of complex"]))
    assert [stack.phase for stack in verdict.stacks] == ["ImageType=M\\ND", "ImageType=P\\ND"]


def test_a_repeated_slice_is_left_out() -> None:
    verdict = verdict_of(Mixture(Geometry((12, 1), (0.0, 4.0)), BY_VALUE["AcquisitionNumber"]))
    assert [len(stack.slices) for stack in verdict.stacks] == [12]
    assert [(str(one.reason), one.slices) for one in verdict.refusals] == [("too_few_slices", 1)]

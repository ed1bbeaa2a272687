"""Independent programs agree with what medseg writes.

An object is placed in patient millimetres; whatever the orientation, its voxels must come back from the SEG at the
same voxels and at the same millimetres, in every reader: highdicom, dcmqi (3D Slicer's), OHIF's loader, DCMTK.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medseg.dicom.geometry import classify
from medseg.dicom.phantom import Box, Ellipsoid
from medseg.dicom.series import Stack
from medseg.dicom.sources import read_series
from medseg.inference.labels import Flag, SegmentationResult
from medseg.inference.planes import LabelSpool
from medseg.results.capture import CaptureWriter
from medseg.results.findings import lesion_uid
from medseg.results.key_object import write_key_object
from medseg.results.labelmap import LabelmapWriter
from medseg.results.provenance import Predecessor
from medseg.results.report import write_report
from medseg.results.seg import SegWriter
from medseg.results.structures import StructureWriter
from medseg.results.verify import verify_seg
from medseg.results.verify_labelmap import verify_labelmap
from medseg.results.verify_structures import verify_structures
from tests.medseg.results.stacks import (
    ABNORMAL,
    SEGMENTS,
    blobs,
    feed,
    findings,
    made,
    make_result,
    make_stack,
    multi_frame_stack,
    save_source,
)
from tests.orientations import ROW_AND_COLUMN, Direction
from tests.peers.allowed import ALLOWED, LABELMAP, unexpected
from tests.peers.programs import (
    dciodvfy,
    dcm2pnm,
    dcmdump,
    dsrdump,
    ohif,
    plastimatch,
    segimage2itkimage,
    tid1500reader,
)

# Three things without any symmetry, in LPS mm.
OBJECTS = (
    Ellipsoid((4.0, -3.0, 2.0), (9.0, 6.0, 7.0)),
    Box((-12.0, 3.0, -9.0), (-5.0, 8.0, 4.0)),
    Box((5.0, 6.0, -8.0), (6.5, 7.5, -6.0)),
)
OBLIQUE = ((0.8, 0.6, 0.0), (0.36, -0.48, -0.8))


GRIDS = {
    "oblique": {"orientation": OBLIQUE, "spacing_mm": (2.0, 1.0, 1.0)},
    "anisotropic": {"spacing_mm": (2.5, 0.5, 0.7), "shape": (12, 60, 44)},
    "tilted": {"tilt_deg": 17.0},
    "tilted coronal": {"tilt_deg": -12.0, "orientation": "coronal"},
    "feet first": {"orientation": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), "patient_position": "FFS"},
    "prone": {"orientation": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)), "patient_position": "HFP"},
    "feet first prone": {"orientation": ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)), "patient_position": "FFP"},
    "odd sizes": {"shape": (13, 33, 37)},
    "gap": {"shape": (14, 32, 36), "missing": [6]},
    "MR": {"modality": "MR", "orientation": "sagittal"},
}


def place(stack: Stack) -> np.ndarray:
    """Label each voxel by the object its centre lies in, from the attributes of its own source instance."""
    labels = np.zeros(stack.shape, np.uint8)
    for k, part in enumerate(stack.slices):
        points = centres(part.instance.header)
        for number, thing in enumerate(OBJECTS, start=1):
            labels[k][thing.contains(points)] = number
    return labels


def centres(header: Dataset, position: list[float] | None = None) -> np.ndarray:
    """(rows, columns, 3) LPS mm of the pixel centres of a plane (PS3.3 C.7.6.2.1.1)."""
    origin = np.array(position or header.ImagePositionPatient, float)
    row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = (float(value) for value in header.PixelSpacing)
    j, i = np.meshgrid(np.arange(header.Rows), np.arange(header.Columns), indexing="ij")
    return origin + j[..., None] * between_rows * column + i[..., None] * between_columns * row


def write(folder: Path, stack: Stack, labels: np.ndarray) -> Path:
    path = folder / "seg.dcm"
    feed(SegWriter(path, made()), stack, SEGMENTS, labels)
    verify_seg(path, stack, SEGMENTS, labels, exclusive=labels.ndim == 3)
    return path


def assert_highdicom_agrees(path: Path, stack: Stack, labels: np.ndarray) -> None:
    """Same voxels by source instance, and same millimetres by the SEG's own attributes."""
    seg = highdicom.seg.segread(path)
    sources = [part.instance.sop_instance_uid for part in stack.slices]
    back = seg.get_pixels_by_source_instance(sources, combine_segments=True, assert_missing_frames_are_empty=True)
    assert (back == labels).all()
    shared = seg.SharedFunctionalGroupsSequence[0]
    plane = shared.PlaneOrientationSequence[0]
    plane.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
    plane.Rows, plane.Columns = seg.Rows, seg.Columns
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    found = dict.fromkeys((1, 2, 3), 0)
    for frame, groups in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        points = centres(plane, [float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient])
        assert OBJECTS[number - 1].contains(points[frame != 0]).all()
        found[number] += int(frame.sum())
    assert found == {number: int((labels == number).sum()) for number in (1, 2, 3)}


def assert_dcmqi_agrees(path: Path, stack: Stack, labels: np.ndarray, folder: Path) -> None:
    """dcmqi's image holds the encoded slices alone: each of its voxels, by its millimetres, is one of ours."""
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ stack.affine
    back = np.zeros_like(labels)
    slot = {int(c): k for k, c in enumerate(stack.coordinates)}
    for image, affine in segimage2itkimage(path, folder):
        voxels = np.argwhere(image)
        ours = np.linalg.inv(to_ras) @ affine @ np.c_[voxels, np.ones(len(voxels))].T
        indices = np.rint(ours[:3]).astype(int)
        assert np.abs(ours[:3] - indices).max() < 1e-3
        back[[slot[g] for g in indices[0]], indices[1], indices[2]] = image[tuple(voxels.T)]
    assert (back == labels).all()


def assert_ohif_agrees(path: Path, stack: Stack, labels: np.ndarray, folder: Path) -> None:
    """Equal voxel counts per segment and slice, in the loader that OHIF runs."""
    seen = ohif(path, save_source(stack, folder))
    assert "error" not in seen
    counted = {
        str(segment.number): {
            part.instance.sop_instance_uid: int((labels[k] == segment.number).sum())
            for k, part in enumerate(stack.slices)
            if (labels[k] == segment.number).any()
        }
        for segment in SEGMENTS
        if (labels == segment.number).any()
    }
    assert seen["voxels"] == counted
    background = seen["segments"].pop("0", "Background")  # which a label map describes, too
    assert background == "Background"
    assert seen["segments"] == {str(segment.number): segment.label for segment in SEGMENTS}


@pytest.mark.parametrize("orientation", ROW_AND_COLUMN)
@pytest.mark.parametrize("backward", [False, True], ids=["along the normal", "against it"])
def test_48_orientations(tmp_path: Path, orientation: tuple[Direction, Direction], backward: bool) -> None:
    def against(dataset: Dataset) -> None:
        if backward:
            dataset.InstanceNumber = 100 - dataset.InstanceNumber

    stack = make_stack(against, orientation=orientation, shape=(20, 28, 30), objects=OBJECTS)
    labels = place(stack)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    path = write(tmp_path, stack, labels)
    assert_highdicom_agrees(path, stack, labels)
    assert_dcmqi_agrees(path, stack, labels, tmp_path / "dcmqi")


@pytest.mark.parametrize("grid", GRIDS)
def test_other_grids(tmp_path: Path, grid: str) -> None:
    stack = make_stack(**({"shape": (16, 40, 36), "objects": OBJECTS} | GRIDS[grid]))
    labels = place(stack)
    path = write(tmp_path, stack, labels)
    assert_highdicom_agrees(path, stack, labels)
    assert dciodvfy(path) == []
    # an ITK image has no shear and no gaps: dcmqi cannot show a tilted series or one with a slice left out
    if "tilt_deg" not in GRIDS[grid] and "missing" not in GRIDS[grid]:
        assert_dcmqi_agrees(path, stack, labels, tmp_path / "dcmqi")


@pytest.mark.parametrize("grid", ["oblique", "anisotropic", "tilted", "feet first prone", "gap"])
def test_ohif_shows_every_voxel_on_its_slice(tmp_path: Path, grid: str) -> None:
    stack = make_stack(**({"shape": (16, 40, 36), "objects": OBJECTS} | GRIDS[grid]))
    labels = place(stack)
    assert_ohif_agrees(write(tmp_path, stack, labels), stack, labels, tmp_path / "source")


def test_ohif_shows_the_rest_where_a_segment_is_empty(tmp_path: Path) -> None:
    stack = make_stack()
    labels = blobs(stack.shape)
    labels[labels == 2] = 0
    assert_ohif_agrees(write(tmp_path, stack, labels), stack, labels, tmp_path / "source")


def test_a_label_map_in_dcmqi_ohif_and_dcmtk(tmp_path: Path) -> None:
    stack = make_stack(shape=(16, 40, 36), objects=OBJECTS, orientation=OBLIQUE, spacing_mm=(2.0, 1.0, 1.0))
    labels = place(stack)
    path = tmp_path / "labelmap.dcm"
    feed(LabelmapWriter(path, made()), stack, SEGMENTS, labels)
    verify_labelmap(path, stack, SEGMENTS, labels)
    assert [error for error in dciodvfy(path) if not any(known in error for known in LABELMAP)] == []
    assert "LABELMAP" in dcmdump(path)
    assert_dcmqi_agrees(path, stack, labels, tmp_path / "dcmqi")
    assert_ohif_agrees(path, stack, labels, tmp_path / "source")


@pytest.mark.parametrize("grid", ["anisotropic", "oblique", "feet first prone"])
def test_contours_filled_by_plastimatch(tmp_path: Path, grid: str) -> None:
    """A smooth object with a cavity, a box and three voxels: each voxel, or at the very least a Dice of 0.99."""
    how = {"shape": (16, 60, 44)} | GRIDS[grid] | {"objects": OBJECTS}
    stack = make_stack(**how)
    labels = place(stack)
    cavity = Ellipsoid((4.0, -3.0, 2.0), (4.0, 3.0, 3.0))
    for k, part in enumerate(stack.slices):
        labels[k][cavity.contains(centres(part.instance.header))] = 0
    path = tmp_path / "rtstruct.dcm"
    feed(StructureWriter(path, made()), stack, SEGMENTS, labels)
    verify_structures(path, stack, SEGMENTS, labels, exclusive=True)
    assert dciodvfy(path) == []
    filled = plastimatch(path, save_source(stack, tmp_path / "source"), tmp_path / "filled")
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ stack.affine
    for segment in SEGMENTS:
        image, affine = filled[segment.label]
        voxels = np.argwhere(image)
        ours = np.rint((np.linalg.inv(to_ras) @ affine @ np.c_[voxels, np.ones(len(voxels))].T)[:3]).astype(int)
        back = np.zeros(stack.shape, bool)
        back[tuple(ours)] = True
        wanted = labels == segment.number
        assert 2 * (back & wanted).sum() / (back.sum() + wanted.sum()) >= 0.99


def test_captures_in_dciodvfy_and_dcmtk(tmp_path: Path) -> None:
    stack = make_stack(shape=(4, 40, 36), objects=OBJECTS)
    labels = place(stack)
    spool = LabelSpool()
    feed(spool, stack, SEGMENTS, labels)
    feed(CaptureWriter(tmp_path / "sc", spool, make_result(stack, SEGMENTS, labels), made()), stack, SEGMENTS, labels)
    for path in (tmp_path / "sc").iterdir():
        assert dciodvfy(path) == []
        assert np.array_equal(dcm2pnm(path, tmp_path / "shown.png"), dcmread(path).pixel_array)


def test_overlap_is_two_layers_in_ohif_and_several_images_in_dcmqi(tmp_path: Path) -> None:
    stack = make_stack(shape=(6, 16, 16))
    labels = np.zeros((6, 3, 16, 16), np.uint8)
    labels[1:5, 0, 2:12, 2:12] = labels[2:4, 1, 8:14, 8:14] = labels[0, 2, 0, 0] = 1
    path = write(tmp_path, stack, labels)
    assert dciodvfy(path) == []
    seen = ohif(path, save_source(stack, tmp_path / "source"))
    assert (seen["layers"], seen["overlap"]) == (2, True)
    groups = segimage2itkimage(path, tmp_path / "dcmqi")
    assert len(groups) == 2
    for number in (1, 2, 3):
        assert sum(int((image == number).sum()) for image, _ in groups) == int(labels[:, number - 1].sum())


def test_report_in_dciodvfy_dcmtk_and_dcmqi(tmp_path: Path) -> None:
    stack = make_stack()
    labels = blobs(stack.shape)
    labels[labels == 3] = 0
    result = make_result(
        stack, SEGMENTS, labels, flags=(Flag("edge", "Liver: touches the edge of the field of view", 1),)
    )
    path = tmp_path / "sr.dcm"
    write_report(path, result, findings(stack, SEGMENTS, labels), made(), with_seg=True)
    assert dciodvfy(path) == []
    dump = dsrdump(path)
    assert "No Left kidney found." in dump
    assert "Liver: touches the edge of the field of view" in dump
    assert_volumes_agree(tid1500reader(path, tmp_path / "sr.json"), result)


def test_lesions_in_dciodvfy_dcmtk_and_dcmqi(tmp_path: Path) -> None:
    stack = make_stack(shape=(16, 40, 36), objects=OBJECTS)
    labels = np.minimum(place(stack), 1)
    lesion = replace(SEGMENTS[0], label="Lesion", category=ABNORMAL)
    each = findings(stack, (lesion,), labels)
    path = tmp_path / "sr.dcm"
    write_report(path, make_result(stack, (lesion,), labels), each, made(), with_seg=True)
    assert dciodvfy(path) == []
    assert dsrdump(path).count("POLYLINE") == 2 + 2 * 3
    of_segment, _, *of_lesions = tid1500reader(path, tmp_path / "sr.json")["Measurements"]
    assert [one["TrackingUniqueIdentifier"] for one in of_lesions] == [
        lesion_uid(made(), lesion, one) for one in each[0].lesions
    ]
    for said, one in zip(of_lesions, each[0].lesions, strict=True):
        read = {item["quantity"]["CodeMeaning"]: float(item["value"]) for item in said["measurementItems"]}
        assert one.diameters is not None
        assert read["Volume"] == pytest.approx(one.volume_ml, abs=1e-6)
        assert read["Long axis"] == pytest.approx(one.diameters.long_mm, abs=1e-4)
        assert read["Short axis"] == pytest.approx(one.diameters.short_mm, abs=1e-4)
    assert float(of_segment["measurementItems"][1]["value"]) == 3


@pytest.mark.parametrize("captured", [False, True])
def test_key_objects_in_dciodvfy_and_dcmtk(tmp_path: Path, captured: bool) -> None:
    stack = make_stack(shape=(16, 40, 36), objects=OBJECTS)
    labels = place(stack)
    path = tmp_path / "ko.dcm"
    result = make_result(stack, SEGMENTS, labels)
    write_key_object(path, result, findings(stack, SEGMENTS, labels), made(), captured=captured)
    assert dciodvfy(path) == []
    assert "Of Interest" in dsrdump(path)


def test_report_of_nothing_in_dciodvfy_dcmtk_and_dcmqi(tmp_path: Path) -> None:
    stack = make_stack()
    nothing = np.zeros(stack.shape, np.uint8)
    result = make_result(stack, SEGMENTS, nothing)
    path = tmp_path / "sr.dcm"
    write_report(path, result, findings(stack, SEGMENTS, nothing), made(), with_seg=False)
    assert dciodvfy(path) == []
    assert "Nothing found: no Liver, Spleen or Left kidney found" in dsrdump(path)
    assert_volumes_agree(tid1500reader(path, tmp_path / "sr.json"), result)


def assert_volumes_agree(report: dict[str, Any], result: SegmentationResult) -> None:
    measured = report["Measurements"]
    groups = [one for one in measured if one["measurementItems"][0]["quantity"]["CodeMeaning"] == "Volume"]
    read = {g["Finding"]["CodeValue"]: float(g["measurementItems"][0]["value"]) for g in groups}
    assert read == {found.segment.type.value: pytest.approx(found.volume_ml, abs=1e-6) for found in result.measured}
    assert {g["measurementItems"][0]["units"]["CodeValue"] for g in groups} == {"ml"}


# Every readable series; the CT of 119 slices is in the slow set.
SOURCES = [
    "ct_totalseg_j2k",
    "mr_siemens_hfs_t1_sag",
    "dcmqi/segmentations/ct-3slice",
    "pydicom_files/693_UNCR.dcm",
    "pydicom_files/bad_sequence.dcm",
    "pydicom_files/CT_small.dcm",
    "pydicom_files/J2K_pixelrep_mismatch.dcm",
    "pydicom_files/MR2_J2KR.dcm",
    "pydicom_files/MR_small_bigendian.dcm",
    "pydicom_files/MR_small_implicit.dcm",
    "pydicom_files/explicit_VR-UN.dcm",
    "pydicom_files/dicomdirtests",
    pytest.param("ct_ircadb01_17/PATIENT_DICOM.zip", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("source", SOURCES)
def test_real_series(tmp_path: Path, shared_data: Path, source: str) -> None:
    stacks = [
        stack
        for series in read_series(shared_data / "dicom" / source)
        for stack in classify(series, assume_frame_of_reference=True, min_slices=1).stacks
    ]
    assert stacks
    for number, stack in enumerate(stacks[:4]):
        folder = tmp_path / str(number)
        folder.mkdir()
        labels = np.zeros(stack.shape, np.uint8)
        K, J, I = stack.shape  # noqa: E741
        labels[:, J // 4 : J // 2, I // 4 : I // 2] = 1
        labels[: K // 2 + 1, J // 2 : J // 2 + 3, I // 3 : I // 3 + 5] = 2
        path = write(folder, stack, labels)
        report = folder / "sr.dcm"
        result = make_result(stack, SEGMENTS, labels)
        write_report(report, result, findings(stack, SEGMENTS, labels), made(), with_seg=True)
        for written in (path, report):
            assert unexpected(source, dciodvfy(written)) == []
        if K > 1:
            assert_dcmqi_agrees(path, stack, labels, folder / "dcmqi")
            assert_volumes_agree(tid1500reader(report, folder / "sr.json"), result)
        if K > 1 and number == 0:
            assert_ohif_agrees(path, stack, labels, folder / "source")


def test_a_multi_frame_source(tmp_path: Path, shared_data: Path) -> None:
    stack = multi_frame_stack(shared_data)
    labels = blobs(stack.shape)
    path = write(tmp_path, stack, labels)
    assert unexpected("dcmqi/segmentations/23x38x3/multiframe", dciodvfy(path)) == []
    assert_dcmqi_agrees(path, stack, labels, tmp_path / "dcmqi")


def test_the_allow_list_names_only_sources_that_are_tried() -> None:
    tried = {getattr(source, "values", (source,))[0] for source in SOURCES}
    assert {row.source for row in ALLOWED} <= tried


def test_a_result_that_replaces_another_names_it(tmp_path: Path) -> None:
    """In a SEG and an SR that dicom3tools, OHIF's loader and DCMTK take as they take any other."""
    stack = make_stack(shape=(16, 40, 36), objects=OBJECTS)
    labels = place(stack)
    old = made("before")
    new = made("after", predecessors=(Predecessor(old.key, seg=True, sr=True),))
    seg, report = tmp_path / "seg.dcm", tmp_path / "sr.dcm"
    feed(SegWriter(seg, new), stack, SEGMENTS, labels)
    verify_seg(seg, stack, SEGMENTS, labels, exclusive=True)
    result = make_result(stack, SEGMENTS, labels)
    write_report(report, result, findings(stack, SEGMENTS, labels), new, with_seg=True)
    assert dciodvfy(seg) == []
    assert dciodvfy(report) == []
    assert_highdicom_agrees(seg, stack, labels)
    assert_ohif_agrees(seg, stack, labels, tmp_path / "source")

    written = dcmread(seg)
    (image,) = written.ReferencedImageSequence
    assert image.ReferencedSOPInstanceUID == old.key.uid("seg")
    assert image.PurposeOfReferenceCodeSequence[0].CodeMeaning.startswith("Predecessor")
    named = {one.SeriesInstanceUID: one for one in written.ReferencedSeriesSequence}
    (instance,) = named[old.key.uid("seg.series")].ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == old.key.uid("seg")
    assert "updated" in written.SeriesDescription

    (study,) = dcmread(report).PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert study.StudyInstanceUID == stack.series.study_uid
    assert series.SeriesInstanceUID == old.key.uid("sr.series")
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == [old.key.uid("sr")]
    assert "Predecessor" in dsrdump(report)


def test_a_result_names_nothing_that_was_not_there(tmp_path: Path) -> None:
    stack = make_stack(shape=(6, 16, 20))
    new = made("after", predecessors=(Predecessor(made("before").key, seg=False, sr=True),))
    feed(SegWriter(tmp_path / "seg.dcm", new), stack, SEGMENTS, blobs(stack.shape))
    written = dcmread(tmp_path / "seg.dcm")
    assert "ReferencedImageSequence" not in written
    assert len(written.ReferencedSeriesSequence) == 1

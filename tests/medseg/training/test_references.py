"""References of DICOM: what highdicom writes, and what a data set's own authors rasterised, is what is read."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from medseg.dicom.geometry import classify
from medseg.dicom.phantom import Ellipsoid, make_series
from medseg.dicom.series import Series, Stack
from medseg.dicom.sources import read_series
from medseg.training.data import UnusableCase
from medseg.training.references import masks_of, read_references
from tests.medseg.results.stacks import LIVER

MASS = replace(LIVER, label="Mass")
ONE = (MASS,)
TWO = (LIVER, replace(MASS, number=2))
SHAPE = (6, 24, 20)
OBLIQUE = ((0.8, 0.6, 0.0), (-0.48, 0.64, 0.6))


def save(datasets: list[Dataset], folder: Path) -> Stack:
    """Write a series, and the stack that it forms."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    (series,) = (one for one in read_series(folder) if isinstance(one, Series))
    (stack,) = classify(series).stacks
    return stack


def phantom(folder: Path, **options: Any) -> tuple[list[Dataset], Stack]:
    datasets = make_series(OBLIQUE, (3.0, 1.5, 1.0), SHAPE, [Ellipsoid((0.0, 0.0, 0.0), (6.0, 6.0, 6.0))], **options)
    return datasets, save(datasets, folder / "images")


def segmentation(images: list[Dataset], pixels: np.ndarray, kind: str, labels: list[str]) -> Dataset:
    """A SEG by highdicom."""
    described = [
        highdicom.seg.SegmentDescription(
            number, label, codes.SCT.Tissue, codes.SCT.Tissue, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, label in enumerate(labels, 1)
    ]
    ids: Any = (generate_uid(), 1, generate_uid(), 1)
    return highdicom.seg.Segmentation(images, pixels, kind, described, *ids, "maker", "model", "1", "0")


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_segmentation_lies_where_highdicom_put_it(tmp_path: Path, kind: str) -> None:
    images, stack = phantom(tmp_path)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 2:9, 3:7], labels[3:5, 10:20, 11:12] = 1, 2
    turned = images[::-1]  # whatever the order in which frames came
    given = labels[::-1] if kind != "FRACTIONAL" else np.stack([labels[::-1] == n for n in (1, 2)], -1) * 0.6
    segmentation(turned, given, kind, ["mass", "Liver"]).save_as(tmp_path / "reference.dcm")
    masks = masks_of(read_references(tmp_path, "case"), stack, TWO, {})
    assert np.array_equal(masks, [labels == 2, labels == 1])


def test_what_does_not_lie_on_the_grid_is_refused(tmp_path: Path) -> None:
    images, _ = phantom(tmp_path)
    segmentation(images, np.ones(SHAPE, np.uint8), "BINARY", ["x"]).save_as(tmp_path / "reference.dcm")
    _, other = phantom(tmp_path / "other", centre_mm=(0.0, 0.0, 0.7))
    references = read_references(tmp_path, "case")
    with pytest.raises(UnusableCase, match=r"case case: SEG .* its frames lie on another grid than series"):
        masks_of(references, other, ONE, {})


def contours(stack: Stack, name: str, squares: list[tuple[float, float, float, float]], k: float) -> Dataset:
    """An RTSTRUCT of rectangles (first row, last row, first column, last column) on plane k."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = stack.series.study_uid, generate_uid()
    roi, region = Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 7, name, stack.frame_of_reference_uid
    region.ReferencedROINumber, region.ContourSequence = 7, []
    for top, bottom, left, right in squares:
        corners = [(k, top, left), (k, top, right), (k, bottom, right), (k, bottom, left)]
        contour = Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(corners)
        points = np.array([stack.affine @ [*corner, 1.0] for corner in corners])[:, :3]
        contour.ContourData = [f"{value:.6f}" for value in points.reshape(-1)]
        region.ContourSequence.append(contour)
    made.StructureSetROISequence, made.ROIContourSequence = [roi], [region]
    return made


def write(dataset: Dataset, path: Path) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def test_a_contour_inside_another_is_a_hole(tmp_path: Path) -> None:
    _, stack = phantom(tmp_path)
    write(contours(stack, "GTV 1", [(2.5, 20.5, 1.5, 15.5), (5.5, 8.5, 4.5, 9.5)], 3), tmp_path / "rt.dcm")
    expected = np.zeros(SHAPE, bool)
    expected[3, 3:21, 2:16], expected[3, 6:9, 5:10] = True, False
    references = read_references(tmp_path, "case")
    assert np.array_equal(masks_of(references, stack, ONE, {})[0], expected)
    assert np.array_equal(masks_of(references, stack, ONE, {"Mass": "gtv*"})[0], expected)
    with pytest.raises(UnusableCase, match=r"no structure 'CTV' for segment 'Mass', found 'GTV 1'"):
        masks_of(references, stack, ONE, {"Mass": "CTV"})


def test_contours_between_slices_or_in_another_frame_are_refused(tmp_path: Path) -> None:
    _, stack = phantom(tmp_path)
    write(contours(stack, "GTV", [(2.5, 9.5, 1.5, 9.5)], 2.4), tmp_path / "rt.dcm")
    with pytest.raises(UnusableCase, match=r"a contour lies 0\.40 slices from the nearest"):
        masks_of(read_references(tmp_path, "case"), stack, ONE, {})
    apart = contours(stack, "GTV", [(2.5, 9.5, 1.5, 9.5)], 2)
    apart.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"
    write(apart, tmp_path / "rt.dcm")
    with pytest.raises(UnusableCase, match="another frame of reference"):
        masks_of(read_references(tmp_path, "case"), stack, ONE, {})


def test_images_alone_are_no_case(tmp_path: Path) -> None:
    phantom(tmp_path)
    with pytest.raises(UnusableCase, match="expected a DICOM SEG or RTSTRUCT with its images, found none"):
        read_references(tmp_path, "case")


def test_a_real_tumour_has_the_voxels_that_its_data_set_counts(tmp_path: Path, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "dicom_vendors/sarcoma_STS_002_ct_pet_mr_rtstruct.zip") as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if "/PET/" in name])
    (series,) = read_series(tmp_path)
    (stack,) = classify(series).stacks
    (mask,) = masks_of(read_references(tmp_path, "STS_002"), stack, ONE, {})
    file = shared_data / "labelled_pathology/sts_petct/STS_002/gtv.nii.gz"
    label = np.asanyarray(nibabel.load(file).dataobj) > 0
    assert mask.sum() == label.sum()
